"""Debian's Chromium, headless, on the chat page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30
MOMENT_SECONDS = 1.0
_PROGRAMS = ("chromium", "chromedriver")


class Browser:
    """A window on the page, as a person has it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> None:
        """Loads the page anew, with nothing kept from before, and waits until it can be talked to."""
        self.driver.get(f"{self.url}/health")
        self.run("sessionStorage.clear()")
        self.load()

    def load(self) -> None:
        self.driver.get(f"{self.url}/")
        self.until(lambda: self.all(".choice select") or self.shown("#key-form"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def run_async(self, script: str, *arguments: Any) -> Any:
        """Runs a script that may await, and returns what it returns."""
        body = f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done, (e) => done(String(e)))"  # noqa: E501
        return self.driver.execute_async_script(body, *arguments)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))

    def shown(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def until(self, true: Any, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.one("body").text
            time.sleep(0.02)

    def soon(self, true: Callable[[], bool]) -> bool:
        """Waits for a moment until something is true, and returns whether it is."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while not (found := true()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def click(self, selector: str, label: str | None = None) -> None:
        found = [item for item in self.all(selector) if label is None or item.text == label]
        assert found, f"there is no {selector} {label}"
        found[-1].click()

    def type(self, selector: str, text: str, *, instead: bool = False) -> None:
        field = self.one(selector)
        if instead:
            field.clear()
        field.send_keys(text)

    def set(self, name: str, value: str) -> None:
        """Fills a field of the settings."""
        if not self.shown("#settings"):
            self.click("#open-settings")
        self.type(f"#settings [name={name}]", value, instead=True)

    def ask(self, text: str) -> None:
        self.type("#question", text)
        self.click("#send")
        self.until_idle()

    def until_idle(self) -> None:
        self.until(lambda: self.one("#send").text == "Send" and not self.all("[aria-busy=true]"))

    def screen(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)

    def requested(self) -> list[str]:
        """Returns every address asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Returns what the console says since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browsing(url: str, downloads: Path) -> Iterator[Browser]:
    """Opens a browser.

    Args:
        url: Of the server.
        downloads: Folder for what the page saves.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # Chromium refuses its sandbox to root, and /dev/shm is small in containers.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        driver.set_script_timeout(SECONDS)
        behavior = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
        yield Browser(driver, url)
    finally:
        driver.quit()


def programs() -> Sequence[str]:
    """Returns where Chromium and its driver are; the test is skipped where they are not."""
    found = [shutil.which(name) for name in _PROGRAMS]
    if not all(found):
        pytest.skip("the chat page is tested in Chromium (Debian: apt-get install chromium chromium-driver)")
    return [path for path in found if path is not None]
