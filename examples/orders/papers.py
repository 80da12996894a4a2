"""What an order's follow-ups make: a picture, an invoice, an e-mail. Made twice, each is the same."""

from __future__ import annotations

import io
import os
import smtplib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fpdf import FPDF
from PIL import Image

from examples.orders.shop import folder, keep
from tasks import Reject

PICTURE_PIXELS = 320  # of the longer side
SMTP_SECONDS = 10.0  # that a server may be silent


@dataclass(frozen=True)
class Item:
    name: str
    quantity: int
    price_cents: int


@dataclass(frozen=True)
class Order:
    number: str
    email: str
    photo: str
    total_cents: int
    at: datetime
    items: tuple[Item, ...]


def euros(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02d} EUR"


def picture(photo: Path) -> bytes:
    """The customer's picture, as small as the order's page shows it."""
    with Image.open(photo) as image:
        image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
        made = io.BytesIO()
        image.save(made, "JPEG")
    return made.getvalue()


def invoice(order: Order) -> bytes:
    """A PDF."""
    pdf = FPDF()
    pdf.set_creation_date(order.at)
    pdf.add_page()
    pdf.set_font("helvetica", "B", 20)
    pdf.cell(0, 15, f"Invoice {order.number}", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("helvetica", "", 11)
    pdf.cell(0, 10, f"{order.at:%d %B %Y}, for {order.email}", new_x="LMARGIN", new_y="NEXT")
    for item in order.items:
        pdf.cell(110, 8, f"{item.quantity} x {item.name}")
        pdf.cell(60, 8, euros(item.quantity * item.price_cents), align="R", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font(style="B")
    pdf.cell(110, 12, "Total")
    pdf.cell(60, 12, euros(order.total_cents), align="R")
    return bytes(pdf.output())


def confirmation(order: Order) -> EmailMessage:
    """Its Message-ID is made of the order's number: who gets it twice can tell."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{order.number}@shop.example>"
    mail["Date"] = format_datetime(order.at)
    mail["From"] = "The shop <shop@shop.example>"
    mail["To"] = order.email
    mail["Subject"] = f"Your order {order.number}"
    lines = [f"{item.quantity} x {item.name}" for item in order.items]
    mail.set_content("\n".join(["Thank you for your order:", "", *lines, "", f"Total: {euros(order.total_cents)}", ""]))
    return mail


def send(mail: EmailMessage) -> None:
    """By the server that SMTP_URL names (smtp:// or smtps://); without one, as a file in the folder `mail`."""
    url = urlsplit(os.environ.get("SMTP_URL", ""))
    if not url.hostname:
        keep(folder("mail") / f"{mail['Message-ID'].strip('<>').partition('@')[0]}.eml", bytes(mail))
        return
    connect = smtplib.SMTP_SSL if url.scheme == "smtps" else smtplib.SMTP
    server = connect(url.hostname, url.port or 0, timeout=SMTP_SECONDS)
    try:
        if url.username:
            server.login(unquote(url.username), unquote(url.password or ""))
        server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        if all(code >= 500 for code, _ in error.recipients.values()):
            raise Reject(f"nobody takes mail for {mail['To']}: {error}") from None
        raise
    finally:
        with suppress(OSError, smtplib.SMTPException):  # it has taken the mail or not, whatever it says now
            server.quit()


def date_of(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
