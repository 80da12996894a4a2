"""Writes sales as a shop's tills export them, for examples/etl.py: the same ones for the same seed.

python examples/make_sales.py --rows 20000 >sales.csv
"""

import argparse
import csv
import random
import sys

COLUMNS = ("order", "day", "product", "quantity", "price", "note")
PRODUCTS = {f"TEA-{number:02}": 150 + 35 * number for number in range(1, 41)}
NOTES = ("", "", "", "gift", "two\nlines", 'says "thanks"', "für Zoë")


def row(order: int, dice: random.Random) -> tuple[str, ...]:
    """As people type: spaces, small letters, decimal commas, and one row in 200 that nobody can use."""
    product = dice.choice(list(PRODUCTS))
    price = f"{PRODUCTS[product] / 100:.2f}"
    day = f"2026-11-{dice.randint(1, 30):02}"
    if dice.random() < 0.005:
        return (str(order), day, product, dice.choice(("", "none", "-1")), price, "")
    typed = dice.choice((product, product.lower(), f" {product} "))
    return (str(order), day, typed, str(dice.randint(1, 5)), price.replace(".", dice.choice(".,")), dice.choice(NOTES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", default="shop")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    dice = random.Random(arguments.seed)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for order in range(1, arguments.rows + 1):
        writer.writerow(row(order, dice))


if __name__ == "__main__":
    main()
