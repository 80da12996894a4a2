"""The page of `watch.py --web` in a real browser: whole and readable, nothing from elsewhere, honest when it is old."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from browsing import LEAST_CONTRAST, MODES, TEXTS, WIDTHS, Browser, browsing, contrast, is_light, lies_within
from lab.nodes import free_port
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program
from test_watch import SCRIPT, Crew, crew

LONG = "Generate the quarterly invoices of all customers of the northern region"
SHOWN = "return document.getElementById(arguments[0]).checkVisibility()"
TEXT = "return document.getElementById(arguments[0]).textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


def watched(bench: Bench, port: int) -> Program:
    program = bench.start(SCRIPT, "--web", str(port))
    until(lambda: "Watching" in program.stdout, "the page", 20)
    return program


def busy(crew: Crew, bench: Bench) -> None:
    """One works, one is silent, one waits; there is a dead letter; autoscale.py has decided."""
    working, silent, _ = crew.workers
    working.publish(working.begin(LONG, 3))
    working.publish(working.finish("task_retried", error="x" * 80, error_type="ValueError", delay_seconds=5.0))
    working.publish(working.begin(LONG, 5))
    crew.frozen.add(silent)
    working.channel.queue_declare(bench.dead, durable=True)
    working.channel.basic_publish("", bench.dead, b"{}", BasicProperties(delivery_mode=2))
    decision = {"workers": 2, "least": 1, "most": 10, "why": "4 ready, 2 in work", "ago": 1.0}
    working.publish(working.event("autoscale_decision", **decision))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mode", MODES)
def test_the_page_is_whole_and_can_be_read(bench: Bench, browser: Browser, mode: str, width: int) -> None:
    port = free_port()
    watched(bench, port)
    with crew(bench, 3) as workers:
        browser.show("about:blank")  # what it has shown before asks for its events again and again
        browser.requests()
        browser.log("browser")
        browser.show(f"http://127.0.0.1:{port}/", mode, width)
        until(lambda: browser.run(TEXT, "workers-title") == "Workers: 3", "all of them", 20)
        busy(workers, bench)
        until(lambda: browser.run(SHOWN, "dead") and "silent for" in browser.run(TEXT, "workers"), "all of it", 20)
        until(lambda: browser.run(SHOWN, "autoscale"), "the decision")
        assert browser.run(TEXT, "autoscale").startswith("⇅ 2 workers of 1 to 10 since ")
        assert "1 dead letter in " in browser.run(TEXT, "dead")
        assert LONG in browser.run(TEXT, "workers")
        assert f"↻ failed {LONG} (id 1)" in browser.run(TEXT, "recent")
        texts = browser.run(TEXTS)
        assert browser.run("return document.documentElement.scrollWidth") == width
    frame = {"left": 0.0, "right": float(width)}
    assert len(texts) > 40
    assert [each for each in texts if not lies_within(each["box"], frame)] == []
    assert [
        each for each in texts if each["opacity"] == 1 and contrast(each["ink"], each["ground"]) < LEAST_CONTRAST
    ] == []
    assert is_light(browser.run("return getComputedStyle(document.body).backgroundColor")) == (mode == "light")
    assert {url for url in browser.requests() if not url.startswith(f"http://127.0.0.1:{port}/")} == set()
    assert [entry["message"] for entry in browser.log("browser")] == []


def test_it_says_that_it_is_old_when_watch_has_ended_and_comes_back(bench: Bench, browser: Browser) -> None:
    port = free_port()
    program = watched(bench, port)
    browser.show(f"http://127.0.0.1:{port}/")
    until(lambda: browser.run(TEXT, "queue") == bench.queue, "a state", 20)
    assert not browser.run(SHOWN, "away")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    began = time.monotonic()
    until(lambda: browser.run(SHOWN, "away"), "the page to say so")
    assert time.monotonic() - began < 10
    watched(bench, port)
    until(lambda: not browser.run(SHOWN, "away"), "the page to be back", 30)
    assert browser.run(TEXT, "queue") == bench.queue
