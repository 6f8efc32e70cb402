"""Pages for a browser: their HTML, and what a reader sees and clicks in headless Chromium."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from browser import in_a_browser, opened

from mirigor_jax.drawing import panels
from mirigor_jax.runs import page

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


TEXT = """**The headline, `code` and <b>.**

| quantity | value | what it is |
| --- | --- | --- |
| I | [5.990, 6.000] bits | a bound |
| rows | 1,234 | counted |
| none | – | – |

See [the numbers](report.json).

![one](figures/one.png)
"""


def test_markdown_becomes_html_whose_tables_sort_and_whose_pictures_are_inside():
    shown = page.markdown(TEXT, {"figures/one.png": b"PNG"}.__getitem__)
    tree = Tree()
    tree.feed(shown)
    assert tree.open == []
    assert "<code>code</code> and &lt;b&gt;" in shown
    assert [given for tag, given in tree.seen if tag == "img"] == [
        {"alt": "one", "src": f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}"}
    ]
    cells = [(given["data-value"], given.get("class")) for tag, given in tree.seen if tag == "td"]
    assert cells == [
        *[("I", "text"), ("5.990", None), ("a bound", "text")],
        *[("rows", "text"), ("1234", None), ("counted", "text")],
        *[("none", "text"), ("", None), ("", "text")],
    ]
    assert [given.get("class") for tag, given in tree.seen if tag == "th"] == ["text", None, "text"]
    assert [given["href"] for tag, given in tree.seen if tag == "a"] == ["report.json"]


def test_intervals_are_drawn_where_the_axis_has_them():
    bars = [
        page.Bar("<I>", "MI", 1.5, 1.0, 3.0),
        page.Bar("u", "usable", None, 2.0, None),
        page.Bar("v", "MI", 0.5, None, None),
    ]
    drawn = page.intervals(bars, "In bits.")
    ticks = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+)</text>', drawn)
    (zero, _), *_, (last, label) = ticks
    unit = (float(last) - float(zero)) / float(label)
    (low, width, color), (low_of_u, width_of_u, color_of_u) = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="16" rx="3" fill="(.*?)"', drawn
    )
    at = [float(zero) + bits * unit for bits in (0.5, 1.0, 1.5, 2.0, 3.0)]
    assert [float(low), float(low) + float(width), float(low_of_u)] == pytest.approx([at[1], at[4], at[3]], abs=0.2)
    assert float(low_of_u) + float(width_of_u) > at[4]  # an open end reaches beyond all ends
    assert [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)] == pytest.approx([at[2], at[0]], abs=0.2)
    assert color != color_of_u
    assert "&lt;I&gt;: estimate 1.500, proven [1.000, 3.000]" in drawn
    assert "u: proven [2.000, –]" in drawn


@in_a_browser
def test_in_a_browser_the_table_sorts_the_plot_turns_and_the_graph_answers(text, width, tmp_path):
    (tmp_path / "page.html").write_text(text)
    with opened(tmp_path / "page.html", width) as tab:

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


@in_a_browser
def test_in_a_browser_no_name_in_a_plot_covers_another_and_the_plot_fits(width, tmp_path):
    names = [f"encoder {i}" for i in range(12)]
    near = [1 + 0.001 * i for i in range(11)]  # all but one have no room for all of their names
    columns = [
        page.Column("accuracy, %", [f"{x:.3f}" for x in [*near, 2.0]], [*near, 2.0]),
        page.Column(
            "bits ↑", [f"{x:.3f}" for x in [*near, 2.0]], [*near, 2.0], [(x - 0.5, x + 0.5) for x in [*near, 2.0]]
        ),
    ]
    (tmp_path / "page.html").write_text(page.page("A title", [page.scatter(names, columns, 0, 1)]))
    with opened(tmp_path / "page.html", width) as tab:
        plot = tab.locator("svg.points")
        assert plot.locator("circle").count() == 12
        texts = plot.locator("text.name")
        shown = texts.all_text_contents()
        assert "encoder 11" in shown
        assert 1 < len(shown) < 12
        boxes = [text.bounding_box() for text in texts.all()]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = (
                    a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
                    or a["y"] >= b["y"] + b["height"] or b["y"] >= a["y"] + a["height"]
                )  # fmt: skip
                assert apart, (a, b)
        around, inside = tab.locator(".wide").bounding_box(), plot.bounding_box()
        assert around["width"] - 20 <= inside["width"] <= around["width"]
