"""The sender as a process: what it prints, what arrives, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from lab.waiting import until
from programs import Bench


def test_the_demo_batch(bench: Bench) -> None:
    lines = bench.send().splitlines()
    assert lines[0] == "Sent: Process image resize (difficulty: 3) (id: 1)"
    assert len(lines) == 9
    assert lines[-1] == "8 tasks sent, 8 confirmed"
    assert bench.ready() == 8


def test_a_task_on_the_wire(bench: Bench) -> None:
    bench.send("--task", "Process image resize", "--difficulty", "3", "--quiet")
    ((properties, body),) = bench.take_all()
    assert body == b'{"id": 1, "task": "Process image resize", "difficulty": 3}'
    assert properties.delivery_mode == 2
    assert properties.content_type == "application/json"
    assert str(uuid.UUID(properties.message_id)) == properties.message_id
    assert properties.timestamp
    assert properties.app_id


def test_one_task_with_a_payload(bench: Bench) -> None:
    printed = bench.send("--task", "x", "--difficulty", "0.5", "--payload", '{"order": 7, "note": "é"}')
    assert printed == "Sent: x (difficulty: 0.5) (id: 1)\n1 task sent, 1 confirmed\n"
    ((_, body),) = bench.take_all()
    assert json.loads(body) == {"id": 1, "task": "x", "difficulty": 0.5, "payload": {"order": 7, "note": "é"}}


def test_generated_tasks_are_the_same_for_the_same_seed(bench: Bench) -> None:
    assert bench.send("--count", "30", "--seed", "7", "--quiet") == "30 tasks sent, 30 confirmed\n"
    first = [body for _, body in bench.take_all()]
    bench.send("--count", "30", "--seed", "7", "--quiet", "--window", "1")
    assert [body for _, body in bench.take_all()] == first
    bench.send("--count", "30", "--max-difficulty", "0", "--quiet")
    assert {json.loads(body)["difficulty"] for _, body in bench.take_all()} == {0}


def test_a_file_of_tasks_and_standard_input(bench: Bench, tmp_path: Path) -> None:
    lines = [json.dumps({"id": n, "task": f"Täsk {n}", "difficulty": n, "colour": "red"}) for n in range(5)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(lines))
    assert bench.send("--file", str(file)).splitlines()[-1] == "5 tasks sent, 5 confirmed"
    with file.open("rb") as stdin:
        sender = bench.launch("sender.py", ["--file", "-", "--quiet"], {}, stdin=stdin)
        assert sender.wait() == 0
    bodies = [json.loads(body) for _, body in bench.take_all()]
    assert bodies == [json.loads(line) for line in lines] * 2


def test_tasks_from_a_slow_pipe_are_sent_as_they_come(bench: Bench) -> None:
    """A source that is silent for longer than the heartbeat keeps neither its tasks nor its connection waiting."""
    sender = bench.launch("sender.py", ["--file", "-"], {"HEARTBEAT_SECONDS": "1"}, stdin=subprocess.PIPE)
    assert sender.process.stdin
    for count in (1, 2):
        sender.process.stdin.write(b'{"id": 1, "task": "x", "difficulty": 1}\n')
        sender.process.stdin.flush()
        until(lambda count=count: bench.ready() == count, "the task in the queue")  # type: ignore[misc]
        if count == 1:
            with pytest.raises(AssertionError, match="in vain"):
                until(lambda: sender.stderr, "a lost connection, which must not come", seconds=4)
    sender.process.stdin.close()
    assert sender.wait() == 0
    assert bench.ready() == 2


@pytest.mark.parametrize(
    "line", ["", "not json", '{"id": 1, "task": "x"}', '{"id": 1, "task": "x", "difficulty": NaN}']
)
def test_a_bad_line_ends_the_sending_and_is_named(bench: Bench, tmp_path: Path, line: str) -> None:
    good = '{"id": 1, "task": "x", "difficulty": 1}'
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join([good, good, line, good]))
    sender = bench.start("sender.py", "--file", str(file))
    assert sender.wait() == 2
    assert f"{file}, line 3: " in sender.stderr
    assert sender.stdout.splitlines()[-1] == "2 tasks sent, 2 confirmed"
    assert bench.ready() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "x"],
        ["--difficulty", "1"],
        ["--task", "x", "--difficulty", "-1"],
        ["--task", "x", "--difficulty", "hard"],
        ["--task", "x", "--difficulty", "NaN"],
        ["--task", "", "--difficulty", "1"],
        ["--task", "x", "--difficulty", "1", "--payload", "[1]"],
        ["--task", "x", "--difficulty", "1", "--payload", "{"],
        ["--task", os.fsdecode(b"\xff"), "--difficulty", "1"],
        ["--task", "x", "--difficulty", "1", "--payload", '{"a":' * 20_000 + "1" + "}" * 20_000],
        ["--count", "1", "--max-difficulty", "9" * 400],
        ["--count", "-1"],
        ["--count", "many"],
        ["--count", "1", "--file", "x"],
        ["--seed", "1"],
        ["--max-difficulty", "1"],
        ["--window", "0"],
        ["--file", "/no/such/file"],
        ["--file", "/"],
        ["--queue", "amq.mine"],
        ["--queue", ""],
        ["surplus"],
    ],
)
def test_wrong_use_ends_with_exit_code_2_and_sends_nothing(bench: Bench, arguments: list[str]) -> None:
    sender = bench.start("sender.py", *arguments)
    assert sender.wait() == 2, sender.describe()
    assert "sender.py: " in sender.stderr
    assert "Traceback" not in sender.stderr
    assert bench.ready() == 0


def test_a_bad_setting_ends_with_exit_code_2_and_one_line(bench: Bench) -> None:
    sender = bench.start("sender.py", QUEUE_TYPE="Stream")
    assert sender.wait() == 2
    assert sender.stderr == "sender.py: QUEUE_TYPE='Stream': must be classic, quorum or existing\n"


def test_without_a_queue_every_task_is_returned_and_not_confirmed(bench: Bench) -> None:
    sender = bench.start("sender.py", QUEUE_TYPE="existing")
    assert sender.wait() == 1
    assert sender.stdout == "8 tasks sent, 0 confirmed, 8 returned\n"
    assert "Not delivered, returned: Process image resize" in sender.stderr


def test_a_full_queue_refuses_and_the_sender_says_so(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
        channel.queue_declare(bench.queue, durable=True, arguments=arguments)
    sender = bench.start("sender.py", QUEUE_TYPE="existing", CONNECT_TIMEOUT_SECONDS="1")
    assert sender.wait(5) == 1
    sent, confirmed, refused = (int(word) for word in sender.stdout.splitlines()[-1].split() if word.isdigit())
    assert sent == 8
    assert confirmed + refused == 8
    assert refused > 0
    assert bench.ready() == confirmed


def test_a_queue_that_is_full_for_a_while_is_waited_for(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
        channel.queue_declare(bench.queue, durable=True, arguments=arguments)
    sender = bench.start("sender.py", QUEUE_TYPE="existing")
    arrived = 0
    while arrived < 8:
        until(lambda: bench.ready() > 0, "tasks in the queue")
        arrived += len(bench.take_all())
    assert sender.wait() == 0
    assert sender.stdout.splitlines()[-1] == "8 tasks sent, 8 confirmed"


def test_a_queue_with_other_arguments_is_named_with_the_ways_out(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True, arguments={"x-queue-type": "quorum"})
    sender = bench.start("sender.py")
    assert sender.wait() == 2
    assert bench.queue in sender.stderr
    assert "'x-queue-type'" in sender.stderr
    for way_out in ("another TASK_QUEUE", "QUEUE_TYPE", "delete"):
        assert way_out in sender.stderr
    assert sender.stderr.count("\n") == 1
    sender = bench.start("sender.py", QUEUE_TYPE="existing")
    assert sender.wait() == 0


def test_no_broker(bench: Bench) -> None:
    sender = bench.start("sender.py", RABBITMQ_URL="amqp://guest:s3cret@localhost:1/", CONNECT_TIMEOUT_SECONDS="0.5")
    assert sender.wait() == 3
    assert sender.stdout == "0 tasks sent, 0 confirmed\n"
    assert "no broker answers at amqp://guest:***@localhost:1/ (Connection refused)" in sender.stderr
    assert sender.stderr.count("\n") == 1


def test_the_next_url_is_tried(bench: Bench) -> None:
    bench.send("--quiet", RABBITMQ_URL=f"amqp://localhost:1/,{bench.url}")
    assert bench.ready() == 8


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
@pytest.mark.parametrize(
    ("change", "words"), [("s3cret", "user name or the password"), ("no-such-vhost", "virtual host")]
)
def test_refused_credentials_end_with_exit_code_3_and_one_line(
    bench: Bench, program: str, change: str, words: str
) -> None:
    url = f"{bench.url}{change}" if change == "no-such-vhost" else bench.url.replace(":guest@", f":{change}@")
    started = bench.start(program, RABBITMQ_URL=url)
    assert started.wait() == 3
    assert words in started.stderr
    assert started.stderr.count("\n") == 1
    assert "s3cret" not in started.stderr


def test_a_user_who_may_not_publish_is_told_so(breakable: Bench) -> None:
    with breakable.broker.channel() as channel:
        channel.queue_declare(breakable.queue, durable=True)
    breakable.broker.ctl("add_user", "reader", "s3cret")
    breakable.broker.ctl("set_permissions", "reader", ".*", "^$", ".*")
    url = breakable.url.replace("guest:guest", "reader:s3cret")
    try:
        sender = breakable.start("sender.py", RABBITMQ_URL=url, QUEUE_TYPE="existing")
        assert sender.wait() == 3
        assert "does not allow this" in sender.stderr
        assert "s3cret" not in sender.stderr
    finally:
        breakable.broker.ctl("delete_user", "reader")


def test_a_message_that_the_broker_will_not_take_costs_only_itself(bench: Bench, tmp_path: Path) -> None:
    """RabbitMQ closes the channel on a message over its limit, and with it all that was on its way."""
    too_much = 129 << 20  # over the limit of every version
    file = tmp_path / "tasks.jsonl"
    with file.open("w") as out:
        for number in range(5):
            payload = {"data": "x" * too_much} if number == 2 else {}
            out.write(json.dumps({"id": number, "task": f"t{number}", "difficulty": 0, "payload": payload}) + "\n")
    sender = bench.start("sender.py", "--file", str(file))
    assert sender.wait(120) == 1, sender.describe()
    assert sender.stdout.splitlines()[-1] == "5 tasks sent, 4 confirmed, 1 refused"
    assert "t2" in sender.stderr
    assert [json.loads(body)["id"] for _, body in bench.take_all()] == [0, 1, 3, 4]


def test_closed_output_ends_the_sending(bench: Bench) -> None:
    read, write = os.pipe()
    os.close(read)
    sender = bench.launch("sender.py", ["--count", "100000"], {}, stdout=write)
    os.close(write)
    assert sender.wait() == 1
    first, last = sender.stderr.splitlines()
    assert first == "sender.py: standard output is gone (Broken pipe); nothing more is sent"
    assert re.fullmatch(r"\d+ tasks sent, \d+ confirmed(, \d+ not confirmed)?", last)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sending_with_an_honest_closing_line(bench: Bench, number: signal.Signals) -> None:
    sender = bench.start("sender.py", "--count", "10000000", "--quiet")
    until(lambda: bench.ready() > 1000, "tasks in the queue")
    sender.signal(number)
    assert sender.wait() == 1
    sent, confirmed = (int(word) for word in sender.stdout.splitlines()[-1].split() if word.isdigit())
    assert sent == confirmed
    assert bench.ready() == confirmed
    assert "Traceback" not in sender.stderr


def test_a_signal_ends_a_sender_that_waits_for_input(bench: Bench) -> None:
    sender = bench.launch("sender.py", ["--file", "-"], {}, stdin=subprocess.PIPE)
    assert sender.process.stdin
    sender.process.stdin.write(b'{"id": 1, "task": "x", "difficulty": 1}\n')
    sender.process.stdin.flush()
    until(lambda: "Sent: x" in sender.stdout, "the first task")
    sender.signal(signal.SIGTERM)
    assert sender.wait() == 1
    assert sender.stdout.splitlines()[-1] == "1 task sent, 1 confirmed"


def on_a_terminal(bench: Bench, *arguments: str) -> str:
    """What the sender writes to a terminal of 80 columns."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    sender = bench.launch("sender.py", list(arguments), {"TERM": "xterm", "COLUMNS": "80"}, stdin=child, stdout=child)
    os.close(child)
    output = b""
    with suppress(OSError):  # the end of a terminal
        while data := os.read(parent, 10_000):
            output += data
    os.close(parent)
    assert sender.wait() == 0, sender.describe()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())


