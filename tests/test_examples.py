"""The examples, tried as one tries one's own handlers: calling one is calling a function."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from examples.pack import pack
from tasks import Attempt, Reject, Task


def test_a_file_is_packed_also_twice(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear reader")
    for number in (1, 2):
        pack(Task(1, "Pack file", 1, {"path": str(file)}), Attempt(number))
    assert gzip.decompress((tmp_path / "letter.txt.gz").read_bytes()) == b"Dear reader"


@pytest.mark.parametrize("payload", [None, {}, {"path": "/no/such/file"}, {"path": "/"}])
def test_no_file_is_no_reason_to_try_again(payload: dict[str, str] | None) -> None:
    with pytest.raises(Reject):
        pack(Task(1, "Pack file", 1, payload), Attempt())
