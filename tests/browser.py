"""A real browser without a screen or a network, for the page of a report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
LOOK = """
const shown = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility === "visible";
return {
  title: document.title,
  sections: [...document.querySelectorAll("section")].map((s) => ({
    heading: s.querySelector("h2").textContent,
    id: s.id,
    visible: shown(s) && shown(s.querySelector("h2")) && s.getBoundingClientRect().height > 60,
  })),
  links: [...document.querySelectorAll("nav a")].map((a) => a.getAttribute("href").slice(1)),
  images: [...document.querySelectorAll("img")].map((i) => ({
    alt: i.alt, whole: i.complete && i.naturalWidth > 0, visible: shown(i),
  })),
  requests: performance.getEntriesByType("resource").map((r) => r.name),
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};
"""


@dataclass
class Look:
    """What the browser made of a page."""

    title: str
    sections: list[dict[str, Any]]
    links: list[str]
    images: list[dict[str, Any]]
    requests: list[str]
    sideways: int
    """Pixels by which it is wider than its window."""
    console: list[str]

    def check(self, headings: list[str]) -> None:
        """Every section is there and visible, no image is broken, nothing is said or fetched."""
        assert [section["heading"] for section in self.sections] == headings
        assert all(section["visible"] for section in self.sections), self.sections
        assert self.links == [section["id"] for section in self.sections]
        assert self.images
        assert all(image["whole"] and image["visible"] for image in self.images), self.images
        assert self.console == []
        assert self.requests == []
        assert self.sideways == 0


class Browser:
    """Chromium, driven by Selenium; skips the test where it is not installed."""

    def __init__(self, profile: Path) -> None:
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("no chromium and chromedriver here: nobody looks at the page")
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._driver = Chrome(options=options, service=Service(driver))
        self._driver.execute_cdp_cmd("Network.enable", {})
        self._network(False)

    def _network(self, there: bool) -> None:
        rate = -1 if there else 0
        self._driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {
                "offline": not there,
                "latency": 0,
                "downloadThroughput": rate,
                "uploadThroughput": rate,
            },
        )

    @contextmanager
    def online(self) -> Iterator[Any]:
        """Inside, the browser reaches servers; yields its driver."""
        self._network(True)
        try:
            yield self._driver
        finally:
            self._driver.get("about:blank")
            self._network(False)

    def until(self, script: str) -> None:
        """Wait until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self._driver, 60).until(lambda driver: driver.execute_script(script))

    def look(self, page: Path | str | None, width: int) -> Look:
        """Open a page (None: the one that is open) in a window of this width."""
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        if page is not None:
            self._driver.get(page.as_uri() if isinstance(page, Path) else page)
        found = self._driver.execute_script(LOOK)
        said = [entry["message"] for entry in self._driver.get_log("browser")]
        return Look(**found, console=said)

    def close(self) -> None:
        """End the browser and its driver."""
        self._driver.quit()
