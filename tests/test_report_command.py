"""The pages of a finished run, of a running one, and of many runs side by side: python -m mirigor_jax.report."""

import dataclasses
import json
import re

import pytest
from browser import in_a_browser, opened
from small import image_report

from mirigor_jax import report as command
from mirigor_jax.drawing import panels
from mirigor_jax.runs import report
from mirigor_jax.runs.folder import RunFolder

CONFIG = {"kind": "images", "train": {"k": 8, "steps": 40}, "seed": 0}


def made(path, steps=0, stages=(), config=CONFIG):
    """A run's folder with a config, so many training steps, and stages that are done."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write("config.json", config)
    (path / "train").mkdir()
    rows = [{"step": i + 1, "loss_nats": 2.0, "mi_bits": 1.0} for i in range(steps)]
    (path / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.write("stages.json", {name: {"seconds": 75.0} for name in stages})
    return folder


def finished(path, config=CONFIG):
    """A run's folder with its report."""
    folder = made(path, config=config)
    drawn, (ax,) = panels("a picture")
    ax.plot([0, 1])
    folder.write_figures({"bars": drawn})
    report.write(folder, dataclasses.replace(image_report(), name=path.name), report.IMAGE_FORM)
    return folder


def page_of(folder, capsys):
    capsys.readouterr()  # what making the folder has printed
    assert command.main([str(folder)]) == 0
    path = capsys.readouterr().out.removeprefix("page: ").strip()
    with open(path, encoding="utf-8") as file:
        return path, file.read()


def test_a_finished_run_has_its_page_and_the_command_makes_the_same_again(tmp_path, capsys):
    folder = finished(tmp_path / "run")
    first = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    (tmp_path / "run/report.html").unlink()
    path, again = page_of(folder, capsys)
    assert path == f"{tmp_path}/run/report.html"
    assert again == first
    assert first.count("<img ") == first.count('src="data:image/png;base64,') == 1
    headline, bars, table = (first.index(part) for part in ("<strong>", 'class="bars"', 'class="sorted"'))
    assert headline < bars < table  # the conclusion comes first


@pytest.mark.parametrize(
    ("steps", "stages", "said"),
    [
        (0, (), "just begun"),
        (12, (), "training, step 12 of 40"),
        (40, ("train", "encode"), "2 stages done, next: estimate"),
    ],
)
def test_the_page_of_a_running_job_says_how_far_it_is(tmp_path, capsys, steps, stages, said):
    path, text = page_of(made(tmp_path / "run", steps, stages), capsys)
    assert path.endswith("run/report.html")
    assert f"Not finished: {said}." in text
    assert text.count("<img ") == (steps > 0)
    assert text.count(">1 min 15 s</td>") == len(stages)


def test_an_index_shows_all_runs_side_by_side(tmp_path, capsys):
    finished(tmp_path / "a")
    finished(tmp_path / "deeper" / "b", CONFIG | {"seed": 1})
    made(tmp_path / "c", 3)
    (made(tmp_path / "d").path / "stages.json").write_text("{")  # as it may be while another process writes it
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit"}')  # of another program
    path, text = page_of(tmp_path, capsys)
    assert path == f"{tmp_path}/index.html"
    assert "2 of 4 runs are finished" in text
    links = re.findall(r'<td data-value="([^"]*)"><a href="([^"]*)">', text)
    assert links == [
        ("a", "a/report.html"),
        ("c", "c/config.json"),
        ("d", "d/config.json"),
        ("deeper/b", "deeper/b/report.html"),
    ]
    assert ">seed</button>" in text  # a setting in which they differ
    assert ">train.k</button>" not in text
    assert "training, step 3 of 40" in text
    assert "not readable now" in text


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: '{tmp_path}' holds no run (a folder with a config.json); give a folder that holds runs\n"
    )
    assert command.main([str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@in_a_browser
def test_in_a_browser_a_report_and_an_index_are_whole(tmp_path, capsys, width):
    for name in ("a", "b"):
        finished(tmp_path / name)
    page_of(tmp_path, capsys)
    with opened(tmp_path / "a" / "report.html", width) as tab:
        assert tab.locator("svg.bars rect").count() >= 1
        assert tab.evaluate("document.querySelector('svg.bars').getBoundingClientRect().right") <= width
    with opened(tmp_path / "index.html", width) as tab:
        assert tab.locator("svg.points circle").count() == 2
        tab.get_by_role("button", name="run").click()
        assert tab.locator("tbody tr td:first-child").all_inner_texts() == ["b", "a"]
