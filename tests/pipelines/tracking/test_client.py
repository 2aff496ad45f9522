from __future__ import annotations

import dataclasses
import io
import json
import threading
from pathlib import Path

import pytest

from experiments import experiment_to_json
from ig_core.config import Guidance
from pipelines.commands.run import run_experiment
from pipelines.common.revision import code_commit, split_commit
from pipelines.console.console import make_console
from pipelines.graph.graph import Graph
from pipelines.results.measurements import Results, collect, preview
from pipelines.store.home import Home
from pipelines.tracking.background import BackgroundSync
from pipelines.tracking.client import MlflowTracker, import_mlflow
from pipelines.tracking.metrics import (
    comparable_parameters,
    comparison_name,
    metric_values,
    scale_step,
)
from tests.equipment.shown import client, database, shown
from tests.pipelines.conftest import run_inline, tiny
from tests.pipelines.results.test_measurements import made_up, spread

GUIDED = Guidance(ig_scale=1.5)
"""The guidance of `tiny()`."""

NAME = f"tiny {Graph(tiny()).run_key[:8]}"
"""Of an experiment that is not in the registry, so that it is not known what differs."""


def tracker(folder: Path) -> MlflowTracker:
    return MlflowTracker(database(folder), folder / "mlartifacts")


@pytest.fixture
def results(finished) -> Results:
    return collect(finished.home.store, finished.graph)


@pytest.fixture(scope="module")
def page(finished) -> dict:
    """What the finished run shows."""
    runs = shown(finished.home.root)
    assert list(runs) == [NAME]
    return runs[NAME]


# What a run shows


def test_the_run_is_finished_and_names_its_origin(page, finished):
    assert page["experiment"] == comparison_name(finished.graph)
    assert page["experiment"].startswith("digits ")
    assert page["status"] == "FINISHED"
    assert page["source"] == "igdit run experiment.json"
    git = {name: value for name, value in page["tags"].items() if name.startswith("igdit.git.")}
    commit, dirty = split_commit(code_commit())
    assert git == (
        {"igdit.git.commit": commit, "igdit.git.dirty": "yes" if dirty else "no"} if commit else {}
    )
    assert {name: value for name, value in page["tags"].items() if name not in git} == {
        "igdit.run_key": finished.graph.run_key,
        "igdit.store": str(finished.home.store.root),
        "igdit.data": f"data/{finished.graph.data.key}",
        "igdit.trajectory": finished.graph.checkpoint(0).hash,
    }


def test_parameters_are_what_a_person_compares(page, results):
    fingerprint = results.baseline.fingerprint
    assert page["params"] == {
        "experiment": "tiny",
        "aux_layer": "1",
        "aux_weight": "0.5",
        "ig_scale": "1.5",
        "ig_interval": "0 .. 1",
        "cfg_scale": "1.0",
        "cfg_interval": "0 .. 1",
        "codec": "none",
        "target_guidance": "0.0",
        "optimizer": "adamw",
        "precision": "float32",
        "model": "sit 2x16/2",
        "lr": "0.003",
        "ema_decay": "0.99",
        "batch_size": "16",
        "steps": "20",
        "seed": "0",
        "sampler": "euler-2",
        "num_samples": "200",
        "protocol": f"custom {fingerprint.id}",
        "checkpoint": "trained here",
    }


def test_every_run_has_the_same_parameters(results, tmp_path):
    plain = tiny(model={"aux_layer": None}, guidance=Guidance(), ig_scales=())
    other = collect(results.store, Graph(plain))
    assert list(comparable_parameters(other)) == list(comparable_parameters(results))


def test_the_curve_has_a_name_of_its_own(page, results):
    expected = {
        key: [(step, m.fid) for step, m in results.curve_of(guidance).items()]
        for key, guidance in (("fid_curve", GUIDED), ("fid_curve_unguided", Guidance()))
    }
    for key, curve in expected.items():
        assert [(step, value) for step, value, _ in page["metrics"][key]] == curve


