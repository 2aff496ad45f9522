"""`igdit track rebuild`: the same pages from the store and the study's database."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pipelines.__main__ import main
from pipelines.commands.run import run_experiment
from pipelines.commands.study import StudyOptions, run_study
from pipelines.console.console import make_console
from pipelines.graph.graph import Graph
from pipelines.store.home import Home
from pipelines.store.register import read_register
from pipelines.tracking.metrics import comparison_name
from tests.equipment.shown import client, database, shown, shown_at
from tests.pipelines.conftest import OUTSIDE, tiny, tree
from tests.pipelines.study.conftest import small_study


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> tuple[Home, dict[str, dict]]:
    """Results whose pages were made as the work went on, and what they showed."""
    home = Home(tmp_path_factory.mktemp("rebuild"))
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        quiet = make_console(file=io.StringIO())
        assert run_study(small_study(), StudyOptions("4", 1, yes=True), home, quiet) == 0
        assert run_study(small_study(), StudyOptions("5", 1, yes=True), home, quiet) == 0
        # Of the study's name, and with a training of the study's kind.
        assert run_experiment(tiny(name="small"), home, quiet) == 0
        shutil.copytree(home.mlartifacts, home.root / "before")
    return home, shown(home.root)


@pytest.fixture
def home(tracked, monkeypatch) -> Home:
    """The same without MLflow."""
    home, _ = tracked
    monkeypatch.setenv("IGDIT_HOME", str(home.root))
    (home.root / "mlflow.db").unlink(missing_ok=True)
    shutil.rmtree(home.mlartifacts, ignore_errors=True)
    return home


def contents(folder: Path) -> list[tuple[str, str]]:
    """Name and content of every file of every run, without the ids of runs."""
    return sorted(
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_an_empty_server_comes_to_show_the_same(home, tracked, capsys):
    assert main(["track", "rebuild"]) == 0
    assert shown(home.root) == tracked[1]
    assert contents(home.mlartifacts) == contents(home.root / "before")
    assert "is up to date for 2 of 2 experiments, studies and tables" in capsys.readouterr().out


def test_doing_it_again_changes_nothing(home):
    assert main(["track", "rebuild"]) == 0
    before = shown(home.root), tree(home.mlartifacts), tree(home.report), tree(home.store.root)
    assert main(["track", "rebuild"]) == 0
    after = shown(home.root), tree(home.mlartifacts), tree(home.report), tree(home.store.root)
    assert after == before


def test_trials_are_below_their_study_and_trainings_are_no_pages(home, tracked):
    recorded = read_register(home.store)
    assert len(recorded.experiments) > 2, "each training of the study is recorded as well"
    assert [experiment.name for _, experiment in recorded.runs] == ["small"]
    main(["track", "rebuild"])
    runs = shown(home.root)
    parents = [name for name, run in runs.items() if run["parent"] is None]
    own = comparison_name(Graph(tiny()))
    assert sorted(run["experiment"] for run in runs.values()) == [own] + ["study-small"] * 6
    assert len(parents) == 2
    assert {run["parent"] for run in runs.values()} == {None, "small"}


@pytest.fixture
def server(home, tmp_path, monkeypatch) -> Path:
    """Folder of a database of its own, in which all results are shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(tmp_path))
    assert main(["track", "rebuild"]) == 0
    return tmp_path


def test_what_was_deleted_in_mlflows_pages_is_restored_by_the_same_command(server, tracked):
    """Experiments, runs and models."""
    api = client(server)
    own, study = (
        api.get_experiment_by_name(name) for name in (comparison_name(Graph(tiny())), "study-small")
    )
    (run,) = api.search_runs([own.experiment_id])
    model = api.search_logged_models([own.experiment_id])[0]
    api.delete_logged_model(model.model_id)
    api.delete_run(run.info.run_id)
    api.delete_experiment(study.experiment_id)
    assert main(["track", "rebuild"]) == 0
    assert without_outputs(shown(server)) == without_outputs(tracked[1])
    (again,) = api.search_runs([own.experiment_id])
    assert again.info.run_id == run.info.run_id, "with what somebody wrote there"


