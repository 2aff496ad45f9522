from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from experiments import EXPERIMENTS, experiment_to_json
from pipelines.__main__ import main
from pipelines.commands import run as experiment_run
from pipelines.common.errors import WorkerLostError
from pipelines.common.formatting import data_size
from pipelines.graph.graph import Graph
from pipelines.results.measurements import collect
from pipelines.store.folder import FolderStore
from pipelines.store.register import read_register
from tests.pipelines.conftest import ROOT, damage, events, tiny, tree


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The folder of the results, in an otherwise empty current directory of a wide terminal."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path) -> str:
    """The tiny experiment as a file."""
    path = tmp_path / "experiment.json"
    path.write_text(experiment_to_json(tiny()))
    return str(path)


def igdit(*words: str) -> int:
    """Exit code of a command line."""
    try:
        return main(list(words))
    except SystemExit as end:
        return end.code


def said(capsys) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


# What cannot be understood: exit code 2, a message, nothing done

WRONG = [
    (["run", "digits", "--trian.steps", "5"], ["--trian.steps", "--train.steps"]),
    (["run", "digits", "--train.steps", "five"], ["--train.steps", "'five'"]),
    (["run", "digits", "--train.steps"], ["--train.steps"]),
    (["run", "digits", "--sampler.method", "rk4"], ["--sampler.method", "rk4", "heun"]),
    (["run", "digits", "--model.aux-layer", "9"], ["aux_layer", "1..3", "9"]),
    (["run", "digits", "--train.batch-size", "1"], ["train.batch_size", "num_workers=2", "got 1"]),
    (["run", "digits", "--ig-scales", "1", "nan"], ["ig_scales", "finite", "nan"]),
    (["run", "digits", "--sampler.path", "cosine"], ["sampler.path", "'linear'", "'cosine'"]),
    (["run", "digits", "--ig-scales"], ["--ig-scales", "at least one value"]),
    (["plan", "digits", "--ig_scales", "--model.rope"], ["--ig_scales", "at least one value"]),
    (["study", "digits", "--experiment.ig-scales"], ["--experiment.ig-scales", "one value"]),
    (["table", "main", "--rows", "--run"], ["--rows", "at least one value"]),
    (["store", "gc", "--forget"], ["--forget", "at least one value"]),
    *(
        (
            [command, "digits", f"--{prefix}evaluation.curve-samples", "5001"],
            ["curve_samples must be at most num_samples=", "5001"],
        )
        for command, prefix in (("run", ""), ("plan", ""), ("study", "experiment."))
    ),
    (
        ["plan", "digits", "--resources.num-workers", "99"],
        ["99 CPUs", "this machine has", "--resources.num-workers", "RAY_ADDRESS"],
    ),
    (["plan", "digits", "--optim.lr", "inf"], ["lr", "finite", "inf"]),
    (["run", "digitz"], ["'digitz'", "did you mean 'digits'?"]),
    (["plan", "qqq"], ["'qqq'", *EXPERIMENTS, ".json"]),
    (["run"], ["run needs an experiment", *EXPERIMENTS]),
    (["plan", "--train.steps", "5"], ["plan needs an experiment"]),
    (["run", "missing.json"], ["missing.json does not exist"]),
    (["rum", "digits"], ["'rum'", "did you mean 'run'?"]),
    (["qqq"], ["'qqq'", "run", "plan", "store", "ui"]),
    (["report", "nope"], ["none yet", "'nope'"]),
    (["report"], ["none yet"]),
    (["report", "digits"], ["none yet", "digits"]),
    (["report", "missing.json"], ["missing.json does not exist"]),
    (["report", "digits", "--train.steps", "5"], ["nothing of experiment digits", "measured"]),
    (["report", "study"], ["name of a study"]),
    (["report", "study", "digits"], ["no study", "--storage"]),
    (["status", "--every", "0"], ["every", "0.1"]),
    (["status", "--wach"], ["--wach", "--watch"]),
    (["store"], ["ls or gc", "nothing"]),
    (["store", "rm"], ["ls or gc", "rm"]),
    (["store", "gc", "--forget", "abc"], ["--forget", "'abc'"]),
    (["store", "gc", "--dleete"], ["--dleete"]),
    (["store", "ls", "--all"], ["--all"]),
    (["help", "rum"], ["'rum'", "did you mean 'run'?"]),
    (["track"], ["track needs rebuild", "nothing"]),
    (["track", "rebuilt"], ["track needs rebuild", "rebuilt"]),
    (["track", "rebuild", "--strage", "x"], ["--strage"]),
    (["ui"], ["no results"]),
    (["ui", "--port", "high"], ["--port", "'high'"]),
]


