"""Tables: our numbers beside published ones, and never more said than is true."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from experiments.published import Published, PublishedProtocol
from experiments.tables import TABLES, TableRow
from pipelines.__main__ import main
from pipelines.commands.table import TableOptions, show_table
from pipelines.console.console import make_console
from pipelines.console.paper_table import print_paper_table
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import resolve
from pipelines.results.paper_table import (
    fill,
    matches,
    own_differences,
    remember_table,
    tracked_tables,
)
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.store.register import read_register
from pipelines.tracking.client import MlflowTracker
from pipelines.tracking.metrics import comparison_name
from pipelines.tracking.table import track_table
from tests.equipment.shown import database, shown_at
from tests.pipelines.conftest import tiny, tree

PUBLISHED = Published(method="tiny", epochs=1, fid=100.0, inception_score=2.0)


def rows():
    """Rows that the finished run of `tiny()` can fill, and one that nothing fills."""
    base = tiny()
    return (
        TableRow(name="others", published=PUBLISHED),
        TableRow(name="plain", published=PUBLISHED, experiment=base, scale=1.0),
        TableRow(name="guided", published=PUBLISHED, experiment=base, scale=1.5),
        TableRow(name="swept", published=PUBLISHED, experiment=base, note="chosen by us"),
        TableRow(
            name="longer", published=PUBLISHED, scale=1.0, experiment=tiny(train={"steps": 40})
        ),
    )


def test_what_is_there_fills_the_rows_and_the_rest_was_not_run(finished):
    lines = {line.row.name: line for line in fill(rows(), finished.home.store, {})}
    assert {name: line.state for name, line in lines.items()} == {
        "others": "published alone",
        "plain": "not compared",
        "guided": "not compared",
        "swept": "not compared",
        "longer": "not run",
    }
    from pipelines.results.measurements import collect

    results = collect(finished.home.store, finished.graph)
    assert lines["plain"].measured.fid == results.baseline.fid
    assert lines["guided"].measured.fid == results.headline().fid
    assert lines["swept"].measured.fid == results.chosen_holdout().measurement.fid
    assert lines["swept"].measured.point.images[0].config["seed"] == 1


def test_numbers_of_other_protocols_are_not_subtracted_and_it_is_said_why(finished):
    line = fill(rows(), finished.home.store, {})[1]
    assert line.difference is None
    text = "; ".join(line.incomparable_because)
    for words in (
        "200 samples, published with 50,000",
        "balanced labels",
        "digits-cnn",
        "reference: the training images",
    ):
        assert words in text
    assert any("pixels" in difference for difference in line.differences)


def test_a_protocol_that_agrees_in_words_but_not_to_the_letter_is_not_compared(finished, tmp_path):
    alike = PublishedProtocol(num_samples=200, labels="balanced")
    line = fill([replace(rows()[1], protocol=alike)], finished.home.store, {})[0]
    assert line.difference is None
    assert not any("samples, published" in text for text in line.incomparable_because)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"seed": 1}},
        {"optim": {"lr": 1.0}},
        {"sampler": {"num_steps": 3}},
        {"loss": {"aux_weight": 0.1}},
        {"guidance": {"cfg_scale": 2.0}},
        {"guidance": {"ig_interval": (0.2, 0.9)}},
    ],
)
def test_a_run_of_other_settings_is_not_the_rows(change):
    row = rows()[2]
    assert matches(row, tiny(ig_scales=(1.5, 3.0), name="another"))
    assert not matches(row, tiny(**change))


def test_a_published_checkpoint_stands_for_the_rows_that_name_it():
    row = replace(rows()[2], checkpoints=("ab" * 32,))
    named = {"from_checkpoint": "/somewhere.pt", "checkpoint_sha256": "ab" * 32}
    assert matches(row, tiny(train=named))
    assert not matches(row, tiny(train=named | {"checkpoint_sha256": "cd" * 32}))
    assert not matches(replace(row, checkpoints=()), tiny(train=named))


def test_our_own_rows_are_told_apart_by_their_fingerprints(finished):
    lines = fill(rows(), finished.home.store, {})
    said = own_differences(lines)
    assert [text.partition(":")[0] for text in said] == ["plain and swept"]
    assert "noise seed 0 and 1" in said[0]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setitem(TABLES, "main", rows)


def shown(home, **options):
    output = io.StringIO()
    console = make_console(file=output, width=250)
    assert (
        show_table("main", TableOptions(resources=tiny().resources, **options), home, console) == 0
    )
    return output.getvalue()


def test_missing_rows_are_run_and_the_table_is_one_mlflow_comparison(table, tmp_path):
    home = Home(tmp_path / "home")
    before = shown(home)
    assert before.count("not run") == 4
    assert "Compare in MLflow" not in before
    assert not (home.root / "mlflow.db").exists(), "looking writes no runs"
    assert tracked_tables(read_register(home.store)) == [] if home.store.exists() else True
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
    assert tracked_tables(read_register(home.store)) == ["main"]
    (own,) = tracker.client.search_runs(
        [tracker.client.get_experiment_by_name(comparison_name(Graph(tiny()))).experiment_id]
    )
    assert own.info.status == "FINISHED", "what the rows asked for is all there"
    lines = fill(rows(), home.store, {})
    track_table(tracker, "main", lines, [])
    again = tracker.client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in again} == {run.info.run_id for run in runs}


def test_a_row_may_be_given_a_checkpoint(table, tmp_path):
    from tests.pipelines.stages.training.test_imported import write_published

    path = write_published(tmp_path / "published.pt")
    output = shown(
        Home(tmp_path / "home"), run=True, rows=("guided",), from_checkpoint=(f"guided={path}",)
    )
    assert "a published checkpoint (SHA-256" in output
    assert "not run" not in output
    again = shown(Home(tmp_path / "home"), run=True, rows=("guided",))
    assert "artifacts to build" not in again, "what the row shows is not trained"
    assert "a published checkpoint (SHA-256" in again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run"], "igdit table needs a table before its options: one of main, sit_b2_ablation"),
        (["other"], "table must be one of main, sit_b2_ablation, paper_table, but got 'other'"),
        (["main", "--rows", "sit"], "row must be one of"),
        (["main", "--from-checkpoint", "sit_xl2_ig-800"], "must be ROW=FILE"),
        (["main", "--from-checkpoint", "sit_xl2_ig-800=/no.pt"], "from_checkpoint must be a file"),
        (
            ["main", "--from-checkpoint", "sit_b2=/no.pt"],
            "from_checkpoint must name one of the rows sit_xl2-1400, ",
        ),
        (
            ["main", "--rows", "sit_xl2_ig-80", "--from-checkpoint", "sit_xl2_ig-800=/no.pt"],
            "must name one of the rows sit_xl2_ig-80 (those of --rows), but got 'sit_xl2_ig-800'",
        ),
        (
            ["main", "--from-checkpoint", "sit_xl2_ig-800=/a.pt", "sit_xl2_ig-800=/b.pt"],
            "from_checkpoint must name a row once, but got 'sit_xl2_ig-800' twice",
        ),
        (
            ["main", "--run", "--rows", "sit_xl2_ig-80"],
            "--sd-latents PATH: latents to learn; --sd-vae PATH",
        ),
    ],
)
def test_what_cannot_be_done_is_one_message_before_any_work(arguments, words, capsys, tmp_path):
    assert main(["table", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "home" / "store").exists()


def test_experiments_that_lack_files_are_planned_but_not_run(capsys):
    assert main(["plan", "sit_b2_ig"]) == 0
    assert main(["run", "sit_b2_ig"]) == 2
    error = capsys.readouterr().err
    for option in (
        "--data.path",
        "--data.codec-path",
        "--evaluation.extractor-weights",
        "--evaluation.reference",
    ):
        assert option in error
    row = TABLES["sit_b2_ablation"]()[0]
    assert Graph(resolve(row.experiment, partly=True)).run_key


def test_a_row_with_a_scale_costs_that_scale_alone(table, tmp_path):
    home = Home(tmp_path / "home")
    shown(home, run=True, rows=("guided",))
    checkpoints, evaluations = home.store.list("checkpoint"), home.store.list("evaluate")
    assert [artifact.ref.step for artifact in checkpoints] == [20]
    assert len(evaluations) == 1
    before = shown(home)
    assert before.count("not run") == 3  # plain, swept and longer
    shown(home, run=True, rows=("swept",))
    assert len(home.store.list("evaluate")) == 4  # two scales, and both anew on other noise


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_name_the_tables_are_listed(arguments, capsys):
    assert main(["table", *arguments]) == 0
    output = capsys.readouterr().out
    for words in (
        "main ",
        "The system comparison",
        "(33 rows)",
        "sit_b2_ablation",
        "paper_table",
        "Both of them in one comparison (40 rows)",
    ):
        assert words in output


def test_the_papers_table_is_both_tables_in_one():
    names = [row.name for row in TABLES["paper_table"]()]
    assert names == [row.name for name in ("main", "sit_b2_ablation") for row in TABLES[name]()]


@pytest.mark.parametrize("width", [40, 80, 100, 160])
@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_readable_at_any_width(name, width, tmp_path):
    lines, output = fill(TABLES[name](), FolderStore(tmp_path), {}), io.StringIO()
    print_paper_table(name, lines, make_console(file=output, width=width))
    text = output.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    drawn = text[: text.index("Intervals cover")].splitlines()
    assert {"method", "epochs", "CFG", "published"} <= set(" ".join(drawn).split())
    for line in lines:  # all numbers of a row stand beside its whole name
        row = [
            word
            for each in drawn
            if each.split()[:1] == [line.row.name]
            for word in each.split()[1:]
        ]
        score = line.row.published.inception_score
        assert {f"{line.row.published.fid:.2f}", "-" if score is None else f"{score:.1f}"} <= {*row}
    assert max(map(len, drawn[1:])) <= width  # but for the title, which a file has whole


def test_the_file_and_the_comparison_have_all_rows_whichever_are_shown(table, tmp_path):
    home = Home(tmp_path / "home")
    output = shown(home, rows=("plain",), track=True)
    assert "guided" not in output
    with (home.report / "table-main" / "table.csv").open() as file:
        assert [record["row"] for record in csv.DictReader(file)] == [r.name for r in rows()]
    tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
    experiment = tracker.client.get_experiment_by_name("table-main")
    runs = tracker.client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.data.params["row"] for run in runs} == {
        row.name: f"{order:02d}" for order, row in enumerate(rows())
    }


def test_an_empty_server_comes_to_show_the_same_tables(table, tmp_path, monkeypatch):
    """A checkpoint that was named for a row too; what was not measured has no time of its own."""
    from tests.pipelines.stages.training.test_imported import write_published

    home, path = Home(tmp_path / "home"), write_published(tmp_path / "published.pt")
    shown(home, run=True, rows=("guided",), from_checkpoint=(f"guided={path}",))
    shown(home, run=True, rows=("plain",))

    def pages(server):
        found = {n: r for n, r in shown_at(server).items() if r["experiment"] == "table-main"}
        for run in found.values():
            if run["tags"]["igdit.table_number"] == "none":
                del run["end"]
        return found

    before = pages(home.tracking_uri)
    assert set(before) == {row.name for row in rows()}
    assert before["guided"]["tags"]["igdit.table_number"] != "none"
    monkeypatch.chdir(tmp_path)  # where a server without a place for files puts them
    monkeypatch.setenv("IGDIT_HOME", str(home.root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(tmp_path))
    assert main(["track", "rebuild"]) == 0
    assert pages(database(tmp_path)) == before
    first = shown_at(database(tmp_path)), tree(home.report)
    assert main(["track", "rebuild"]) == 0
    assert (shown_at(database(tmp_path)), tree(home.report)) == first
    # Nor does the table itself forget what was named for it.
    assert shown(home).count("not run") == 2  # swept and longer


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"table": "main"}',
        '{"table":[],"row":1,"run":2}',
        '{"table": "main", "row": "x", "run": []}',
    ],
)
def test_a_record_of_a_table_that_cannot_be_read_is_named_and_passed_over(tmp_path, text, caplog):
    store = FolderStore(tmp_path)
    store.write_record(".runs/a.json", text)
    remember_table(store, "other", (), tracked=True)
    assert tracked_tables(read_register(store)) == ["other"]
    (warning,) = caplog.messages
    assert f"the record {store.uri}/.runs/a.json cannot be read and is passed over" in warning
