from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from experiments import get_experiment
from pipelines.__main__ import main
from pipelines.commands.report import find_run, report_run
from pipelines.graph.graph import Graph
from pipelines.store.home import Home
from pipelines.store.register import Record, remember
from tests.pipelines.conftest import damage, tiny
from tests.pipelines.reports.test_html import stands_alone


@pytest.fixture
def home(store) -> Home:
    return Home(store.root.parent)


def recorded(home: Home, experiment, *, age: float = 0.0, study: bool = False) -> str:
    """Record a run; returns its key."""
    key = Graph(experiment).run_key
    record = (
        Record.of_study("s", "5e", experiment, key) if study else Record.of_run(experiment, key)
    )
    remember(home.store, record)
    os.utime(home.store.root / ".runs" / record.file, (1e9 - age, 1e9 - age))
    return key


def test_a_name_the_first_digits_and_nothing_mean_the_recorded_run(home, finished):
    for word in ("tiny", finished.graph.run_key[:6], None):
        assert find_run(home, word) == finished.experiment


def test_a_name_means_the_newest_run_unless_the_very_experiment_was_run(home):
    digits = get_experiment("digits")
    variant = dataclasses.replace(digits, ig_scales=(2.0,))
    recorded(home, variant, age=10)
    assert find_run(home, "digits", digits) == variant
    recorded(home, dataclasses.replace(digits, ig_scales=(2.5,)), age=5)
    assert find_run(home, "digits", digits).ig_scales == (2.5,)
    recorded(home, digits, age=50)
    assert find_run(home, "digits", digits) == digits


def test_what_was_run_for_itself_goes_before_parts_of_a_study(home):
    own, part = tiny(ig_scales=(2.0,)), tiny(ig_scales=(2.5,))
    recorded(home, own, age=-2e9)
    recorded(home, part, age=-3e9, study=True)
    assert find_run(home, "tiny") == own


def test_digits_that_fit_several_runs_are_refused(home):
    for scale in range(2, 20):
        recorded(home, tiny(ig_scales=(float(scale),)))
    with pytest.raises(ValueError, match="matches several runs"):
        find_run(home, "")


def test_an_unknown_name_lists_the_runs(home, finished):
    with pytest.raises(ValueError, match=rf"tiny {finished.graph.run_key[:8]}.*'nope'"):
        find_run(home, "nope")


def test_the_page_lies_in_the_runs_report_folder(home, finished):
    path = report_run(home, finished.experiment)
    assert path == home.report / f"tiny-{finished.graph.run_key[:8]}" / "report.html"
    stands_alone(path.read_text())


def test_a_run_of_which_nothing_is_measured_has_no_page(home, tmp_path):
    with pytest.raises(ValueError, match="nothing of experiment tiny"):
        report_run(home, tiny(train={"seed": 9}))
    with pytest.raises(ValueError, match="nothing of experiment tiny"):
        report_run(Home(tmp_path / "none"), tiny())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words", [[], ["tiny"], ["FILE"], ["FILE", "--resources.sample-tasks", "3"]]
)
def test_the_command_prints_the_path(words, home, finished, capsys):
    file = finished.home.report / f"tiny-{finished.graph.run_key[:8]}" / "experiment.json"
    assert main(["report", *(str(file) if word == "FILE" else word for word in words)]) == 0
    path = capsys.readouterr().out.strip()
    assert path.startswith(str(home.report))
    stands_alone(Path(path).read_text())


def test_damage_is_explained(home, finished, capsys):
    node = finished.graph.baseline.evaluate
    damage(home.store.root / str(node.ref) / "metrics.json")
    assert main(["report", "tiny"]) == 1
    assert "is damaged" in capsys.readouterr().err