def without_outputs(runs: dict[str, dict]) -> dict[str, dict]:
    """All but the number of models, of which MLflow counts the deleted ones too."""
    return {name: {k: v for k, v in page.items() if k != "outputs"} for name, page in runs.items()}


def test_what_mlflow_does_not_give_back_is_named_with_the_command_and_the_rest_is_made(
    server, capsys, monkeypatch
):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    api = client(server)
    own = api.get_experiment_by_name(comparison_name(Graph(tiny())))
    api.delete_experiment(own.experiment_id)
    capsys.readouterr()

    def refuse(*_) -> None:
        raise MlflowException("no permission")

    monkeypatch.setattr(MlflowClient, "restore_experiment", refuse)
    assert main(["track", "rebuild"]) == 1
    said = capsys.readouterr().out
    assert f"mlflow experiments restore --experiment-id {own.experiment_id}" in said
    assert "\nstudy small, 5 trials" in said
    assert "is up to date for 1 of 2" in said


def test_a_damaged_database_is_to_be_moved_away(server, capsys):
    path = server / "mlflow.db"
    path.write_bytes(path.read_bytes()[:50_000])
    assert main(["track", "rebuild"]) == 1
    error = capsys.readouterr().err
    assert f"{path} is damaged" in error
    assert f"mv {path} {path}.damaged" in error
    assert "run `igdit track rebuild`, which writes it again" in error
    assert path.stat().st_size == 50_000


def test_another_server_and_another_storage_are_taken(home, tracked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(tmp_path))
    moved = (home.root / "study.db").rename(tmp_path / "elsewhere.db")
    try:
        assert main(["track", "rebuild", "--storage", f"sqlite:///{moved}"]) == 0
    finally:
        moved.rename(home.root / "study.db")
    assert shown_at(database(tmp_path)) == tracked[1]
    assert not (home.root / "mlflow.db").exists()


def test_a_trial_that_lost_something_has_it_again(home, tracked):
    """Trials that are up to date are looked at all the same."""
    main(["track", "rebuild"])
    for path in home.mlartifacts.rglob("samples.png"):
        path.unlink()
    main(["track", "rebuild"])
    assert shown(home.root) == tracked[1]


def test_what_is_damaged_is_named_and_the_rest_is_shown(home, tracked, capsys):
    ((_, experiment),) = read_register(home.store).runs
    node = Graph(experiment).baseline.evaluate
    manifest = home.store.find(node.ref)
    metrics = home.store.root / str(node.ref) / "metrics.json"
    assert manifest is not None
    whole = metrics.read_bytes()
    metrics.chmod(0o644)
    metrics.write_bytes(whole[:-5])
    try:
        assert main(["track", "rebuild"]) == 1
    finally:
        metrics.write_bytes(whole)
    said = capsys.readouterr().out
    assert f"{node.ref} is damaged" in said
    assert "is up to date for 1 of 2" in said
    studied = {k: v for k, v in tracked[1].items() if v["experiment"] == "study-small"}
    assert {k: v for k, v in shown(home.root).items() if k in studied} == studied


def test_a_server_that_is_away_is_said_without_its_password(home, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["track", "rebuild"]) == 1
    captured = capsys.readouterr()
    assert "could not be updated" in captured.err
    assert "s3cret" not in captured.out + captured.err


def test_without_results_there_is_nothing_to_show(tmp_path, capsys):
    assert main(["track", "rebuild"]) == 0
    assert "is up to date for 0 of 0" in capsys.readouterr().out


def test_artifacts_lie_where_mlflow_says(home):
    main(["track", "rebuild"])
    api = client(home.root)
    for experiment in api.search_experiments(filter_string="name != 'Default'"):
        assert Path(unquote(urlsplit(experiment.artifact_location).path)).is_dir()
