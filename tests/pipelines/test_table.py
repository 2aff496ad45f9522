"""Tables: our numbers beside published ones, and never more said than is true."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.published import Published, PublishedProtocol
from experiments.tables import TABLES, TableRow
from pipelines.cli import main
from pipelines.cli_results import TableOptions
from pipelines.graph import Graph
from pipelines.home import Home
from pipelines.pinned import resolve
from pipelines.table import among_ours, fill, fits
from pipelines.table_command import show_table
from pipelines.table_tracking import track_table
from pipelines.tracking import MlflowTracker
from tests.pipelines.conftest import tiny

PUBLISHED = Published(method="tiny", epochs=1, fid=100.0, inception_score=2.0)


def rows():
    """Rows that the finished run of `tiny()` can fill, and one that nothing fills."""
    base = tiny()
    return (
        TableRow(name="others", published=PUBLISHED),
        TableRow(name="plain", published=PUBLISHED, experiment=base, scale=1.0),
        TableRow(name="guided", published=PUBLISHED, experiment=base, scale=1.5),
        TableRow(name="swept", published=PUBLISHED, experiment=base, note="chosen by us"),
        TableRow(name="longer", published=PUBLISHED, scale=1.0,
                 experiment=tiny(train={"steps": 40})),
    )  # fmt: skip


def test_what_is_there_fills_the_rows_and_the_rest_was_not_run(finished):
    lines = {line.row.name: line for line in fill(rows(), finished.home.store, {})}
    assert {name: line.state for name, line in lines.items()} == {
        "others": "published alone", "plain": "not compared", "guided": "not compared",
        "swept": "not compared", "longer": "not run",
    }  # fmt: skip
    from pipelines.results import collect

    results = collect(finished.home.store, finished.graph)
    assert lines["plain"].measured.fid == results.headline(1.0).fid
    assert lines["guided"].measured.fid == results.headline(1.5).fid
    assert lines["swept"].measured.fid == results.reported().measurement.fid
    assert lines["swept"].measured.point.images[0].config["seed"] == 1


def test_numbers_of_other_protocols_are_not_subtracted_and_it_is_said_why(finished):
    line = fill(rows(), finished.home.store, {})[1]
    assert line.difference is None
    text = "; ".join(line.obstacles)
    for words in ("200 samples, published with 50,000", "balanced labels", "digits-cnn",
                  "reference: the training images"):  # fmt: skip
        assert words in text
    assert any("pixels" in difference for difference in line.differences)


def test_a_protocol_that_agrees_in_words_but_not_to_the_letter_is_not_compared(
    finished, tmp_path
):  # fmt: skip
    alike = PublishedProtocol(num_samples=200, labels="balanced")
    line = fill([replace(rows()[1], protocol=alike)], finished.home.store, {})[0]
    assert line.difference is None
    assert not any("samples, published" in text for text in line.obstacles)


@pytest.mark.parametrize(
    "change",
    [{"train": {"seed": 1}}, {"optim": {"lr": 1.0}}, {"sampler": {"num_steps": 3}},
     {"loss": {"aux_weight": 0.1}}, {"guidance": {"cfg_scale": 2.0}},
     {"guidance": {"ig_interval": (0.2, 0.9)}}],
)  # fmt: skip
def test_a_run_of_other_settings_is_not_the_rows(change):
    row = rows()[2]
    assert fits(row, tiny(ig_scales=(1.5, 3.0), name="another"))
    assert not fits(row, tiny(**change))


def test_a_published_checkpoint_stands_for_the_rows_that_name_it():
    row = replace(rows()[2], checkpoints=("ab" * 32,))
    named = {"from_checkpoint": "/somewhere.pt", "checkpoint_sha256": "ab" * 32}
    assert fits(row, tiny(train=named))
    assert not fits(row, tiny(train=named | {"checkpoint_sha256": "cd" * 32}))
    assert not fits(replace(row, checkpoints=()), tiny(train=named))


def test_our_own_rows_are_told_apart_by_their_fingerprints(finished):
    lines = fill(rows(), finished.home.store, {})
    said = among_ours(lines)
    assert [text.partition(":")[0] for text in said] == ["plain and swept"]
    assert "bank 0 and 1" in said[0]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setitem(TABLES, "main", rows)


def shown(home, **options):
    output = io.StringIO()
    console = Console(file=output, width=250)
    assert (
        show_table("main", TableOptions(resources=tiny().resources, **options), home, console) == 0
    )
    return output.getvalue()


def test_missing_rows_are_run_and_the_table_is_one_mlflow_comparison(table, tmp_path):
    home = Home(tmp_path / "home")
    before = shown(home)
    assert before.count("not run") == 4
    after = shown(home, run=True, rows=("plain", "guided", "swept"))
    assert "not run" not in after
    assert after.count("artifacts to build") == 1, "three rows, one experiment"
    assert "Not compared (plain, guided, swept): features of digits-cnn" in after
    shown(home)
    with (home.report / "table-main" / "table.csv").open() as file:
        records = {record["row"]: record for record in csv.DictReader(file)}
    assert records["longer"]["state"] == "not run"
    assert records["plain"]["fid_published"] == "100.0"
    assert records["plain"]["fid_difference"] == ""
    tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
    experiment = tracker.client.get_experiment_by_name("table-main")
    runs = tracker.client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(row.name for row in rows())
    plain = next(run for run in runs if run.info.run_name == "plain")
    assert plain.data.metrics["fid_published"] == 100.0
    assert plain.data.metrics["fid"] == pytest.approx(float(records["plain"]["fid_ours"]))
    assert "fid_difference" not in plain.data.metrics
    assert "digits-cnn" in plain.data.tags["not_compared_because"]
    lines = fill(rows(), home.store, {})
    track_table(tracker, "main", lines, [])
    again = tracker.client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in again} == {run.info.run_id for run in runs}


def test_a_row_may_be_given_a_checkpoint(table, tmp_path):
    from tests.pipelines.test_imported import write_published

    path = write_published(tmp_path / "published.pt")
    output = shown(Home(tmp_path / "home"), run=True, rows=("guided",),
                   from_checkpoint=(f"guided={path}",))  # fmt: skip
    assert "a published checkpoint (SHA-256" in output
    assert "not run" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "igdit table needs a table: one of main, sit_b2_ablation"),
        (["other"], "table must be one of main, sit_b2_ablation, but got 'other'"),
        (["main", "--rows", "sit"], "row must be one of"),
        (["main", "--from-checkpoint", "sit_xl2_ig-800"], "must be ROW=FILE"),
        (["main", "--from-checkpoint", "sit_xl2_ig-800=/no.pt"], "from_checkpoint must be a file"),
        (["main", "--run", "--rows", "sit_xl2_ig-80"],
         "--sd-latents PATH: latents to learn; --sd-vae PATH"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_message_before_any_work(arguments, words, capsys, tmp_path):
    assert main(["table", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "home" / "store").exists()


def test_experiments_that_lack_files_are_planned_but_not_run(capsys):
    assert main(["plan", "sit_b2_ig"]) == 0
    assert main(["run", "sit_b2_ig"]) == 2
    error = capsys.readouterr().err
    for option in ("--data.path", "--data.codec-path", "--evaluation.extractor-weights",
                   "--evaluation.reference"):  # fmt: skip
        assert option in error
    row = TABLES["sit_b2_ablation"]()[0]
    assert Graph(resolve(row.experiment, partly=True)).run_key


def test_a_row_with_a_scale_costs_that_scale_alone(table, tmp_path):
    home = Home(tmp_path / "home")
    shown(home, run=True, rows=("guided",))
    checkpoints, evaluations = home.store.list("checkpoint"), home.store.list("evaluate")
    assert [artifact.key[-8:] for artifact in checkpoints] == ["00000020"]
    assert len(evaluations) == 1
    before = shown(home)
    assert before.count("not run") == 3  # plain, swept and longer
    shown(home, run=True, rows=("swept",))
    assert len(home.store.list("evaluate")) == 4  # two scales, and both anew on other noise