def test_fid_by_scale_has_a_hundred_steps_for_each_unit_and_an_axis(page, results):
    curve = [(step, value) for step, value, _ in page["metrics"]["fid_by_ig_scale_x100"]]
    assert curve == [(100, results.baseline.fid), (150, results.headline().fid)]
    axis = [(step, value) for step, value, _ in page["metrics"]["ig_scale_axis"]]
    assert axis == [(100, 1.0), (150, 1.5)]
    chart = next(
        c
        for c in json.loads(page["views"]["mlflow.sharedViewState.igdit"])["compareRunCharts"]
        if c.get("metricKey") == "fid_by_ig_scale_x100"
    )
    assert (chart["xAxisKey"], chart["selectedXAxisMetricKey"]) == ("metric", "ig_scale_axis")


def test_close_scales_have_steps_of_their_own_and_others_keep_theirs():
    hundredths = range(-200, 1000)
    assert [scale_step(number / 100) for number in hundredths] == list(hundredths)
    made = made_up(s1=spread(9.0), s1_001=spread(8.5), s1_005=spread(8.0), s1_5=spread(7.0))
    final = {
        guidance: dataclasses.replace(
            m, artifact=dataclasses.replace(m.artifact, manifest={"created": 1.0})
        )
        for guidance, m in made.final.items()
    }
    found = list(metric_values(dataclasses.replace(made, final=final)))
    axis = {v.step: v.value for v in found if v.key == "ig_scale_axis"}
    curve = {v.step: v.value for v in found if v.key == "fid_by_ig_scale_x100"}
    shown = [(axis[step], fid) for step, fid in curve.items()]
    assert shown == [(1.0, 9.0), (1.001, 8.5), (1.005, 8.0), (1.5, 7.0)]
    assert {axis[100], axis[150]} == {1.0, 1.5}


def test_what_was_chosen_is_shown_at_its_training_step_with_its_scale(page, results):
    m = results.chosen_holdout().measurement
    for key, value in (("fid_report", m.fid), ("ig_scale_report", m.guidance.ig_scale)):
        assert [(step, found) for step, found, _ in page["metrics"][key]] == [(20, value)]


