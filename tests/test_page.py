"""Pages for a browser: their HTML, and what a reader sees and clicks in headless Chromium."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mirigor_jax.drawing import panels
from mirigor_jax.runs import page

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package
NAMES = ["plain", "<b>&", "last"]
COLUMNS = [
    page.Column("accuracy, %", ["90.0", "–", "100.0"], [90.0, None, 100.0]),
    page.Column(
        "bits ↑",
        ["1.0 [0.5, 2.0]", "3.0 [–, 4.0]", "2.0 [1.5, 2.5]"],
        [1.0, 3.0, 2.0],
        [(0.5, 2.0), (None, 4.0), (1.5, 2.5)],
    ),
]
LEVELS, LARGER = [["last"], ["<b>&"], ["plain"]], {"plain": {"last", "<b>&"}, "<b>&": {"last"}}


@pytest.fixture(scope="module")
def text() -> str:
    drawn, (ax,) = panels("a picture")
    ax.plot([0, 1])
    blocks = [
        page.paragraph("Three <encoders>."),
        page.table([page.Column("encoder", NAMES), *COLUMNS]),
        page.heading("Any two"),
        page.scatter(NAMES, COLUMNS, 0, 1),
        page.order(LEVELS, LARGER, "A hint."),
        page.figure(drawn, "A caption."),
    ]
    return page.page("A <title>", blocks)


class Tree(HTMLParser):
    """Collects tags, and checks that each one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_loads_nothing(text):
    tree = Tree()
    tree.feed(text)
    assert tree.open == []
    outside = [value for _, given in tree.seen for key, value in given.items() if key in ("src", "href")]
    assert {value.partition(",")[0] for value in outside} == {"data:", "data:image/png;base64"}
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_names_are_text_and_never_html(text):
    assert "<b>" not in text
    assert '<td data-value="&lt;b&gt;&amp;">&lt;b&gt;&amp;</td>' in text
    [data] = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data)["names"] == NAMES
    assert json.loads(data)["columns"][1]["ends"][1] == [None, 4]


def test_a_line_that_a_path_replaces_is_left_out():
    drawn = page.order(LEVELS, LARGER, "")
    assert drawn.count("<line ") == 2  # last → <b>& → plain, and none from last to plain
    assert re.findall(r"data-more=\"(.*?)\" data-less=\"(.*?)\"", drawn) == [
        ("[]", "[1, 2]"),
        ("[0]", "[2]"),
        ("[0, 1]", "[]"),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not installed")
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_in_a_browser_the_table_sorts_the_plot_turns_and_the_graph_answers(text, width, tmp_path):
    api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(text)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        tab.goto((tmp_path / "page.html").as_uri())

        def first_cells() -> list[str]:
            return tab.locator("tbody tr td:first-child").all_inner_texts()

        tab.get_by_role("button", name="accuracy").click()
        assert first_cells() == ["last", "plain", "<b>&"]  # the largest first; a row without a value comes last
        tab.get_by_role("button", name="accuracy").click()
        assert first_cells() == ["plain", "last", "<b>&"]
        tab.get_by_role("button", name="encoder").click()
        assert first_cells() == ["plain", "last", "<b>&"]
        points = tab.locator("svg.points circle")
        assert points.count() == 2  # one encoder has no accuracy
        tab.get_by_label("across").select_option(label="bits ↑")
        assert points.count() == 3
        place = {found.text_content().partition(":")[0]: float(found.get_attribute("cx")) for found in points.all()}
        assert sorted(place, key=place.get) == ["plain", "last", "<b>&"]
        tab.locator("svg.order g").nth(1).click()
        assert [node.get_attribute("class") for node in tab.locator("svg.order g").all()] == ["more", "chosen", "less"]
        assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # wide parts scroll by themselves
        browser.close()
    assert said == []
