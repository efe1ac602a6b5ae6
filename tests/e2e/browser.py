"""A real Chromium, pages in it that are watched, and whether everybody can see and hear them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright

#: Debian's; Playwright's own browsers are never downloaded.
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
#: What Playwright switches off, and people's browsers have: a page that is left may live on.
UNUSUAL = ["--disable-back-forward-cache"]
#: Where screenshots are kept: what a run leaves behind to look at.
ARTEFACTS = Path(os.environ.get("ARTEFACTS") or Path(__file__).parents[1] / "artefacts")

WIDE = 1400
NARROW = 360
HEIGHT = 900

#: What must have a name for whoever hears a page.
NAMED = set(
    "button checkbox combobox DisclosureTriangle image link region spinbutton textbox".split()
)
#: By WCAG 2.2, 1.4.3 (AA), for text of usual size.
CONTRAST = 4.5
#: The texts that stand out too little from what is behind them, with their contrast.
FAINT = """(least) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const { backgroundColor } = getComputedStyle(place);
      if (!/, 0\\)$/.test(backgroundColor)) return backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const element of document.body.querySelectorAll("*")) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    const text = texts.map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest(".unseen, .skip")) continue;
    const pair = [getComputedStyle(element).color, behind(element)].map(light);
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < least) faint.push(`${contrast.toFixed(2)} ${text.slice(0, 60)}`);
  }
  return faint;
}"""


class Watch:
    """Notes what a page must not do: complain, break its policy, ask other hosts, ask its user.

    Args:
        page: The page.
        origin: Where it may send requests to.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self._complaints: list[str] = []
        self._allowed: list[str] = []
        self._host = urlsplit(origin).netloc
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url))
        page.on("dialog", lambda dialog: self._complaints.append(f"dialog: {dialog.message}"))

    def allow(self, pattern: str) -> None:
        """Lets complaints of the browser pass that a test provokes, such as of a status."""
        self._allowed.append(pattern)

    def check(self) -> None:
        """That there was nothing."""
        left = [item for item in self._complaints if not self._is_allowed(item)]
        assert not left, left

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(f"{message.type}: {message.text}")

    def _request(self, url: str) -> None:
        if urlsplit(url).netloc != self._host:
            self._complaints.append(f"request to {url}")

    def _is_allowed(self, complaint: str) -> bool:
        return any(re.search(pattern, complaint) for pattern in self._allowed)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Chromium, until the block ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, ignore_default_args=UNUSUAL
        )
        try:
            yield browser
        finally:
            await browser.close()


async def screenshot(page: Page, name: str) -> None:
    """Keeps how a page looks."""
    await page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True, animations="disabled")


async def nameless(page: Page) -> list[str]:
    """The parts of a page that Chromium's accessibility tree has no name for, by their role."""
    session = await page.context.new_cdp_session(page)
    tree = await session.send("Accessibility.getFullAXTree")
    await session.detach()
    parts = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"]
    ]
    assert sum(role in NAMED for role, _ in parts) > 10  # it is the page, and not an empty one
    return [role for role, name in parts if role in NAMED and not name.strip()]


async def faint(page: Page) -> list[str]:
    """The texts of a page with too little contrast."""
    found: list[str] = await page.evaluate(FAINT, CONTRAST)
    return found


async def too_wide(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    over: int = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return over
