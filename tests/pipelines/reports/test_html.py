from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from experiments import experiment_to_json
from pipelines.graph.graph import Graph
from pipelines.reports.html import Html, data_uri, markup, page, section, table, tag
from pipelines.reports.run_page import headline, run_page, write_run_page
from pipelines.results.measurements import collect
from tests.pipelines.conftest import tiny
from tests.pipelines.results.test_measurements import WIDE, made_up, spread

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=y>\x1b[31m"
VOID = {"meta", "img"}


class Checked(HTMLParser):
    """Reads a document; every element that is opened must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def stands_alone(text: str) -> Checked:
    """The document, after a look that it neither runs nor fetches anything."""
    found = Checked(text)
    assert text.startswith("<!doctype html>\n")
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in found.all("meta"))
    return found


# Elements


def test_text_and_attributes_are_escaped():
    found = tag("p", EVIL, title=EVIL)
    (name, attributes), *others = Checked(found).elements
    assert (name, others) == ("p", [])
    assert attributes["title"].startswith("<script>")
    assert "\x1b" not in found


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "1 < 2"), " & 3") == "<p><b>1 &lt; 2</b> &amp; 3</p>"
    assert isinstance(markup("a", Html("<b>")), Html)


def test_attributes_that_are_none_are_left_out_and_underscores_are_hyphens():
    assert tag("td", "x", class_=None, aria_label="y", class__="z") == (
        '<td aria-label="y" class="z">x</td>'
    )


def test_elements_without_content_are_closed():
    assert tag("line", x1=1) == '<line x1="1"/>'
    assert tag("span", class_="meter") == '<span class="meter"></span>'


def test_a_section_without_content_is_nothing():
    assert section("Title", None) == ""
    assert section("Title", "content").startswith("<section><h2>Title</h2>")


def test_a_table_escapes_cells_and_scrolls_in_its_own_box():
    found = table(["name", "value"], [[EVIL, "1"]], caption=EVIL, marked=[0])
    assert found.startswith('<div class="scroll"')
    assert "<script>" not in found
    assert '<tr class="marked">' in found
    assert '<td class="number">1</td>' in found


def test_a_page_stands_alone():
    found = stands_alone(page(EVIL, tag("p", EVIL)))
    assert EVIL.partition("\x1b")[0] in "".join(found.words)
    assert data_uri(b"\x00\x01", "image/png") == "data:image/png;base64,AAE="


# The page of a run


@pytest.fixture(scope="module")
def results(finished):
    return collect(finished.home.store, finished.graph)


@pytest.fixture(scope="module")
def document(results) -> Checked:
    return stands_alone(run_page(results))


def test_the_page_of_a_run_is_small_and_written_whole(results, tmp_path):
    path = write_run_page(results, tmp_path / "new")
    assert path.read_text() == run_page(results)
    assert path.stat().st_size < 1_000_000
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_run_writes_its_page_and_says_where(finished):
    path = finished.home.report / f"tiny-{finished.graph.run_key[:8]}" / "report.html"
    assert str(path) in finished.output
    stands_alone(path.read_text())


def test_the_page_says_every_number(document, results):
    for m in (*results.final.values(), *results.curve.values()):
        number = f"{m.fid:.2f} ({m.metrics['fid_low']:.2f} .. {m.metrics['fid_high']:.2f})"
        assert number in document.text
    for stage in ("data", "train", "sample", "evaluate"):
        assert stage in document.text


def test_the_page_shows_curves_scales_and_three_grids(document):
    labels = [svg["aria-label"] for svg in document.all("svg") if "aria-label" in svg]
    assert [label.partition(":")[0] for label in labels] == [
        "FID over training",
        "FID by internal guidance scale",
        "Training loss",
        "Gradient norm",
    ]
    images = document.all("img")
    assert [image["alt"].partition(":")[0] for image in images] == [
        "Real",
        "Unguided",
        "Internal guidance, scale 1.5",
    ]
    assert len({image["src"] for image in images}) == 3


def test_the_page_says_what_it_was_made_with_and_how_to_do_it_again(document, results, finished):
    import base64
    import platform

    artifact = results.baseline.artifact
    for value in (*artifact.manifest["packages"].values(), platform.node()):
        assert value in document.text
    (link,) = document.all("a")
    content = base64.b64decode(link["href"].partition(",")[2]).decode()
    assert content == experiment_to_json(finished.experiment)
    assert "igdit run experiment.json" in document.text


def test_nothing_on_the_page_is_replaced(results):
    """The spaces that hold an interval together are text."""
    written = run_page(results)
    assert "\N{REPLACEMENT CHARACTER}" not in written
    assert "\N{NO-BREAK SPACE}..\N{NO-BREAK SPACE}" in written


def test_the_page_of_the_same_results_is_the_same(results):
    assert run_page(results) == run_page(results)


def test_an_experiment_cannot_have_a_name_that_acts(results):
    with pytest.raises(ValueError, match="name must be a file name"):
        dataclasses.replace(results.experiment, name=EVIL.replace("/", "|"))


def test_what_is_missing_is_said(store, finished):
    node = next(iter(finished.graph.curve.values())).evaluate
    store.quarantine(node.ref)
    found = stands_alone(run_page(collect(store, finished.graph)))
    assert "Not finished: 5 of 6 points are evaluated" in found.text


def test_samples_that_were_collected_are_said_to_be_gone(store, finished):
    node = finished.graph.baseline.images[0]
    store.quarantine(node.ref)
    found = stands_alone(run_page(collect(store, finished.graph)))
    assert len(found.all("img")) == 2
    assert "not in the store any more" in found.text


# What the first sentence says


def test_a_fall_beyond_the_interval_is_a_fall():
    text = headline(made_up(s1=spread(10.0, *WIDE), s1_5=spread(8.0, *[0.8 * s for s in WIDE])))
    assert text.startswith(
        "Internal guidance of scale 1.5 lowers FID from 10.00 (9.00 .. 11.00) "
        "to 8.00 (7.00 .. 9.00): 20 % less ("
    )


def test_a_rise_beyond_the_interval_is_a_rise():
    text = headline(made_up(s1=spread(10.0, 0.1, -0.1), s1_5=spread(12.0, 0.1, -0.1)))
    assert "raises FID" in text
    assert "20 % more (" in text


def test_a_difference_within_the_interval_is_none():
    made = made_up(s1=spread(9.0, *WIDE), s1_5=spread(8.0, *WIDE[::-1]))
    assert "cannot be distinguished from no guidance" in headline(made)
    assert not re.search("lowers|raises", headline(made))


def test_equals_of_the_lowest_are_marked_and_not_ranked():
    made = made_up(s1=spread(9.0, *WIDE), s1_5=spread(8.0, *WIDE[::-1]), s2=spread(8.1, *WIDE))
    found = Checked(run_page(made))
    badges = [e.get("class") for e in found.all("span")]
    assert badges == ["badge equal", "badge lowest", "badge equal"]
    assert "1, 2 cannot be distinguished from it" in found.text


def test_without_results_the_page_says_so(tmp_path):
    from pipelines.store.folder import FolderStore

    found = stands_alone(run_page(collect(FolderStore(tmp_path), Graph(tiny()))))
    assert "The last checkpoint is not evaluated yet" in found.text


# What is read on a screen


def test_losses_and_the_gradient_norm_are_drawn(results, document):
    history = results.history()
    for title in ("Training loss", "Gradient norm"):
        assert title in document.text
    drawn = [e for e in document.all("svg") if "training step" in (e.get("aria-label") or "")]
    labels = [e["aria-label"] for e in drawn]
    assert any(label.startswith("Training loss: loss") for label in labels)
    assert any(label.startswith("Gradient norm") for label in labels)
    paths = [e["d"] for e in document.all("path") if e["d"].count(",") == len(history)]
    assert len(paths) == 4  # loss, both of its parts, gradient norm: a point for each step
    for label in ("loss", "of the final output", "of the auxiliary head"):
        assert label in document.text


def test_long_records_are_thinned_to_means(results, monkeypatch):
    import pandas as pd

    from pipelines.reports import run_page as module
    from pipelines.results.measurements import Results

    steps = pd.RangeIndex(1, 1002, name="step")
    columns = ("total", "final", "aux", "grad_norm")
    history = pd.DataFrame({name: [float(step) for step in steps] for name in columns}, index=steps)
    history.loc[2, "grad_norm"] = float("nan")  # a step that fp16 left out
    monkeypatch.setattr(Results, "history", lambda _: history)
    found = Checked(module._training_charts(results))
    assert [e["d"].count(",") for e in found.all("path")] == [251] * 4
    assert "mean of 4 steps" in found.text


def test_a_record_that_is_damaged_or_was_not_made_here_is_not_drawn(results, monkeypatch):
    from pipelines.common.errors import MissingArtifactError
    from pipelines.reports import run_page as module
    from pipelines.results.measurements import Results

    def missing(_):
        raise MissingArtifactError("checkpoint/x is gone")

    for history in (missing, lambda _: None):
        monkeypatch.setattr(Results, "history", history)
        assert module._training_charts(results) is None


def test_no_dictionary_of_python_is_shown_to_a_reader(document):
    text = document.text.partition("experiment.json as text")
    for part in (text[0], text[2].partition("Protocol")[2]):
        assert "{'" not in part
        assert "None" not in part
    assert re.search(r"sampler\s+method \w+, num steps \d+", document.text)


def test_a_table_that_goes_on_beyond_the_screen_has_a_shadow_there(results):
    style = run_page(results).partition("<style>")[2].partition("</style>")[0]
    rule = re.search(r"^\.scroll \{(.*?)\}", style, re.DOTALL | re.MULTILINE)[1]
    assert "background-attachment: local, local, scroll, scroll" in " ".join(rule.split())
