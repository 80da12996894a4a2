"""docs/replay.html and the pictures, in a real browser: light and dark, on a telephone and on a desk, by keyboard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import LEAST_CONTRAST, MODES, TEXTS, WIDTHS, Browser, browsing, contrast, is_light, lies_within, programs
from drawing.schedules import measured
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench
from replay.page import page
from replay.plays import takeover
from replay.scenes import read
from replay.takeover import picture
from scaling.picture import day_picture
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import config

DOCS = ROOT / "docs"
PAGE = DOCS / "replay.html"
RECORDINGS = {path.stem: path for path in sorted(DOCS.glob("recordings/*.jsonl"))}
PICTURES = sorted(DOCS.glob("pictures/*.svg"))

PAGE_BYTES, RECORDED_BYTES = 300_000, 200_000
LEAST_LETTERS = 6.5  # pixels of a font on a telephone


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


def test_a_missing_browser_is_named_and_nothing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.fail.Exception, match="apt-get install -y chromium chromium-driver"):
        programs()


# What they show is what was recorded


def test_what_is_drawn_from_the_recordings_is_up_to_date() -> None:
    found = {name: read(path) for name, path in RECORDINGS.items()}
    assert page(found) == PAGE.read_text(), "run scripts/pictures.sh --draw"
    assert picture(found["takeover"]) == (DOCS / "pictures/takeover.svg").read_text(), "run scripts/pictures.sh --draw"
    assert day_picture() == (DOCS / "pictures/autoscale.svg").read_text(), "run scripts/pictures.sh --draw"


def test_they_are_small() -> None:
    assert PAGE.stat().st_size < PAGE_BYTES
    assert sum(path.stat().st_size for path in RECORDINGS.values()) < RECORDED_BYTES


def test_each_script_says_how_it_is_called() -> None:
    command = ["bash", str(ROOT / "scripts/pictures.sh")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "pictures.sh [--draw]" in shown.stdout
    assert subprocess.run([*command, "--wrong"], capture_output=True, check=False).returncode == 2


def test_it_draws_anew_without_a_broker(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "recordings", tmp_path / "recordings")
    command = [sys.executable, str(ROOT / "scripts/pictures.py"), "--into", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "RABBITMQ_URL": "amqp://127.0.0.1:1/"}, cwd=tmp_path)
    assert (tmp_path / "replay.html").read_text() == PAGE.read_text()


def test_a_takeover_is_recorded_as_it_happens(bench: Bench, tmp_path: Path) -> None:
    settings = replace(
        config.load({"RABBITMQ_URL": ("test", bench.url)}), task_queue=bench.queue, seconds_per_difficulty=0.3
    )
    takeover(settings, tmp_path / "takeover.jsonl")
    recording = read(tmp_path / "takeover.jsonl")
    (run,) = recording.runs
    (lost,) = [piece for piece in run.pieces if not piece.done]
    killed = run.workers[lost.worker]
    (again,) = [piece for piece in run.pieces if piece.task == lost.task and piece.again]
    assert (killed.name, recording.broker.split()[0]) == ("Bert", "RabbitMQ")
    assert killed.killed is not None
    assert killed.returned is not None
    assert lost.start < lost.end == killed.killed < killed.returned <= again.start
    assert run.queued(killed.returned)[0] == lost.task  # in its old place
    assert sorted(piece.task for piece in run.pieces if piece.done) == sorted(run.tasks)
    assert "Bert is killed in the middle of task 2" in picture(recording)


def test_the_lanes_show_what_workers_did(browser: Browser) -> None:
    """By another reading of the same recording: that of compare.py."""
    events = [json.loads(line) for line in RECORDINGS["compare"].read_text().splitlines()]
    browser.show(PAGE)
    shown = browser.run(
        """all[0].show(all[0].seconds);
        return all[0].runs.map(run => [...run.lanes.querySelectorAll(".lane")].map(lane =>
          [...lane.querySelectorAll(".bar")].map(bar =>
            [bar.textContent, ...[bar.style.left, bar.style.width].map(part =>
              parseFloat(part) * all[0].seconds / 100)])));"""
    )
    for about, lanes in zip(events[0]["runs"], shown, strict=True):
        runs = {each["run"] for each in events if each.get("queue") == about["queue"]}
        schedule = measured((each for each in events if each.get("run") in runs), about["workers"])
        for number, lane in enumerate(lanes):
            bars = [(str(bar.task), bar.start, bar.seconds) for bar in schedule.lane(number)]
            assert [text for text, _, _ in lane] == [text for text, _, _ in bars]
            assert [span for _, *span in lane] == [pytest.approx(span, abs=0.01) for _, *span in bars]


# The pictures


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_whole_and_can_be_read(
    browser: Browser, path: Path, mode: str, width: int, tmp_path: Path
) -> None:
    around = tmp_path / "page.html"
    around.write_text(f'<body style="margin:8px"><img style="max-width:100%" src="{path.as_uri()}">')
    browser.show(around, mode, width)
    until(lambda: browser.run("return document.images[0].complete && document.images[0].naturalWidth"), "the picture")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    shown = browser.run("return document.images[0].getBoundingClientRect().width")
    browser.show(path, mode, width)
    found = browser.run(
        """const picture = document.documentElement, frame = picture.querySelector("rect.g");
        const box = frame.getBoundingClientRect(), texts = [...picture.querySelectorAll("text")];
        return {
          texts: texts.map(each => [each.textContent, each.getBoundingClientRect().toJSON()]),
          box: box.toJSON(), ground: getComputedStyle(frame).fill, view: picture.viewBox.baseVal.width,
          size: Math.min(...texts.map(each => parseFloat(getComputedStyle(each).fontSize))),
          title: picture.querySelector("title").textContent };"""
    )
    assert len(found["texts"]) > 10
    assert len(found["title"]) > 30
    clipped = [text for text, box in found["texts"] if not lies_within(box, found["box"])]
    assert clipped == []
    assert found["size"] * shown / found["view"] >= LEAST_LETTERS
    assert is_light(found["ground"]) == (mode == "light")


@pytest.mark.parametrize("path", [*PICTURES, PAGE], ids=lambda path: path.stem)
def test_nothing_comes_from_elsewhere(browser: Browser, path: Path) -> None:
    browser.requests()
    browser.show(path)
    if path == PAGE:
        browser.run("all[0].take(0)")
        until(lambda: browser.run("return all[0].t > 0.3"), "the replay to play")
    assert [url for url in browser.requests() if not url.startswith("data:")] == [path.as_uri()]
    assert [entry["message"] for entry in browser.log("browser")] == []


# The page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", ["beginning", "middle", "end"])
def test_the_page_is_whole_and_can_be_read(browser: Browser, mode: str, width: int, at: str) -> None:
    browser.show(PAGE, mode, width)
    browser.run(
        """const share = {beginning: 0, middle: 0.45, end: 1}[arguments[0]];
        document.querySelectorAll("details").forEach(each => { each.open = true; });
        document.querySelectorAll(".ask").forEach(each => each.click());
        for (const scene of all) { scene.guess = 0; scene.show(share * scene.seconds); }""",
        at,
    )
    assert browser.run("return document.documentElement.scrollWidth") == width
    texts = browser.run(TEXTS)
    assert len(texts) > 250
    # a number on a bar that still grows is seen as far as the bar has come
    whole = [each for each in texts if at == "end" or "bar" not in each["kind"]]
    frame = {"left": 0.0, "right": float(width)}
    assert [each for each in whole if not lies_within(each["box"], frame)] == []
    assert [each["text"] for each in whole if not lies_within(each["box"], each["holder"], slack=1.5)] == []
    assert [
        each for each in whole if each["opacity"] == 1 and contrast(each["ink"], each["ground"]) < LEAST_CONTRAST
    ] == []
    assert is_light(browser.run("return getComputedStyle(document.body).backgroundColor")) == (mode == "light")
    empty = (
        "return [...document.querySelectorAll('.lane, .slots, .caption, .axis')].filter(e => !e.offsetHeight).length"
    )
    assert browser.run(empty) == 0


def test_it_says_what_was_recorded_and_where(browser: Browser) -> None:
    browser.show(PAGE)
    sources = [each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, ".source")]
    assert len(sources) == 3
    assert all("RabbitMQ 3." in source or "RabbitMQ 4." in source for source in sources)
    headings = browser.run("return [...document.querySelectorAll('h1, h2, h3')].map(each => each.tagName)")
    assert headings[0] == "H1"
    assert headings.count("H2") == 2
    labels = browser.run("return [...document.querySelectorAll('[role=img]')].map(each => each.ariaLabel)")
    assert len(labels) == 4
    assert all("Done in" in label for label in labels)


def test_it_begins_paused_with_a_question_and_plays_once_it_is_answered(browser: Browser) -> None:
    browser.show(PAGE)
    assert browser.run("return [playing, all[0].t, all[0].caption.textContent.length > 20]") == [None, 0, True]
    answers = browser.driver.find_elements(By.CSS_SELECTOR, "#dispatch .answer")
    assert len(answers) == 3
    answers[0].click()
    until(lambda: browser.run("return all[0].t > 0.5"), "the replay to play")
    shown = "return all[0].runs.map(run => run.now.getBoundingClientRect().left)"
    assert len(set(browser.run(shown))) == 1  # one clock for both
    browser.run("all[0].seek(all[0].seconds - 0.2)")
    until(lambda: not browser.run("return all[0].playing"), "its end")
    assert "Fair dispatch is done after" in browser.run("return all[0].verdict.textContent")
    assert browser.run("return all[0].answers.map(each => each.className)") == [
        "answer wrong",
        "answer right",
        "answer",
    ]


def test_it_can_be_played_by_keyboard(browser: Browser) -> None:
    browser.show(PAGE)
    state = "return [all[0].t, all[0].playing]"
    browser.press(Keys.SPACE)
    until(lambda: browser.run("return all[0].t > 0.2"), "the replay to play")
    browser.press(Keys.SPACE)
    stood, goes_on = browser.run(state)
    assert not goes_on
    events = browser.run("return all[0].events")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.run(state)[0] == min(event for event in events if event > stood)
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.run(state)[0] == 0
    browser.run("all[0].scrub.focus()")
    browser.press(Keys.END)
    assert browser.run(state)[0] == pytest.approx(browser.run("return all[0].seconds"), abs=0.02)
    assert browser.run("return all[0].scrub.getAttribute('aria-valuetext')").startswith("11.")


def test_every_control_is_reached_by_tab_and_can_be_seen_there(browser: Browser) -> None:
    browser.show(PAGE)
    seen = []
    for _ in range(40):
        browser.press(Keys.TAB)
        found = browser.run(
            """const on = document.activeElement, style = getComputedStyle(on.closest(".speed") ?? on);
            const outline = [style.outlineStyle, parseFloat(style.outlineWidth)];
            return [on.className || on.tagName, on.closest("section")?.id, ...outline];"""
        )
        if found[1] != "dispatch":
            break
        seen.append(found[0])
        assert (found[2], found[3]) == ("solid", 3), found
    expected = ["answer"] * 3 + ["scrub", "play", "back", "step", "INPUT"] + ["ask"] * 3 + ["SUMMARY"] * 2
    assert seen == expected


def test_a_question_moves_the_scrubber(browser: Browser) -> None:
    browser.show(PAGE)
    for button in browser.driver.find_elements(By.CSS_SELECTOR, "#takeover .ask"):
        browser.run("arguments[0].scrollIntoView({block: 'center'})", button)
        button.send_keys(Keys.ENTER)
        assert float(browser.run("return all[1].scrub.value")) == pytest.approx(
            float(button.get_attribute("data-at") or -1), abs=0.02
        )
        assert browser.run("return arguments[0].nextElementSibling.checkVisibility()", button)


def test_with_reduced_motion_it_steps(browser: Browser) -> None:
    browser.show(PAGE, motion="reduce")
    browser.run("all[0].speed = 4; window.seen = []; all[0].start()")
    while browser.run("seen.push(all[0].t); return all[0].playing && all[0].t < 4"):
        assert browser.run("return document.getAnimations().length") == 0
    seen, events = browser.run("all[0].pause(); return [seen, all[0].events]")
    assert len(set(seen)) > 3
    assert set(seen) <= {0, *events}


def test_tasks_fly_only_while_it_plays(browser: Browser) -> None:
    browser.show(PAGE)
    browser.run("all[0].seek(5.5)")
    assert browser.run("return document.getAnimations().length") == 0
    browser.run("all[0].show(0); all[0].start()")
    until(lambda: browser.run("return document.querySelectorAll('.flight').length >= 8"), "tasks on their way")
    until(lambda: browser.run("return document.querySelectorAll('.flight').length == 0"), "their arrival")
    browser.run("all[0].pause()")


def test_without_a_script_it_still_tells_the_story(browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.show(PAGE)
        visible = browser.driver.find_element(By.TAG_NAME, "main").text
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "What happens, in words" in visible
    assert "Play" not in visible
