"""A real browser for the tests of pictures and pages: light and dark, of any width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

MODES, WIDTHS = ("light", "dark"), (360, 1280)
LEAST_CONTRAST = 4.5


def programs() -> tuple[str, str]:
    """The browser and its driver. What is missing fails the test, and is never skipped."""
    browsers = [found for name in ("chromium", "google-chrome") if (found := shutil.which(name))]
    driver = shutil.which("chromedriver")
    if not browsers or not driver:
        pytest.fail("no Chromium for the pictures' tests: apt-get install -y chromium chromium-driver", pytrace=False)
    return browsers[0], driver


class Browser:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(self, page: Path | str, mode: str = "light", width: int = 1280, motion: str = "no-preference") -> None:
        features = [
            {"name": "prefers-color-scheme", "value": mode},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def log(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return found

    def requests(self) -> list[str]:
        """All addresses that were asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def browsing() -> Iterator[Browser]:
    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()


# What can be seen

TEXTS = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
const opaque = colour => colour !== "rgba(0, 0, 0, 0)" && colour !== "transparent";
while (walker.nextNode()) {
  const node = walker.currentNode, element = node.parentElement;
  if (!node.textContent.trim() || !element.checkVisibility() || element.closest("script, style, .hidden")) continue;
  const range = document.createRange(), style = getComputedStyle(element);
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect().toJSON();
  let holder = element, ground = element;
  while (holder !== document.body && getComputedStyle(holder).overflowX === "visible") holder = holder.parentElement;
  while (ground !== document.body && !opaque(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  found.push({
    text: node.textContent.trim(), kind: element.className, box, holder: holder.getBoundingClientRect().toJSON(),
    ink: style.color, ground: getComputedStyle(ground).backgroundColor, opacity: Number(style.opacity) });
}
return found;
"""


def lies_within(box: dict[str, float], frame: dict[str, float], slack: float = 0.5) -> bool:
    return box["left"] >= frame["left"] - slack and box["right"] <= frame["right"] + slack


def is_light(colour: str) -> bool:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) > 3 * 128


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it: from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
