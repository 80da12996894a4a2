"""A cart: what a client sends as the payload of `Process order`. Money is in whole cents."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}")  # fit for the name of a file, too
MOST = 1_000_000  # pieces, or cents, of a line or a payment


@dataclass(frozen=True)
class Line:
    sku: str
    quantity: int
    price_cents: int


@dataclass(frozen=True)
class Payment:
    method: str
    token: str  # what the provider knows it by
    amount_cents: int


@dataclass(frozen=True)
class Cart:
    number: str
    email: str
    photo: str  # the customer's picture, to be printed on everything
    lines: tuple[Line, ...]
    payments: tuple[Payment, ...]

    @property
    def total_cents(self) -> int:
        return sum(line.quantity * line.price_cents for line in self.lines)

    @property
    def difficulty(self) -> int:
        return len(self.lines) + len(self.payments)

    def payload(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, payload: dict[str, Any] | None) -> Cart:
        """The cart in a payload. Raises ValueError for what is none."""
        try:
            members = dict(payload or {})
            lines = tuple(Line(**line) for line in members.pop("lines"))
            payments = tuple(Payment(**payment) for payment in members.pop("payments"))
            cart = cls(**members, lines=lines, payments=payments)
            cart._check()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no cart: {error!r}") from None
        return cart

    def _check(self) -> None:
        if not (NAME.fullmatch(self.number) and NAME.fullmatch(self.photo)):
            raise ValueError("no cart: its number and its photo are names of letters, digits and -")
        if not re.fullmatch(r"[^\s@<>]+@[^\s@<>]+", self.email):
            raise ValueError("no cart: there is no e-mail address")
        if not self.lines or len({line.sku for line in self.lines}) < len(self.lines):
            raise ValueError("no cart: it has no lines, or two of one product")
        numbers = [*(line.quantity for line in self.lines), *(line.price_cents for line in self.lines)]
        numbers += [payment.amount_cents for payment in self.payments]
        if not all(type(number) is int and 0 < number <= MOST for number in numbers):
            raise ValueError(f"no cart: quantities and amounts are whole numbers from 1 to {MOST}")
