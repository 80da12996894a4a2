"""What is shown to people cannot harm a terminal. No broker."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.events import bar, stars
from workqueue.streams import harmless


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_but_visible_characters_is_shown(text: str) -> None:
    shown = harmless(text)
    assert len(shown) <= 200 * 10
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)


def test_escapes_newlines_and_direction_marks_are_spelled_out() -> None:
    assert harmless("a\x1b[2Jb\nc\u202ed\x07") == r"a\x1b[2Jb\nc\u202ed\x07"
    assert harmless("Größe 你好 ⭐ שלום") == "Größe 你好 ⭐ שלום"


def test_a_long_text_is_cut() -> None:
    assert len(harmless("x" * 10_000_000)) == 200


@pytest.mark.parametrize(
    ("difficulty", "shown"),
    [(1, "⭐"), (3, "⭐⭐⭐"), (3.0, "⭐⭐⭐"), (0, "0"), (2.5, "⭐⭐⭐ 2.5"), (1e300, "⭐" * 10 + " 1e+300")],
)
def test_stars(difficulty: float, shown: str) -> None:
    assert stars(difficulty) == shown


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (1, 3, "[█  ] 1/3s"),
        (3, 3, "[███] 3/3s"),
        (1, 2.5, "[█  ] 1/2.5s"),
        (2.5, 2.5, "[███] 2.5/2.5s"),
        (30, 60, "[" + "█" * 15 + " " * 15 + "] 30/60s"),
    ],
)
def test_bar(done: float, total: float, shown: str) -> None:
    assert bar(done, total) == shown
