from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import experiment_from_json
from pipelines.graph.graph import Graph
from pipelines.reports.plots import GUIDED, UNGUIDED, write_report
from pipelines.results.measurements import collect
from pipelines.store.folder import FolderStore
from tests.pipelines.conftest import run_inline, tiny

PLOTS = ("fid_curve.png", "fid_by_ig_scale.png", "samples.png")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"), dtype=float)


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "new" / "folder"
    return directory, write_report(collect(finished.home.store, finished.graph), directory)


def test_all_files_are_written_and_returned(report):
    directory, files = report
    assert {path.name for path in files} == {"experiment.json", "results.csv", *PLOTS}
    assert set(files) == set(directory.iterdir())


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_a_picture_of_sensible_size_that_is_not_blank(report, name):
    picture = pixels(report[0] / name)
    height, width = picture.shape
    assert 400 <= height <= 1200
    assert 600 <= width <= 2400
    assert picture.std() > 10
    # Something is drawn in every quarter.
    for half in (picture[: height // 2], picture[height // 2 :]):
        assert half[:, : width // 2].std() > 1
        assert half[:, width // 2 :].std() > 1


def coloured(path: Path, colour: str) -> int:
    """Pixels of a plot that have exactly this colour."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    return int((rgb == tuple(bytes.fromhex(colour[1:]))).all(axis=-1).sum())


@pytest.mark.parametrize("name", PLOTS[:2])
def test_the_curves_are_there_guided_and_unguided(finished, tmp_path, name):
    """The FIDs of the tiny run differ too little to be seen apart: here the unguided are twice."""
    results = collect(finished.home.store, finished.graph)

    def apart(points):
        doubled = ("fid", "fid_low", "fid_high")
        return {
            key: dataclasses.replace(
                m, metrics={k: 2 * v if k in doubled else v for k, v in m.metrics.items()}
            )
            if m.guidance.ig_scale == 1
            else m
            for key, m in points.items()
        }

    made = dataclasses.replace(results, curve=apart(results.curve), final=apart(results.final))
    write_report(made, tmp_path)
    assert coloured(tmp_path / name, GUIDED) > 100
    assert coloured(tmp_path / name, UNGUIDED) > 100


def test_the_samples_show_digits_in_black_on_white(report):
    picture = pixels(report[0] / "samples.png")
    assert picture.min() < 30
    assert (picture > 225).mean() > 0.3


def test_the_table_has_all_measurements(report, finished):
    with (report[0] / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    results = collect(finished.home.store, finished.graph)
    assert [float(row["fid"]) for row in table] == [m.fid for m in results.measurements]
    assert {row["part"] for row in table} == {"curve", "final", "holdout"}


def test_the_experiment_beside_the_report_is_the_one_that_was_run(report, finished):
    text = (report[0] / "experiment.json").read_text()
    assert experiment_from_json(text) == finished.experiment


def test_writing_again_replaces_the_files(report, finished, tmp_path):
    results = collect(finished.home.store, finished.graph)
    first = write_report(results, tmp_path)
    before = {path: path.read_bytes() for path in first}
    assert write_report(results, tmp_path) == first
    assert {path: path.read_bytes() for path in first} == before


def test_a_run_that_has_measured_nothing_yet_has_no_plots(tmp_path):
    results = collect(FolderStore(tmp_path / "store"), Graph(tiny()))
    files = write_report(results, tmp_path / "report")
    assert {path.name for path in files} == {"experiment.json", "results.csv"}


def test_a_run_without_the_comparison_yet_has_the_curve(store, finished, tmp_path):
    for point in finished.graph.final.values():
        store.quarantine(point.evaluate.ref)
    files = write_report(collect(store, finished.graph), tmp_path / "report")
    assert {path.name for path in files} == {"experiment.json", "results.csv", "fid_curve.png"}


def test_without_guidance_there_is_one_panel_beside_the_real_images(store, tmp_path):
    guidance = dataclasses.replace(tiny().guidance, ig_scale=1.0)
    unguided = tiny(guidance=guidance, ig_scales=())
    run_inline(store, unguided)  # everything is there
    files = write_report(collect(store, Graph(unguided)), tmp_path / "report")
    assert {path.name for path in files} >= set(PLOTS)
    assert pixels(tmp_path / "report" / "samples.png").std() > 10


def test_a_negative_fid_in_an_interval_does_not_stop_the_plot(finished, tmp_path):
    """Intervals of few samples may reach below zero, where a logarithmic axis has no place."""
    results = collect(finished.home.store, finished.graph)
    below = {"fid": 1.0, "fid_low": -2.0, "fid_high": 4.0}
    curve = {
        key: dataclasses.replace(m, metrics=m.metrics | below) for key, m in results.curve.items()
    }
    write_report(dataclasses.replace(results, curve=curve), tmp_path / "report")
    assert pixels(tmp_path / "report" / "fid_curve.png").std() > 10


@pytest.mark.parametrize("labels", ["balanced", "random"])
def test_shards_too_small_to_hold_every_class_still_make_a_report(store, tmp_path, labels):
    small = tiny(
        train={"steps": 10},
        evaluation={
            "num_samples": 20,
            "curve_samples": 20,
            "shard_size": 7,
            "groups": 5,
            "labels": labels,
        },
    )
    run_inline(store, small)
    write_report(collect(store, Graph(small)), tmp_path / "report")
    assert pixels(tmp_path / "report" / "samples.png").std() > 10
