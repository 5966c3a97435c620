"""The report: nothing loaded from elsewhere, every link resolves, names are text, and it stays fast."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from report_records import write_results

from reslib import claims, report_page
from reslib.cli import main
from reslib.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements with their attributes and text; checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.ids = [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if "id" in element:
            self.ids.append(element["id"])
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open and self.open[-1]['tag']}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [e for e in self.elements if e["tag"] == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = write_results(tmp_path_factory.mktemp("report") / "results")
    assert main(["report", "--results", str(root)]) == 0
    return root / "report.html"


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_links_and_images_are_there(report, page):
    targets = [e["href"] for e in page.all("a")]
    assert len(targets) > 20 and len(page.ids) == len(set(page.ids))
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in page.ids
        else:
            assert "://" not in target and (report.parent / unquote(target)).exists(), target
    images = page.all("img")
    assert len(images) == 1
    assert all(i["src"].startswith("data:image/png;base64,iVBOR") and i["alt"] for i in images)


def test_nothing_is_loaded_from_elsewhere(report, page):
    text = report.read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert not any("src" in e for e in page.elements if e["tag"] != "img")
    policy = next(e for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert [e["href"] for e in page.all("link")] == ["data:,"]


def test_names_from_records_are_text(report, page):
    """A hostile model name, message and table cell appear as written, and make no element."""
    assert len(page.all("script")) == 2 and not page.all("b")
    assert any("my.nets:<script>alert(1)</script>" == e["text"] for e in page.all("td"))
    assert any(e["text"] == "<b>net</b>" for e in page.all("td"))
    data = json.loads(next(e["text"] for e in page.all("script") if e.get("type") == "application/json"))
    assert any(row[16] == 'says "</script>"' for row in data["rows"])


def test_every_run_stands_there_with_its_evidence(page):
    rows = [e["text"] for e in page.all("tr")]
    paper = next(r for r in rows if "resnet56-cifar10-s0" in r)
    for part in (
        "paper",
        "6.97",
        "64000",
        "269722",
        "fp32",
        "A <fast> CPU",
        "2.14.1",
        "c0ffeec0ffee*",
        "00ff00ff00ff00ff",
    ):
        assert part in paper, part
    states = [next(s for s in ("finished", "diverged", "interrupted") if f"{s}" in r) for r in rows if "-s0-" in r]
    assert sorted(states) == ["diverged", "finished", "finished", "finished", "interrupted"]
    diverged = next(r for r in rows if "plain20-synthetic" in r)
    assert "nan" not in diverged.lower() and "None" not in diverged  # what is unknown stays empty


def test_the_scoreboard_is_there_per_preset(page):
    captions = [e["text"] for e in page.all("caption")]
    assert sum("Scoreboard" in c for c in captions) == 2 and "SYNTHETIC DATA. The table." in captions
    for claim in claims.CLAIMS:
        assert sum(e["text"] == claim.text for e in page.all("th")) == 2
    order = [e["text"] for e in page.all("h2")]
    assert order == ["Preset paper", "Preset smoke", "All runs"]


def test_for_keyboards_and_screen_readers(page):
    first = page.all("a")[0]
    assert first["class"] == "skip" and first["href"] == "#main"
    tables, captions = page.all("table"), page.all("caption")
    assert len(tables) == len(captions)
    assert all(e["scope"] in ("row", "col") for e in page.all("th"))
    assert all(e["tabindex"] == "0" and e["aria-label"] for e in page.elements if e.get("class") == "scroll")
    assert page.all("html")[0]["lang"] == "en"


def test_every_figure_of_a_notebook_has_words():
    """What stands below it, and what is read aloud."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "notebooks").glob("*.ipynb")]
    stems = {s for text in sources for s in re.findall(r'save_figure\(\w+, \\"(\w+)\\"\)', text)}
    assert len(stems) > 10 and stems <= set(report_page.FIGURES)


def test_results_csv_has_a_row_per_run(report):
    frame = pd.read_csv(report.with_name("results.csv"))
    assert len(frame) == 6 and frame.run.is_unique
    assert set(frame.status) == {"finished", "diverged", "interrupted"}
    assert "sessions" not in frame and "path" not in frame
    assert all((report.parent / folder / "recipe.json").exists() for folder in frame.folder)
    best = frame.set_index("run").loc[Recipe("resnet56").run_name]
    assert best.test_error == 0.0697 and json.loads(best.lr_drops) == [0.5, 0.75] and best.preset == "paper"


def test_the_same_records_give_the_same_page(report):
    before = report.read_bytes()
    assert main(["report", "--results", str(report.parent)]) == 0
    assert report.read_bytes() == before


def test_the_page_of_one_preset(report, capsys):
    whole = report.read_bytes()
    assert main(["report", "--results", str(report.parent), "--preset", "paper"]) == 0
    out = report.parent / "paper" / "report.html"
    assert f"1 runs of paper: {out}" in capsys.readouterr().out and report.read_bytes() == whole
    page = Page(out.read_text())
    assert [e["text"] for e in page.all("h2")] == ["Preset paper", "All runs"]
    for target in (e["href"] for e in page.all("a")):
        assert target.startswith("#") or (out.parent / unquote(target)).exists(), target
    assert len(pd.read_csv(out.with_name("results.csv"))) == 1
    assert main(["report", "--results", str(report.parent), "--preset", "medium"]) == 1
    assert "no records of preset medium under" in capsys.readouterr().err


def test_another_place_for_the_page(report, tmp_path):
    out = tmp_path / "a page" / "r.html"
    assert main(["report", "--results", str(report.parent), "--out", str(out)]) == 0
    for target in (e["href"] for e in Page(out.read_text()).all("a")):
        assert target.startswith("#") or (out.parent / unquote(target)).exists(), target


def test_no_records_is_one_line(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path)]) == 1
    assert f"no records under {tmp_path}" in capsys.readouterr().err


def test_a_damaged_record_is_named_and_the_rest_shown(tmp_path, capsys):
    root = write_results(tmp_path / "results")
    damaged = next((root / "smoke" / "runs").glob("plain20-*")) / "summary.json"
    damaged.write_text('{"status": ')
    assert main(["report", "--results", str(root)]) == 1
    assert str(damaged) in capsys.readouterr().out
    text = (root / "report.html").read_text()
    assert str(damaged) in text and "resnet56-cifar10" in text