@pytest.mark.parametrize(("words", "expected"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_cannot_be_understood_is_explained_and_does_nothing(words, expected, home, capsys):
    assert igdit(*words) == 2
    out, err = said(capsys)
    assert [word for word in expected if word not in err] == []
    assert "Traceback" not in out + err
    assert len(err.splitlines()) < 15
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        (experiment_to_json(tiny()).replace('"steps"', '"stepz"'), "'stepz'"),
        (experiment_to_json(tiny()).replace('"steps": 20', '"steps": "20"'), "'20'"),
        (experiment_to_json(tiny()).replace('"aux_layer": 1', '"aux_layer": 2'), "aux_layer"),
    ],
)
def test_a_file_that_is_no_experiment_is_explained(text, expected, tmp_path, home, capsys):
    (tmp_path / "bad.json").write_text(text)
    assert igdit("run", str(tmp_path / "bad.json")) == 2
    err = said(capsys)[1]
    assert err.startswith("igdit: ")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not home.exists()


# Help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_commands_and_experiments(words, capsys):
    assert igdit(*words) == 0
    out = said(capsys)[0]
    commands = ("run", "plan", "study", "report", "status", "store", "ui")
    for word in (*(f"igdit {command}" for command in commands), *EXPERIMENTS, "IGDIT_HOME"):
        assert word in out


def test_help_of_run_lists_every_setting_with_its_value(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert igdit("run", "digits", "--help") == 0
    out = " ".join(said(capsys)[0].replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    for option, value in (
        ("--train.steps INT", "600"),
        ("--optim.lr FLOAT", "0.003"),
        ("--loss.aux-weight", "0.5"),
        ("--model.aux-layer", "1"),
        ("--resources.num-workers", "2"),
        ("--rebuild", "False"),
    ):
        after = out[out.index(option) :]
        assert f"(default: {value})" in after[:400], option


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "plan",
        "study",
        "table",
        "report",
        "report study",
        "status",
        "evaluate",
        "export",
        "export RUN",
        "inspect",
        "inspect PATH",
        "store",
        "store ls",
        "store gc",
        "ui",
        "track",
        "track rebuild",
        "submit",
        "submit run",
        "submit study",
        "table main",
    ],
)
def test_every_command_has_help_of_its_own(command, home, capsys, monkeypatch):
    monkeypatch.setenv("IGDIT_SECRETS", "/none/such")  # help is there whatever else is wrong
    for word in ("--help", "-h")[: 2 if " " not in command else 1]:
        assert igdit(*command.split(), word) == 0
        out, err = said(capsys)
        expected = command.removeprefix("submit ") if command != "submit" else command
        assert out.startswith(f"usage: igdit {expected}")
        assert err == ""
    assert not home.exists()