def test_headline_numbers_are_those_of_the_experiments_own_scale(page, results):
    headline = results.headline().metrics
    for key, source in (
        ("fid", "fid"),
        ("fid_low", "fid_low"),
        ("fid_high", "fid_high"),
        ("kid", "kid"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("inception_score", "inception_score"),
    ):
        assert [(step, value) for step, value, _ in page["metrics"][key]] == [
            (20, pytest.approx(headline[source], abs=1e-12))
        ]


def test_losses_and_throughput_are_shown_by_step(page, results):
    history = results.history()
    for column in ("total", "final", "aux"):
        found = page["metrics"][f"loss_{column}"]
        assert [step for step, _, _ in found] == list(range(1, 21))
        assert [value for _, value, _ in found] == pytest.approx(list(history[column]))
    assert [step for step, _, _ in page["metrics"]["train_steps_per_second"]] == [10, 20]
    assert all(value > 0 for _, value, _ in page["metrics"]["train_steps_per_second"])


def test_time_stamps_are_those_of_the_artifacts(page, results):
    for (_, _, stamp), m in zip(
        page["metrics"]["fid_by_ig_scale_x100"], results.final.values(), strict=True
    ):
        assert stamp == round(1000 * m.artifact.manifest["created"])


def test_sample_grids_and_the_report_are_attached(page, results):
    assert page["files"] == sorted(
        [
            "experiment.json",
            "report.html",
            "results.csv",
            "fid_curve.png",
            "fid_by_ig_scale.png",
            "samples.png",
            *(
                f"grids/step-{step:08d}-ig-{scale}.png"
                for step in (10, 20)
                for scale in ("1", "1.5")
            ),
            *(image(m, end) for m in results.curve_of(GUIDED).values() for end in IMAGE_ENDS),
        ]
    )


IMAGE_ENDS = (".png", "+compressed.webp")


def image(m, end: str) -> str:
    """Where MLflow looks for an image by step."""
    stamp = round(1000 * m.artifact.manifest["created"])
    return f"images/samples+step+{m.point.step}+timestamp+{stamp}+{m.artifact.ref.key}{end}"


def test_a_grid_is_the_contact_sheet_of_its_samples(finished, results, tmp_path):
    api = client(finished.home.root)
    experiment = api.get_experiment_by_name(comparison_name(finished.graph))
    (run,) = api.search_runs([experiment.experiment_id])
    local = api.download_artifacts(run.info.run_id, "grids/step-00000010-ig-1.5.png", str(tmp_path))
    assert Path(local).read_bytes() == preview(results, results.curve[10, GUIDED]).read_bytes()


def test_checkpoints_can_be_found_by_their_fid(page, results):
    """The models, best first."""
    guided = sorted(results.curve_of(GUIDED).values(), key=lambda m: m.fid)
    assert len(page["models"]) == page["outputs"] == 2
    for model, m in zip(page["models"], guided, strict=True):
        node = results.graph.checkpoint(m.point.step)
        name, status, key, uri, params, metrics = model
        assert name == f"step-{m.point.step}"
        assert "READY" in status
        assert key == node.key
        assert uri == (results.store.root / "checkpoint" / node.key).as_uri()
        assert params == {"step": str(m.point.step), "ig_scale": "1.5"}
        assert metrics == [("fid_curve", m.fid, m.point.step)]


def test_the_address_of_the_page_is_that_of_the_run(finished, results):
    api = client(finished.home.root)
    experiment = api.get_experiment_by_name(comparison_name(finished.graph))
    (run,) = api.search_runs([experiment.experiment_id])
    address = f"#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert address in finished.output


def test_a_long_history_is_thinned_at_steps_that_stay(results, monkeypatch):
    """With 3 points for 20 steps each is a mean of 6; steps 19 and 20 wait for more."""
    monkeypatch.setattr("pipelines.tracking.metrics.LOSS_POINTS", 3)
    found = [v for v in metric_values(results) if v.key == "loss_total"]
    total = results.history()["total"].to_numpy()
    assert [v.step for v in found] == [6, 12, 18]
    assert [v.value for v in found] == pytest.approx([total[i : i + 6].mean() for i in (0, 6, 12)])


def test_throughput_counts_the_steps_that_the_seconds_were_spent_on(store):
    """Steps 10 and 20 are of the first run; those between were made in one go from 0."""
    finer = tiny(train={"checkpoint_every": 5})
    graph = run_inline(store, finer, Graph(finer).checkpoints)
    values = metric_values(collect(store, graph))
    rates = {v.step: v.value for v in values if v.key == "train_steps_per_second"}
    spent = {5: 5, 10: 10, 15: 10, 20: 10}
    for node in graph.checkpoints:
        step, artifact = node.step, store.find(node.ref)
        assert rates[step] == pytest.approx(spent[step] / max(artifact.seconds, 1e-3))


# Nothing doubles, everything can be made again


def test_syncing_twice_changes_nothing(results, tmp_path):
    one = tracker(tmp_path)
    address = one.sync(results, finished=True)
    before = shown(tmp_path)
    assert one.sync(results, finished=True) == address
    assert tracker(tmp_path).sync(results, finished=True) == address
    assert shown(tmp_path) == before


def test_an_empty_database_comes_to_show_the_same(results, page, finished, tmp_path):
    report = sorted((finished.home.report / f"tiny-{finished.graph.run_key[:8]}").iterdir())
    tracker(tmp_path).sync(results, report, finished=True)
    (again,) = shown(tmp_path).values()
    assert again == page


def test_a_run_that_is_synced_in_pieces_comes_to_show_the_same(store, results, finished, tmp_path):
    points = [p for p in finished.graph.curve.values() if p.step == 20]
    last = [p.evaluate for p in (*points, *finished.graph.final.values())]
    later = {node: store.root / str(node.ref) for node in last}
    newest = finished.graph.checkpoints[-1]
    later[newest] = store.root / str(newest.ref)
    for path in later.values():
        path.rename(path.with_suffix(".later"))
    one = tracker(tmp_path)
    one.sync(collect(store, finished.graph), finished=False)
    (half,) = shown(tmp_path).values()
    assert half["status"] == "RUNNING"
    assert [step for step, _, _ in half["metrics"]["fid_curve"]] == [10]
    for path in later.values():
        path.with_suffix(".later").rename(path)
    one.sync(collect(store, finished.graph), finished=True)
    (whole,) = shown(tmp_path).values()

    (tmp_path / "at once").mkdir()
    tracker(tmp_path / "at once").sync(collect(store, finished.graph), finished=True)
    (at_once,) = shown(tmp_path / "at once").values()
    assert whole == at_once


CHANGES = [
    "create_experiment",
    "create_run",
    "log_batch",
    "create_logged_model",
    "log_metric",
    "log_outputs",
    "finalize_logged_model",
    "log_artifact",
    "set_terminated",
    "set_tag",
    "set_experiment_tag",
]


@pytest.mark.parametrize("after", [False, True])
def test_a_sync_that_broke_off_anywhere_is_completed_by_the_next(results, tmp_path, after):
    """Each kind of call to the server fails once, before or after it had its effect."""
    one, to_fail = tracker(tmp_path), set(CHANGES)

    def breaking(name, real):
        def call(*arguments, **options):
            if name not in to_fail:
                return real(*arguments, **options)
            to_fail.remove(name)
            if after:
                real(*arguments, **options)
            raise ConnectionError(name)

        return call

    for name in CHANGES:
        setattr(one.client, name, breaking(name, getattr(one.client, name)))
    while to_fail:
        with pytest.raises(ConnectionError):
            one.sync(results, finished=True)
    one.sync(results, finished=True)
    (mended,) = shown(tmp_path).values()

    (tmp_path / "smooth").mkdir()
    tracker(tmp_path / "smooth").sync(results, finished=True)
    (smooth,) = shown(tmp_path / "smooth").values()
    assert mended == smooth


def test_another_experiment_of_the_same_name_is_another_run(results, store, tmp_path):
    one = tracker(tmp_path)
    one.sync(results, finished=True)
    other = Graph(tiny(ig_scales=(2.5,)))
    one.sync(collect(store, other), finished=False)
    found = shown(tmp_path)
    assert {name: run["status"] for name, run in found.items()} == {
        NAME: "FINISHED",
        f"tiny {other.run_key[:8]}": "RUNNING",
    }
    assert {run["experiment"] for run in found.values()} == {comparison_name(results.graph)}


def test_what_was_built_again_later_is_not_logged_again(store, finished, tmp_path):
    """It has another time stamp, which to MLflow is another point."""
    one = tracker(tmp_path)
    one.sync(collect(store, finished.graph), finished=True)
    before = shown(tmp_path)
    for node in (finished.graph.baseline.evaluate, finished.graph.curve[10, GUIDED].evaluate):
        store.quarantine(node.ref)
    run_inline(store, tiny())
    one.sync(collect(store, finished.graph), finished=True)
    assert shown(tmp_path) == before


def test_other_resources_are_the_same_run(results, tmp_path):
    one = tracker(tmp_path)
    address = one.sync(results, finished=True)
    experiment = dataclasses.replace(
        results.experiment,
        resources=dataclasses.replace(results.experiment.resources, sample_batch=7),
    )
    assert one.sync(collect(results.store, Graph(experiment)), finished=True) == address
    assert len(shown(tmp_path)) == 1


SYNC = """
import sys
from pathlib import Path
from experiments import experiment_from_json
from pipelines.store.folder import FolderStore
from pipelines.graph.graph import Graph
from pipelines.results.measurements import collect
from pipelines.tracking.client import MlflowTracker, import_mlflow
import_mlflow()
store, folder = FolderStore(sys.argv[1]), Path(sys.argv[2])
graph = Graph(experiment_from_json(Path(sys.argv[3]).read_text()))
print("ready")
input()
tracker = MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", folder / "mlartifacts")
tracker.sync(collect(store, graph), finished=True)
print("done")
"""


def test_two_processes_that_start_an_empty_database_make_one_run(
    finished, results, tmp_path, child
):
    experiment = tmp_path / "experiment.json"
    experiment.write_text(experiment_to_json(finished.experiment))
    others = [child(SYNC, finished.home.store.root, tmp_path, experiment) for _ in range(2)]
    assert [other.read() for other in others] == ["ready"] * 2
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["done"] * 2
    (page,) = shown(tmp_path).values()
    assert len(page["metrics"]["fid_curve"]) == 2
    assert len(page["models"]) == 2


# Tracking never stands in the way


LONG = 60.0


def test_a_background_sync_that_failed_says_so_and_is_tried_again(caplog):
    calls, again = [], threading.Event()

    def sync():
        calls.append(True)
        if len(calls) == 1:
            raise ConnectionError("no such server")
        again.set()

    background = BackgroundSync(sync, pause_seconds=0.0)
    background.request()
    assert again.wait(LONG)
    background.close(LONG)
    assert "no such server" in caplog.text


class Held:
    """A sync that waits until it is let go; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.started, self.free = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.started.set()
        self.free.wait(LONG)


def test_requests_made_during_a_sync_are_one_more_sync():
    sync = Held()
    background = BackgroundSync(sync, pause_seconds=LONG)
    background.request()
    assert sync.started.wait(LONG)
    for _ in range(5):
        background.request()
    background.close(0.01)
    assert sync.calls == 1
    sync.free.set()
    background.close(LONG)
    assert sync.calls == 2


def test_closing_waits_no_longer_than_it_is_told_for_a_sync_that_hangs():
    sync = Held()
    background = BackgroundSync(sync, pause_seconds=0.0)
    background.request()
    assert sync.started.wait(LONG)
    background.close(0.01)
    assert (sync.calls, sync.free.is_set()) == (1, False)
    sync.free.set()
    background.close(LONG)


def test_a_background_sync_without_requests_does_nothing_and_ends():
    calls = []
    background = BackgroundSync(lambda: calls.append(True))
    background.close(LONG)
    assert calls == []


NOWHERE = "http://127.0.0.1:1"
"""A port on which nothing listens."""


def test_a_run_without_its_tracking_server_ends_well_with_a_warning(
    store, tmp_path, monkeypatch, finished
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    node, screen = finished.graph.headline.evaluate, io.StringIO()
    store.quarantine(node.ref)
    home = Home(tmp_path / "home")
    assert run_experiment(tiny(), home, make_console(file=screen, width=300)) == 0
    assert store.find(node.ref) is not None
    assert f"MLflow at {NOWHERE} could not be updated" in screen.getvalue()
    assert "Plots, samples and table" in screen.getvalue()
    assert "Compare in MLflow" not in screen.getvalue()
    assert not (home.root / "mlflow.db").exists()


def test_a_tracking_server_that_is_not_there_is_given_up_soon(monkeypatch):
    """MLflow's own default is seven retries, each after twice the time: four minutes."""
    import_mlflow()
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() <= 2


def test_what_the_server_missed_is_logged_by_the_next_run(store, tmp_path, monkeypatch, page):
    home, screen = Home(tmp_path / "home"), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "sync", lambda *_, **__: 1 / 0)
        assert run_experiment(tiny(), home, make_console(file=screen, width=300)) == 0
    assert "could not be updated" in screen.getvalue()
    assert run_experiment(tiny(), home, make_console(file=io.StringIO())) == 0
    (again,) = shown(home.root).values()
    assert again["metrics"] == page["metrics"]
    assert again["files"] == page["files"]
