from __future__ import annotations

import io

import pytest

from pipelines.commands.run import _all_missing, run_experiment
from pipelines.console import progress
from pipelines.console.console import make_console
from pipelines.console.progress import ProgressDisplay
from pipelines.graph.graph import Graph
from pipelines.stages.jobs import TrainProgress
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from tests.equipment.processes import wait_for
from tests.pipelines.conftest import tiny


def display(tmp_path, *, width: int = 200, terminal: bool = False) -> ProgressDisplay:
    """A display of `tiny`, of which all is missing but the data."""
    console = make_console(file=io.StringIO(), width=width, terminal=terminal, styled=False)
    graph, store = Graph(tiny()), FolderStore(tmp_path / "store")
    shown = ProgressDisplay(console, store, graph, lambda: None)
    shown.expect(n for n in _all_missing(graph, graph.targets, store) if n.stage != "data")
    return shown


def bar(shown: ProgressDisplay) -> str:
    screen = make_console(file=io.StringIO(), width=shown.console.width, styled=False)
    screen.print(shown.live.bar())
    return screen.file.getvalue()


def test_it_says_what_runs_now_and_not_what_is_finished(tmp_path):
    shown = display(tmp_path)
    assert "starting" in bar(shown)
    assert "time left unknown" in bar(shown)
    point = next(iter(shown.graph.curve.values()))
    shown.on_started([shown.graph.checkpoint(20)])
    assert "starting the training" in bar(shown)
    shown.on_training(TrainProgress(10, 20, 0.004, 0.05))
    assert "training step 10 of 20, loss 0.004000, 0.050 steps/s" in bar(shown)
    assert "left" in bar(shown)
    assert "unknown" not in bar(shown)
    shown.on_started(point.images)
    assert "; sampling (step 10, scale 1" in bar(shown)
    for node in point.images:
        shown.on_finished(node, 1, 2)
    assert "sampling" not in bar(shown)
    shown.on_waiting(point.evaluate)
    assert f"waiting for evaluate/{point.evaluate.key}" in bar(shown)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_nothing_of_it_is_cut_on_a_narrow_screen(tmp_path, width):
    shown = display(tmp_path, width=width, terminal=True)
    shown.on_training(TrainProgress(10, 20, 0.6, 5.0))
    text = bar(shown)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert " ".join(text.split()).endswith("training step 10 of 20, loss 0.6000, 5.0 steps/s")
    assert "elapsed" in " ".join(text.split())


def test_the_measurement_of_the_chosen_scale_is_expected_from_the_beginning(tmp_path):
    graph, store = Graph(tiny()), FolderStore(tmp_path / "store")
    guidance = tiny().guidance
    missing = _all_missing(graph, graph.targets, store)
    assert set(missing) >= {p.evaluate for p in graph.holdout(guidance).values()}
    alone = Graph(tiny(ig_scales=()))
    one = [next(iter(alone.curve.values())).evaluate]
    holdout = {p.evaluate for p in alone.holdout(guidance).values()}
    assert not set(_all_missing(alone, one, store)) & holdout


def test_without_a_terminal_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.02)
    shown = display(tmp_path)
    with shown:
        shown.on_training(TrainProgress(10, 20, 0.6, 5.0))
        beats = wait_for(
            lambda: [
                line
                for line in shown.console.file.getvalue().splitlines()
                if "training step 10 of 20" in line
            ],
            10,
        )
    assert beats[0].startswith("progress  ")
    assert " %  0:" in beats[0]
    assert " left  0:00 elapsed: training step" in beats[0]


def test_a_terminal_has_a_bar_and_no_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.02)
    screen = io.StringIO()
    console = make_console(file=screen, width=100, terminal=True, styled=False)
    experiment = tiny(resources={"runner": "inline", "num_workers": 1})
    assert run_experiment(experiment, Home(tmp_path), console) == 0
    text = screen.getvalue()
    assert "progress  " not in text
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in text