def test_a_bulk_send_on_a_terminal_shows_a_bar_with_its_rate(bench: Bench, tmp_path: Path) -> None:
    printed = on_a_terminal(bench, "--count", "20000")
    assert "Sent: " not in printed
    assert re.search(r"20000/20000 [1-9][0-9,]* tasks/s", printed)
    assert "20000 tasks sent, 20000 confirmed" in printed
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"id": 1, "task": "x", "difficulty": 1}\n' * 5000)
    printed = on_a_terminal(bench, "--file", str(file))
    assert printed.count("Sent: x") == 20
    assert re.search(r"5000/\? [1-9][0-9,]* tasks/s", printed)


def test_a_small_send_on_a_terminal_shows_its_tasks(bench: Bench) -> None:
    assert on_a_terminal(bench, "--count", "5").count("Sent: ") == 5
    assert "━" not in on_a_terminal(bench, "--count", "5", "--quiet")


def test_a_million_tasks_never_stand_in_memory(bench: Bench) -> None:
    """Measured with fewer; what grows with the number of tasks would show."""
    peaks = []
    for count in (10_000, 100_000):
        sender = bench.start("scripts/lab/peak_memory.py", "--count", str(count), "--quiet")
        assert sender.wait(60) == 0
        peaks.append(int(sender.stdout.splitlines()[-1]))
    assert peaks[1] < 64 << 10
    assert peaks[1] - peaks[0] < 4 << 10