def test_help_of_a_command_is_there_in_either_order(capsys):
    assert igdit("help", "plan") == igdit("plan", "--help") == 0
    once = said(capsys)[0]
    assert once[: len(once) // 2] == once[len(once) // 2 :]
    assert all(name in once for name in EXPERIMENTS)


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_that_of_the_package(word, capsys):
    assert igdit(word) == 0
    assert said(capsys)[0] == f"igdit {version('igdit')}\n"


# Running


def test_a_stored_experiment_gives_its_results_without_any_work(store, finished, capsys):
    before = list(store.events())
    report = finished.home.report / f"tiny-{finished.graph.run_key[:8]}"
    assert igdit("run", str(report / "experiment.json")) == 0
    out, err = said(capsys)
    assert list(store.events()) == before
    assert "0 artifacts to build" in out
    assert "FID by internal guidance scale" in out
    assert "igdit ui" in out
    assert err == ""


def test_the_results_of_a_cached_run_are_those_of_the_first(store, finished, capsys, file):
    assert igdit("run", file) == 0
    table = said(capsys)[0].split("FID by internal")[1].split("Cost:")[0]
    assert table.split() == finished.output.split("FID by internal")[1].split("Cost:")[0].split()


def test_an_override_of_a_file_builds_only_what_it_changes(store, file, home, capsys):
    known = len(events(store, "execute"))
    assert igdit("run", file, "--ig-scales", "1.5", "2.5") == 0
    executed = [e["kind"] for e in events(store, "execute")[known:]]
    changed = Graph(tiny(ig_scales=(1.5, 2.5)))
    chosen = collect(store, changed).chosen  # maybe the new one, then sampled on holdout noise
    for kind, count in {"evaluate": 1, "sample": 1, "images": 2, "features": 2}.items():
        assert executed.count(kind) == count * (2 if chosen.ig_scale == 2.5 else 1)
    assert len(executed) in (6, 12)
    assert len(read_register(store).experiments) == 2
    out = said(capsys)[0]
    assert "6 artifacts to build" in out
    assert str(home) in out


def test_a_run_leaves_its_files_in_the_home_and_nowhere_else(store, file, home, tmp_path):
    assert igdit("run", file) == 0
    assert not list((tmp_path / "here").iterdir())
    assert {path.name for path in home.iterdir()} >= {"store", "report", "mlflow.db", "mlartifacts"}
    (report,) = (home / "report").iterdir()
    assert report.name == f"tiny-{Graph(tiny()).run_key[:8]}"


def test_without_a_home_results_lie_in_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("IGDIT_HOME")
    assert igdit("store", "ls") == 0
    assert str(tmp_path / "here" / "runs") in said(capsys)[0]


# Planning


def test_a_plan_counts_what_is_there_in_one_way(store, file, finished, capsys):
    assert igdit("plan", file) == 0
    out = said(capsys)[0]
    there = [store.find(node.ref) for node in finished.nodes]
    rows = [
        line.split()
        for line in out.splitlines()
        if line.split()[:1] and line.split()[0] in ("data", "train", "sample", "evaluate")
    ]
    assert sum(int(row[2]) for row in rows) == len(there)
    size = data_size(sum(artifact.size for artifact in there))
    assert f"Cached: {len(there)} artifacts, {size}." in out
    assert size.endswith("MiB")


def test_negative_scales_are_values_and_no_options(capsys):
    assert igdit("plan", "digits", "--ig-scales", "-1", "-.5") == 0


def test_more_workers_than_cores_are_for_a_cluster_to_judge(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert igdit("plan", "digits", "--resources.num-workers", "99") == 0
    monkeypatch.delenv("RAY_ADDRESS")
    assert igdit("plan", "sit_xl2") == 0, "eight GPUs are not looked for to make a plan"


def test_a_plan_says_what_would_run_and_changes_nothing(store, file, home, capsys):
    before = tree(home)
    assert igdit("plan", file, "--train.steps", "30") == 0
    out = said(capsys)[0]
    assert "training from step 20 to 30" in out
    assert "images" in out
    assert tree(home) == before


def test_a_plan_of_what_is_there_says_so(store, file, capsys):
    assert igdit("plan", file) == 0
    assert "All artifacts are cached" in said(capsys)[0]


def test_a_plan_does_not_even_make_the_home(home, capsys):
    assert igdit("plan", "digits") == 0
    assert "training from step 0 to 600" in said(capsys)[0]
    assert not home.exists()


# Failing: exit code 1 and one line


def one_line(err: str) -> str:
    """The message; after it only where to look for more."""
    message, *more = err.splitlines()
    assert message.startswith("igdit: ")
    assert [line for line in more if "IGDIT_DEBUG" not in line] == []
    return message


@pytest.mark.parametrize("part", ["final", "holdout"])
def test_damage_is_explained_and_a_rebuild_mends_it(store, file, finished, capsys, part):
    node = next(iter(getattr(collect(store, finished.graph), part).values())).point.evaluate
    path = store.root / str(node.ref) / "metrics.json"
    before = path.read_bytes()
    damage(path)
    assert igdit("run", file) == 1
    err = one_line(said(capsys)[1])
    assert f"evaluate/{node.key} is damaged" in err
    assert "--rebuild" in err

    assert igdit("run", file, "--rebuild") == 0
    assert f"quarantined damaged evaluate/{node.key}" in said(capsys)[0]
    assert path.read_bytes() == before


def test_a_training_that_diverges_is_explained(store, file, capsys):
    assert igdit("run", file, "--optim.lr", "1e30") == 1
    err = one_line(said(capsys)[1])
    assert "step 2 is not finite" in err
    assert "--optim.lr" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(WorkerLostError("a worker died"), 1), (KeyboardInterrupt(), 130), (ValueError("bad"), 2)],
)
def test_exit_codes_tell_mistakes_failures_and_interrupts_apart(
    file, monkeypatch, error, code, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(experiment_run, "run_experiment", fail)
    assert igdit("run", file) == code
    err = one_line(said(capsys)[1])
    assert str(error) in err


def test_debugging_shows_where_an_error_came_from(file, monkeypatch):
    def fail(*_, **__):
        raise WorkerLostError("a worker died")

    monkeypatch.setattr(experiment_run, "run_experiment", fail)
    monkeypatch.setenv("IGDIT_DEBUG", "1")
    with pytest.raises(WorkerLostError, match="a worker died"):
        main(["run", file])


def test_sigterm_ends_a_run_as_an_interrupt_does(file, monkeypatch, capsys):
    monkeypatch.setattr(
        experiment_run, "run_experiment", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert igdit("run", file) == 130
    assert "run the same command to continue" in one_line(said(capsys)[1])


def test_sigterm_ends_a_run_that_was_started_with_sigint_ignored(tmp_path):
    """As jobs in the background of a script are: Ctrl-C is not meant for them."""
    long = tiny(train={"steps": 800, "checkpoint_every": 20})
    path = tmp_path / "long.json"
    path.write_text(experiment_to_json(long))
    store = FolderStore(tmp_path / "home" / "store")
    command = [sys.executable, "-m", "pipelines", "run", path]
    job = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait_for_checkpoints(count):
        end = time.monotonic() + 120
        while len(store.list("checkpoint")) < count and job.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.1)

    try:
        wait_for_checkpoints(1)
        job.send_signal(signal.SIGINT)
        wait_for_checkpoints(len(store.list("checkpoint")) + 2)
        assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 130
        assert "run the same command to continue" in one_line(job.stderr.read())
    finally:
        job.kill()
        job.stderr.close()
        job.wait()


# The other commands, and the program itself


def test_the_store_can_be_listed(store, finished, capsys):
    assert igdit("store", "ls") == 0
    out = said(capsys)[0]
    assert finished.graph.run_key[:8] in out
    assert "checkpoint" in out


def test_listing_and_collecting_nothing_makes_no_home(home, capsys):
    assert igdit("store", "ls") == 0
    assert igdit("store", "gc") == 0
    assert "Would delete 0 artifacts" in said(capsys)[0]
    assert not home.exists()


def test_the_package_can_be_run_as_a_program(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "pipelines", "rum"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "did you mean 'run'?" in run.stderr
    assert FolderStore(tmp_path / "home" / "store").root.exists() is False


@pytest.mark.parametrize("words", [["--version"], ["run", "digits", "--help"], ["store", "ls"]])
def test_a_reader_that_has_enough_is_no_error(words, tmp_path):
    """As `igdit run digits --help | head` does."""
    read, write = os.pipe()
    os.close(read)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pipelines", *words],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"IGDIT_HOME": str(tmp_path)},
        )
    finally:
        os.close(write)
    assert (run.returncode, run.stderr) == (1, "")
