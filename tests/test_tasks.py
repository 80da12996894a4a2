"""Tasks on the wire, and the generated and simulated ones. No broker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import DEMO_BATCH, Attempt, BadTask, Task, generate, simulate

BAD_BODIES = {
    "empty": b"",
    "not JSON": b"resize the image",
    "not UTF-8": b'{"id": 1, "task": "caf\xe9", "difficulty": 1}',
    "UTF-16": '{"id": 1, "task": "x", "difficulty": 1}'.encode("utf-16"),
    "an array": b'[1, "x", 1]',
    "a number": b"3",
    "null": b"null",
    "NaN": b'{"id": 1, "task": "x", "difficulty": NaN}',
    "Infinity in the payload": b'{"id": 1, "task": "x", "difficulty": 1, "payload": {"a": -Infinity}}',
    "1e999": b'{"id": 1, "task": "x", "difficulty": 1e999}',
    "an integer beyond any float": b'{"id": 1, "task": "x", "difficulty": 1' + b"0" * 400 + b"}",
    "an integer of 5000 digits": b'{"id": 1, "task": "x", "difficulty": ' + b"9" * 5000 + b"}",
    "negative": b'{"id": 1, "task": "x", "difficulty": -1}',
    "difficulty as text": b'{"id": 1, "task": "x", "difficulty": "3"}',
    "difficulty true": b'{"id": 1, "task": "x", "difficulty": true}',
    "no difficulty": b'{"id": 1, "task": "x"}',
    "no id": b'{"task": "x", "difficulty": 1}',
    "id null": b'{"id": null, "task": "x", "difficulty": 1}',
    "id 1.5": b'{"id": 1.5, "task": "x", "difficulty": 1}',
    "id true": b'{"id": true, "task": "x", "difficulty": 1}',
    "no task": b'{"id": 1, "difficulty": 1}',
    "empty task": b'{"id": 1, "task": "", "difficulty": 1}',
    "task a number": b'{"id": 1, "task": 7, "difficulty": 1}',
    "payload an array": b'{"id": 1, "task": "x", "difficulty": 1, "payload": []}',
    "a member twice": b'{"id": 1, "id": 2, "task": "x", "difficulty": 1}',
    "a member with a long name twice": b'{"' + b"n" * 1000 + b'": 1, "' + b"n" * 1000 + b'": 1}',
    "a payload member twice": b'{"id": 1, "task": "x", "difficulty": 1, "payload": {"a": 1, "a": 2}}',
    "nested deeply": b'{"id": 1, "task": "x", "difficulty": 1, "payload": '
    + b'{"a":' * 100_000
    + b"1"
    + b"}" * 100_001,
    "half a surrogate pair": rb'{"id": 1, "task": "\ud83d", "difficulty": 1}',
    "two objects": b'{"id": 1, "task": "x", "difficulty": 1}{}',
    "a byte order mark": '\ufeff{"id": 1, "task": "x", "difficulty": 1}'.encode(),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_is_no_task_is_refused_with_a_reason(body: bytes) -> None:
    with pytest.raises(BadTask) as caught:
        Task.decode(body)
    assert 5 < len(str(caught.value)) < 200


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_task_or_a_bad_task(body: bytes) -> None:
    try:
        task = Task.decode(body)
    except BadTask:
        return
    assert Task.decode(task.encode()) == task


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(
    st.builds(
        Task,
        id=st.integers(min_value=-(2**63), max_value=2**63) | st.text(),
        task=st.text(min_size=1),
        difficulty=st.integers(0, 10**6) | st.floats(0, 1e9),
        payload=st.none() | st.dictionaries(st.text(), json_values),
    )
)
def test_what_is_encoded_is_decoded_again(task: Task) -> None:
    assert Task.decode(task.encode()) == task


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "task", "difficulty", "payload", "more"]), json_values))
def test_any_object_is_a_task_or_a_bad_task(members: dict[str, Any]) -> None:
    body = json.dumps(members).encode()
    try:
        task = Task.decode(body)
    except BadTask:
        return
    assert task.difficulty >= 0
    assert task.task


def test_the_wire_format_is_plain_json_in_utf8() -> None:
    assert Task(1, "Process image resize", 3).encode() == b'{"id": 1, "task": "Process image resize", "difficulty": 3}'
    assert Task("a", "Größe ändern", 0.5).encode() == '{"id": "a", "task": "Größe ändern", "difficulty": 0.5}'.encode()


def test_unknown_members_are_kept() -> None:
    body = b'{"id": 1, "task": "x", "difficulty": 2, "payload": {"a": 1}, "trace": [1], "zone": null}'
    task = Task.decode(body)
    assert task.extra == {"trace": [1], "zone": None}
    assert json.loads(task.encode()) == json.loads(body)


def test_the_demo_batch_is_eight_tasks_of_difficulty_1_to_5() -> None:
    assert len(DEMO_BATCH) == 8
    assert {task.difficulty for task in DEMO_BATCH} == {1, 2, 3, 4, 5}
    assert [task.id for task in DEMO_BATCH] == list(range(1, 9))


def test_generated_tasks_are_the_same_for_the_same_seed() -> None:
    first = list(generate(50, "7"))
    assert first == list(generate(50, "7"))
    assert first != list(generate(50, "8"))
    assert {task.difficulty for task in generate(200, "7")} == {1, 2, 3, 4, 5}
    assert {task.difficulty for task in generate(50, "7", 2)} == {1, 2}
    assert {task.difficulty for task in generate(50, "7", 0)} == {0}


def test_simulated_work_reports_each_second_and_the_end() -> None:
    seen: list[tuple[float, float]] = []
    attempt = Attempt(progress=lambda done, total: seen.append((done, total)))
    simulate(Task(1, "x", 2.25), attempt, 1.0)
    assert seen == [(1.0, 2.25), (2.0, 2.25), (2.25, 2.25)]
    seen.clear()
    simulate(Task(1, "x", 1), attempt, 0.05)
    assert seen == []