def test_a_restart_of_the_broker_is_survived_without_a_loss(breakable: Bench) -> None:
    """What was not confirmed when the connection died is published again, under the same message_id."""
    count = 30_000
    arguments = ["--count", str(count), "--quiet", "--window", "10"]  # a small window, to be still at it
    sender = breakable.start("sender.py", *arguments, CONNECT_TIMEOUT_SECONDS="60")
    until(lambda: breakable.ready() > 1000, "tasks in the queue")
    breakable.broker.restart()
    assert sender.wait(120) == 0, sender.describe()
    assert "Connection lost" in sender.stderr, "the restart came too late to test anything"
    assert sender.stdout == f"{count} tasks sent, {count} confirmed\n"
    arrived = breakable.take_all()
    bodies = {json.loads(body)["id"]: properties.message_id for properties, body in arrived}
    assert sorted(bodies) == list(range(1, count + 1))
    for properties, body in arrived:
        assert bodies[json.loads(body)["id"]] == properties.message_id


def test_a_broker_that_does_not_come_back_is_reported(breakable: Bench) -> None:
    sender = breakable.start("sender.py", "--count", "10000000", "--quiet", CONNECT_TIMEOUT_SECONDS="1")
    until(lambda: breakable.ready() > 1000, "tasks in the queue")
    breakable.broker.kill()
    assert sender.wait() == 3
    sent, confirmed, unknown = (int(word) for word in sender.stdout.splitlines()[-1].split() if word.isdigit())
    assert sent == confirmed + unknown
    assert "no broker answers" in sender.stderr
