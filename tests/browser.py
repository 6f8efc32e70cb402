"""Pages in headless Chromium, for tests."""

import contextlib
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package


@contextlib.contextmanager
def opened(file: Path, width: int):
    """The page in headless Chromium. It says nothing on the console, loads nothing, and fits the window's width."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        tab.goto(file.as_uri())
        yield tab
        assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # wide parts scroll by themselves
        assert said == []
        browser.close()


IN_A_BROWSER = (
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not installed"),
    pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"]),
)


def in_a_browser(test):
    """Mark a test that opens a page at two widths."""
    for mark in IN_A_BROWSER:
        test = mark(test)
    return test
