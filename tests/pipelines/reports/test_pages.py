"""MLflow's own pages, in a browser: what somebody sees who compares the trials of a study.

IGDIT_SCREENSHOTS names a folder that keeps the pictures.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from cluster.processes import descendants
from pipelines.commands.run import run_experiment
from pipelines.commands.study import StudyOptions, run_study
from pipelines.console.console import make_console
from pipelines.graph.graph import Graph
from pipelines.store.home import Home
from pipelines.study.storage import read_studies
from pipelines.tracking.client import import_mlflow
from pipelines.tracking.metrics import comparison_name
from tests.equipment.processes import is_loopback, kill_tree, listeners, wait_for
from tests.pipelines.conftest import OUTSIDE, ROOT, tiny
from tests.pipelines.study.conftest import small_study

CHROMIUM = shutil.which("chromium")
TRIALS, LONG = 8, 180.0
AXES = ["aux_layer", "aux_weight", "ig_scale", "fid"]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium in the PATH: the pages are not looked at")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def home(browser, tmp_path_factory) -> Home:
    """A finished study, and two experiments of one protocol."""
    home, study = Home(tmp_path_factory.mktemp("pages")), small_study()
    wide = {"model": {"depth": 3, "width": 32}, "train": {"steps": 90, "checkpoint_every": 30}}
    study = small_study(
        experiment=tiny(
            **wide,
            ig_scales=(),
            evaluation={
                "num_samples": 100,
                "curve_samples": 50,
                "shard_size": 100,
                "groups": 5,
                "kid_subset_size": 20,
            },
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        assert run_study(study, StudyOptions(parallel=1, yes=True), home, quiet()) == 0
        for seed, name in ((0, "tiny"), (1, "tinier")):
            other = tiny(train={"seed": seed}, name=name)
            assert run_experiment(other, home, quiet()) == 0
    return home


def quiet() -> Console:
    return make_console(file=io.StringIO())


class Ui:
    """`igdit ui` in a process of its own."""

    def __init__(self, home: Home, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.base = f"http://127.0.0.1:{probe.getsockname()[1]}"
        port = str(urlsplit(self.base).port)
        environment = {key: value for key, value in os.environ.items() if key not in OUTSIDE}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "pipelines", "ui", "--port", port],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environment, "IGDIT_HOME": str(home.root)},
            )
        self.log = log

    def pages(self) -> dict[str, str]:
        """Title -> address, as they are printed once the server answers."""
        printed = re.compile(r"^(.+)\n    (http\S+)$", re.MULTILINE)
        return wait_for(lambda: self._all(dict(printed.findall(self.log.read_text()))), LONG)

    def _all(self, pages: dict[str, str]) -> dict[str, str]:
        return pages if any(title.startswith("Runs measured as") for title in pages) else {}

    def close(self) -> None:
        processes = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            kill_tree(self.process.pid)
            for pid in processes:
                kill_tree(pid)


@pytest.fixture(scope="module")
def ui(home, tmp_path_factory):
    """The pages of `home`, served."""
    ui = Ui(home, tmp_path_factory.mktemp("ui") / "ui.log")
    yield ui
    ui.close()


@pytest.fixture
def look(browser, ui, tmp_path):
    """Factory: open an address; a screenshot is kept when the test is over."""
    folder = Path(os.environ.get("IGDIT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    opened, outside = [], []

    def watch(request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https") and address.hostname != "127.0.0.1":
            outside.append(request.url)

    def go(address: str, name: str, height: int = 1000):
        page = browser.new_page(viewport={"width": 1600, "height": height})
        page.set_default_timeout(1000 * LONG)
        # MLflow opens its assistant beside every first page.
        page.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        )
        page.on("request", watch)
        page.goto(address)
        opened.append((page, folder / f"{name}.png"))
        return page

    yield go
    for page, path in opened:
        page.screenshot(path=path, timeout=1000 * LONG)
        page.close()
    assert outside == []


def card(page, title: str):
    """The chart of that title."""
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    return cards.filter(has_text=title).first


def titled(pages: dict[str, str], words: str) -> str:
    return next(address for title, address in pages.items() if words in title)


@pytest.fixture
def trials(home):
    url = f"sqlite:///{home.root / 'study.db'}"
    (stored,) = read_studies(url, home.store)
    trials = stored.trials
    return sorted(trials, key=lambda t: (t.fid, t.number))


def test_the_addresses_are_printed_once_the_server_answers(ui):
    pages = ui.pages()
    name = comparison_name(Graph(tiny()))
    assert [title.partition(":")[0] for title in pages] == [
        "Study small",
        f"Runs measured as {name}",
    ]
    assert all(address.startswith(f"{ui.base}/#/") for address in pages.values())


def test_the_server_listens_on_loopback_only(ui):
    ui.pages()
    found = listeners([ui.process.pid, *descendants(ui.process.pid)])
    assert found
    assert all(is_loopback(address) for address in found)


def test_trials_are_curves_in_one_chart_and_lines_between_axes(ui, look, trials):
    page = look(titled(ui.pages(), "trials side by side"), "study")
    curves = card(page, "(fid_curve)")
    curves.locator(".scatterlayer .trace").first.wait_for()
    names = {
        f"L{t.point.aux_layer} w{t.point.aux_weight:g} s{t.point.ig_scale:g} #{t.number}"
        for t in trials
    }
    legend = curves.inner_text()
    assert {name for name in names if f"{name} (fid_curve)" in legend} == names
    assert "Step" in curves.locator("svg text").all_text_contents()

    axes = card(page, "Parallel Coordinates")
    axes.locator("svg text").first.wait_for()
    texts = axes.locator("svg text").all_text_contents()
    assert [text for text in texts if text in AXES] == AXES

    for param in ("ig_scale", "aux_weight"):
        text = card(page, f"{param} vs. fid")
        text.locator(".scatterlayer .trace").first.wait_for()


def test_sample_sheets_are_side_by_side(ui, look, trials):
    page = look(titled(ui.pages(), "trials side by side"), "samples", 1300)
    header = page.get_by_test_id("experiment-view-compare-runs-section-header")
    header.filter(has_text="Samples").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "count => [...document.images].filter(i => i.naturalWidth > 100).length >= count",
        arg=TRIALS,
    )
    sources = page.evaluate("[...document.images].map(i => i.src)")
    assert sum("samples%2Bstep%2B90" in source for source in sources) == TRIALS
    text = page.get_by_test_id("experiment-view-compare-runs-card").last.inner_text()
    best = trials[0].point
    assert f"aux_layer={best.aux_layer}, aux_weight={best.aux_weight}" in text
    header.filter(has_text="Model metrics").first.scroll_into_view_if_needed()


def test_the_table_has_the_best_trial_first(ui, look, trials):
    address = titled(ui.pages(), "trials side by side")
    page = look(address.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"), "table")
    rows = page.locator(".ag-center-cols-container .ag-row, .ag-pinned-left-cols-container .ag-row")
    rows.first.wait_for()
    text = page.locator("body").inner_text()
    for name in ("fid", "fid_low", "fid_high", "aux_layer", "aux_weight", "ig_scale"):
        assert name in text
    places = [text.index(f"#{trial.number}\n") for trial in trials]
    assert places == sorted(places)
    assert f"{TRIALS}\n matching runs" in text or f"{TRIALS} matching runs" in text


def test_parallel_coordinates_show_each_trials_own_number(home, ui, look, trials):
    """Not that of the curve, which all trials of a training share."""
    page = look(titled(ui.pages(), "trials side by side"), "axes")
    axes = card(page, "Parallel Coordinates")
    axes.locator("svg text").first.wait_for()
    client = import_mlflow().MlflowClient(tracking_uri=home.tracking_uri)
    for trial in trials:
        experiment = client.get_experiment_by_name("study-small")
        (run,) = client.search_runs(
            [experiment.experiment_id], f"tags.`igdit.trial` = '{trial.number}'"
        )
        assert run.data.metrics["fid"] == trial.fid
    assert [t for t in axes.locator("svg text").all_text_contents() if t in AXES][-1] == "fid"


def test_runs_that_share_data_and_protocol_are_compared_in_one_view(ui, look):
    page = look(titled(ui.pages(), "Runs measured as"), "experiment", 1900)
    for title in ("fid_curve vs fid_curve_unguided", "fid_by_ig_scale_x100", "loss_total"):
        curves = card(page, title)
        curves.locator(".scatterlayer .trace").first.wait_for()
        assert curves.inner_text().splitlines()[0] == title
    by_scale = card(page, "fid_by_ig_scale_x100").locator("svg text").all_text_contents()
    assert "ig_scale_axis" in by_scale
    assert "Step" not in by_scale
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    own = cards.filter(has=page.get_by_text("fid", exact=True)).first
    own.locator(".barlayer .trace").first.wait_for()
    body = page.locator("body").inner_text()
    assert "2 matching runs" in body.replace("\n", " ").replace("  ", " ")
    differences = card(page, "Show differences only")
    differences.get_by_text("experiment").first.wait_for()
    assert {"tiny", "tinier"} <= set(differences.inner_text().split())
