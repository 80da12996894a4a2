"""When tasks in a retry queue fall due. A broker tells only how many there are.

All of them wait equally long, so they leave in the order in which they came. Whatever a count rises by has come just
now, and falls due a delay later; whatever it falls by are the oldest. Of those that were there before we looked, nobody
knows how long: they are taken as spread evenly over the delay.
"""

from __future__ import annotations

from collections.abc import Sequence

SLICES = 10  # of what was there before
LATE_SECONDS = 1.5  # after this, what was due has gone, and the same number has come meanwhile

Waiting = tuple[tuple[float, int], ...]
"""When how many fall due, the next ones first."""


def counted(waiting: Waiting | None, delay: float, count: int, now: float) -> Waiting:
    """What is known after a count; None before the first."""
    if waiting is None:
        shares = [count * n // SLICES - count * (n - 1) // SLICES for n in range(1, SLICES + 1)]
        spread = ((now + delay * n / SLICES, share) for n, share in enumerate(shares, start=1))
        return tuple((at, share) for at, share in spread if share)
    kept = [(at, known) for at, known in waiting if now - at <= LATE_SECONDS]
    gone = sum(known for _, known in kept) - count
    if gone < 0:
        return (*kept, (now + delay, -gone))
    return tuple(without(kept, gone))


def without(waiting: Sequence[tuple[float, int]], gone: int) -> list[tuple[float, int]]:
    """All but the `gone` oldest."""
    left = []
    for at, known in waiting:
        leaving = min(gone, known)
        gone -= leaving
        if known > leaving:
            left.append((at, known - leaving))
    return left


def due(waiting: Waiting, until: float) -> int:
    return sum(count for at, count in waiting if at <= until)
