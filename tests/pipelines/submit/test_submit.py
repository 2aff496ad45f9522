"""`igdit submit`, with a job server that only pretends."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import http.server
import shutil
import signal
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import experiment_to_json, get_experiment
from pipelines.__main__ import main
from pipelines.commands.submit import FLAGS, VALUES, split_words
from pipelines.common.errors import JobServerError
from pipelines.console.console import make_console
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import resolve
from pipelines.submit import client as submitting
from pipelines.submit.job import EXCLUDES, Submission
from pipelines.submit.ray_jobs import JobServer, files_to_upload
from tests.equipment.job_server import FakeJobServer
from tests.pipelines.conftest import tiny

PG = "postgresql+psycopg://igdit@db/igdit"
ON_CLUSTER = {
    "IGDIT_HOME": "/scratch/igdit",
    "IGDIT_STORE": "s3://bucket/store",
    "IGDIT_STUDY_STORAGE": PG,
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder like a project, in which the command is given; addresses of a cluster."""
    root = tmp_path / "project"
    (root / "pipelines").mkdir(parents=True)
    (root / "pipelines" / "__main__.py").write_text("print('hello')\n")
    (root / "sub").mkdir()
    monkeypatch.chdir(root)
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "PGPASSWORD",
        "PGPASSFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "IGDIT_SECRETS",
        "AWS_SECRET_ACCESS_KEY",
        "IGDIT_DEBUG",
        "RAY_API_SERVER_ADDRESS",
    ):
        # Set first: so that what the command itself sets is undone.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    for name, value in ON_CLUSTER.items():
        monkeypatch.setenv(name, value)
    return root


@pytest.fixture
def server():
    with FakeJobServer(logs=[["hello\n", "done\n"]]) as serving:
        yield serving


def igdit(*words: str) -> int:
    try:
        return main(["submit", *words])
    except SystemExit as end:
        return end.code


STUDY = ("study", "digits", "--yes")

# Words


@pytest.mark.parametrize(
    ("words", "ours", "others"),
    [
        (["study", "x", "--detach"], ["--detach"], ["study", "x"]),
        (["--address", "A", "study", "x"], ["--address", "A"], ["study", "x"]),
        (
            ["study", "--address=A", "x", "--seed", "1"],
            ["--address=A"],
            ["study", "x", "--seed", "1"],
        ),
        (["run", "x", "--dry_run"], ["--dry_run"], ["run", "x"]),
        (["study", "x", "--", "--detach"], [], ["study", "x", "--detach"]),
        (["study", "x", "--address"], ["--address"], ["study", "x"]),
        (["study", "x", "--detached"], [], ["study", "x", "--detached"]),
    ],
)
def test_options_of_submit_stand_anywhere(words, ours, others):
    assert split_words(words) == (ours, others)


@pytest.mark.parametrize("words", [["study", "digits", "--help"], ["run", "digits", "--help"]])
def test_no_option_of_submit_is_one_of_what_it_sends(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    text = capsys.readouterr().out
    offered = {word.rstrip(",") for word in text.split() if word.startswith("--")}
    assert "--name" in offered
    assert not offered & {f"--{name.replace('_', '-')}" for name in (*FLAGS, *VALUES)}


WRONG = [
    ((), {}, ["study NAME", "run NAME"]),
    (("sutdy", "digits"), {}, ["'sutdy'", "did you mean 'study'?"]),
    (("--adress", "x", "study", "digits"), {}, ["'--adress'", "did you mean '--address'?"]),
    (("study",), {}, ["needs a study"]),
    (("study", "digitz", "--yes"), {}, ["'digitz'", "digits"]),
    (("study", "digits", "--yes", "--trials", "x"), {}, ["trials", "'x'"]),
    (("study", "digits", "--yes", "--experiment.train.stpes", "5"), {}, ["stpes"]),
    (("run", "digits", "--train.steps", "five"), {}, ["--train.steps", "five"]),
    (("run", "digits", "--name", "../x"), {}, ["name", "../x"]),
    (("study", "digits"), {}, ["--ask-above", "--yes"]),
    ((*STUDY, "--address", "HEAD:8265"), {}, ["--address", "http://HOST:PORT", "'HEAD:8265'"]),
    ((*STUDY, "--address", "http://u:s3cretword@h:1"), {}, ["--address", "without a user"]),
    ((*STUDY, "--address", "ray://h:10001"), {}, ["--address", "'ray://h:10001'"]),
    ((*STUDY, "--working-dir", "/none/such"), {}, ["--working-dir", "/none/such"]),
    (STUDY, {"IGDIT_HOME": "runs"}, ["IGDIT_HOME", "absolute", "'runs'"]),
    (STUDY, {"IGDIT_HOME": ""}, ["IGDIT_HOME", "absolute", "nothing"]),
    (
        STUDY,
        {
            "IGDIT_STORE": "store",
        },
        ["IGDIT_STORE", "absolute", "'store'"],
    ),
    (STUDY, {"IGDIT_STORE": "/data/store"}, ["IGDIT_STORE", "/data/store", "--shared"]),
    (STUDY, {"IGDIT_STORE": "file:///data/store"}, ["IGDIT_STORE", "--shared"]),
    (STUDY, {"IGDIT_STORE": ""}, ["IGDIT_STORE is not set", "/scratch/igdit/store", "--shared"]),
    (STUDY, {"IGDIT_STUDY_STORAGE": ""}, ["IGDIT_STUDY_STORAGE", "study.db", "postgresql"]),
    (STUDY, {"MLFLOW_TRACKING_URI": ""}, ["MLFLOW_TRACKING_URI", "mlflow.db", "http://"]),
    (STUDY, {"MLFLOW_TRACKING_URI": "http://localhost:5000"}, ["MLFLOW_TRACKING_URI", "itself"]),
    (STUDY, {"IGDIT_CACHE": "cache"}, ["IGDIT_CACHE", "'cache'"]),
    ((*STUDY, "--shared", "--storage", "sqlite:///study.db"), {}, ["--storage", "absolute"]),
    ((*STUDY, "--storage", "sqlite:////data/study.db"), {}, ["--storage", "--shared"]),
    ((*STUDY, "--storage", "postgresql://u:s3cretword@h/d"), {}, ["--storage", "IGDIT_SECRETS"]),
    (STUDY, {"IGDIT_STUDY_STORAGE": "postgresql://u:s3cretword@h/d"}, ["without a password"]),
    (STUDY, {"MLFLOW_TRACKING_URI": "http://u:s3cretword@h"}, ["MLFLOW_TRACKING_URI", "u:***@h"]),
    (STUDY, {"IGDIT_STUDY_STORAGE": f"{PG}?password=s3cretword"}, ["password=***"]),
    ((*STUDY, "--storage", f"{PG}?sslpassword=s3cretword"), {}, ["--storage", "without"]),
    (STUDY, {"MLFLOW_TRACKING_URI": "http://s3cretword@h"}, ["MLFLOW_TRACKING_URI", "***@h"]),
    (STUDY, {"IGDIT_STORE": "s3://s3cretword@bucket/x"}, ["IGDIT_STORE", "***@bucket"]),
    (STUDY, {"IGDIT_STORE": "s3://bucket/x?secret=s3cretword"}, ["IGDIT_STORE", "secret=***"]),
    ((*STUDY, "--env", "AWS_ENDPOINT_URL=http://s3cretword@h"), {}, ["AWS_ENDPOINT_URL would be"]),
    ((*STUDY, "--address", "http://h:1/?token=s3cretword"), {}, ["--address", "without a user"]),
    ((*STUDY, "--address", "ray://u:s3cretword@h:1"), {}, ["--address", "u:***@h"]),
    ((*STUDY, "--env", "=http://s3cretword@h"), {}, ["--env", "***@h"]),
    (STUDY, {"IGDIT_SECRETS": "secrets"}, ["IGDIT_SECRETS", "absolute", "'secrets'"]),
    ((*STUDY, "--env", "A"), {}, ["--env", "NAME=VALUE", "'A'"]),
    ((*STUDY, "--env", "PGPASSWORD=s3cretword"), {}, ["PGPASSWORD", "IGDIT_SECRETS"]),
    ((*STUDY, "--env", "AWS_SECRET_ACCESS_KEY=s3cretword"), {}, ["AWS_SECRET_ACCESS_KEY"]),
    ((*STUDY, "--env", "X=s3cretword"), {"PGPASSWORD": "s3cretword"}, ["X would be readable"]),
    (("run", "/elsewhere/experiment.json"), {}, ["does not exist"]),
    (("run", "digits", "--evaluation.reference", "ref.npz"), {}, ["evaluation.reference"]),
    (("run", "digits", "--evaluation.reference", "/d/ref.npz"), {}, ["reference", "--shared"]),
]


@pytest.mark.parametrize(("words", "environment", "expected"), WRONG)
def test_what_would_fail_there_is_refused_here(
    words, environment, expected, server, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if environment.get("MLFLOW_TRACKING_URI") == "http://localhost:5000":
        words = (*words, "--address", "http://head.example:8265")
    elif "--address" not in words:
        words = (*words, "--address", server.address)
    assert igdit(*words) == 2
    out, err = capsys.readouterr()
    assert [word for word in expected if word not in err] == []
    assert "s3cretword" not in out + err
    assert "Traceback" not in err
    assert (server.sent, server.packages) == ([], {})


def test_without_an_address_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert igdit(*STUDY) == 2
    assert "RAY_API_SERVER_ADDRESS" in capsys.readouterr().err


# Reaching the cluster


def test_a_cluster_that_is_away_is_said_so(capsys):
    assert igdit(*STUDY, "--address", "http://127.0.0.1:9") == 1
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9" in err
    assert "Connection refused" in err
    assert len(err.splitlines()) == 1


def test_something_else_at_the_address_is_said_so(tmp_path, capsys):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert igdit(*STUDY, "--address", f"http://127.0.0.1:{other.server_address[1]}") == 1
        other.shutdown()
    assert "must be that of a Ray dashboard" in capsys.readouterr().err


def test_a_cluster_that_wants_a_token_says_how_to_give_it(server, capsys):
    server.token = "right"
    assert igdit(*STUDY, "--address", server.address) == 1
    err = capsys.readouterr().err
    for word in ("(401)", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"):
        assert word in err


def test_weights_that_lie_here_too_and_do_not_fit_are_refused_here(server, tmp_path, capsys):
    from tests.pipelines.conftest import tiny
    from tests.pipelines.stages.training.test_imported import write_published

    path = write_published(tmp_path / "w.pt", tiny(model={"width": 32}))
    words = ("run", "digits", "--train.from-checkpoint", str(path), "--shared")
    assert igdit(*words, "--address", server.address) == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert server.sent == []


def test_a_token_file_that_is_not_there_is_refused(server, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/none/such")
    assert igdit(*STUDY, "--address", server.address) == 2
    assert "RAY_AUTH_TOKEN_PATH must be a file, but got '/none/such'" in capsys.readouterr().err


# Sending


def test_a_study_is_sent_and_followed_to_its_end(server, capsys, project):
    words = (*STUDY, "--trials", "3", "--python", "/opt/my env/bin/python", "--shared")
    assert igdit(*words, "--address", server.address) == 0
    (job,) = server.sent
    assert job["submission_id"] == "igdit-study-digits-1"
    assert job["entrypoint"] == (
        "'/opt/my env/bin/python' -m pipelines study digits --yes --trials 3"
    )
    assert len(job["metadata"].pop("igdit.identity")) == 12
    assert job["metadata"] == {"igdit.kind": "study", "igdit.name": "digits", "igdit.attempt": "1"}
    environment = job["runtime_env"]["env_vars"]
    assert ON_CLUSTER.items() <= environment.items()
    assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == "30"
    assert environment["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] == "1"
    assert not {"GLOO_SOCKET_IFNAME", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & set(environment)
    assert job["entrypoint_num_cpus"] == 0
    assert job["runtime_env"]["working_dir"].startswith("gcs://")
    assert len(server.packages) == 1
    out = capsys.readouterr().out
    assert "Submitted igdit-study-digits-1" in out
    assert "hello\ndone\n" in out
    assert "igdit-study-digits-1: SUCCEEDED" in out


def test_a_run_is_told_apart_by_what_it_is(server, project):
    assert igdit("run", "digits", "--train.steps", "700", "--address", server.address) == 0
    assert igdit("run", "digits", "--address", server.address) == 0
    key = Graph(get_experiment("digits")).run_key[:8]
    first, second = (job["submission_id"] for job in server.sent)
    assert second == f"igdit-run-digits-{key}-1"
    assert first != second


def move_reference(path: Path, target: Path) -> None:
    """Write reference statistics with another mean."""
    with np.load(path) as found:
        np.savez(target, mu=found["mu"] + 1, sigma=found["sigma"])


@pytest.mark.parametrize("lies_here", [True, False])
def test_runs_of_other_files_are_other_jobs(lies_here, server, tmp_path):
    """By content where this machine reads the files, else by their paths."""
    from tests.pipelines.stages.training.test_imported import write_published, write_reference

    folder = tmp_path if lies_here else Path("/none/such")
    files = {name: str(folder / name) for name in ("a.pt", "b.pt", "a.npz", "b.npz")}
    if lies_here:
        for seed, name in enumerate(("a.pt", "b.pt")):
            write_published(tmp_path / name, get_experiment("digits"), seed)
        write_reference(tmp_path / "a.npz")
        move_reference(tmp_path / "a.npz", tmp_path / "b.npz")
    for checkpoint, reference in (
        ("a.pt", "a.npz"),
        ("b.pt", "a.npz"),
        ("a.pt", "b.npz"),
        ("a.pt", "a.npz"),
    ):
        words = (
            "--train.from-checkpoint",
            files[checkpoint],
            "--evaluation.reference",
            files[reference],
            "--shared",
            "--detach",
            "--address",
            server.address,
        )
        assert igdit("run", "digits", *words) == 0
    sent = [job["submission_id"] for job in server.sent]
    assert len(set(sent)) == len(sent) == 3, "the fourth is the first one, which runs"
    if lies_here:
        digits = get_experiment("digits")
        named = dataclasses.replace(
            digits,
            train=dataclasses.replace(digits.train, from_checkpoint=files["a.pt"]),
            evaluation=dataclasses.replace(digits.evaluation, reference=files["a.npz"]),
        )
        assert sent[0] == f"igdit-run-digits-{Graph(resolve(named)).run_key[:8]}-1"


def test_the_same_file_under_another_path_is_the_same_job(server, tmp_path):
    from tests.pipelines.stages.training.test_imported import write_reference

    write_reference(tmp_path / "a.npz")
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    for kind, option in (
        ("run", "--evaluation.reference"),
        ("study", "--experiment.evaluation.reference"),
    ):
        yes = ["--yes"] * (kind == "study")
        for name in ("a.npz", "b.npz"):
            words = (kind, "digits", option, str(tmp_path / name), "--shared", "--detach", *yes)
            assert igdit(*words, "--address", server.address) == 0
        move_reference(tmp_path / "b.npz", tmp_path / "a.npz")
        assert (
            igdit(
                kind,
                "digits",
                option,
                str(tmp_path / "a.npz"),
                "--shared",
                "--detach",
                *yes,
                "--address",
                server.address,
            )
            == 0
        )
        shutil.copy(tmp_path / "b.npz", tmp_path / "a.npz")
    assert [job["submission_id"][:9] for job in server.sent] == ["igdit-run"] * 2 + [
        "igdit-stu"
    ] * 2


def test_an_experiments_file_is_named_as_the_job_sees_it(server, project, monkeypatch):
    (project / "sub" / "mine.json").write_text(experiment_to_json(tiny()))
    monkeypatch.chdir(project / "sub")
    assert igdit("run", "mine.json", "--address", server.address) == 0
    assert server.sent[0]["entrypoint"] == "python -m pipelines run sub/mine.json"


@pytest.mark.parametrize("where", ["runs/mine.json", "../mine.json"])
def test_an_experiments_file_that_is_not_uploaded_is_refused(where, server, project, capsys):
    path = project / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(experiment_to_json(tiny()))
    assert igdit("run", where, "--address", server.address) == 2
    assert "uploaded" in capsys.readouterr().err
    assert server.sent == []


def test_the_next_number_that_is_free_is_taken(server):
    server.add("igdit-study-digits-1", "FAILED", kind="study", name="digits")
    server.add("igdit-study-digits-10", "STOPPED", kind="study", name="digits")
    server.add("igdit-study-digits-old-99", "SUCCEEDED", kind="study", name="digits-old")
    server.taken = {"igdit-study-digits-11", "igdit-study-digits-12"}
    assert igdit(*STUDY, "--address", server.address) == 0
    assert [job["submission_id"] for job in server.sent] == ["igdit-study-digits-13"]


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_what_runs_is_followed_instead_of_sent_again(server, status, capsys):
    assert igdit(*STUDY, "--address", server.address) == 0
    identity = server.sent.pop()["metadata"]["igdit.identity"]
    server.add("igdit-study-digits-3", status, kind="study", name="digits", identity=identity)
    server.add("igdit-study-other-1", "RUNNING", kind="study", name="other")
    assert igdit(*STUDY, "--address", server.address) == 0
    assert server.sent == []
    out = capsys.readouterr().out
    assert f"igdit-study-digits-3 is already {status.lower()}: nothing was submitted" in out
    assert "done" in out
    server.jobs["igdit-study-digits-3"]["status"] = status
    assert igdit(*STUDY, "--again", "--address", server.address) == 0
    assert [job["submission_id"] for job in server.sent] == ["igdit-study-digits-4"]


OTHERS = [
    ({"IGDIT_HOME": "/scratch/bob"}, ()),
    ({"IGDIT_STORE": "s3://bucket/bob"}, ()),
    ({"IGDIT_STUDY_STORAGE": "postgresql+psycopg://igdit@db/bob"}, ()),
    ({}, ("--storage", "postgresql+psycopg://igdit@db/bob")),
    ({}, ("--seed", "5")),
    ({}, ("--experiment.train.steps", "500")),
]


@pytest.mark.parametrize(("environment", "words"), OTHERS)
def test_somebody_elses_job_of_that_name_is_not_followed(
    environment, words, server, monkeypatch, capsys
):
    assert igdit(*STUDY, "--detach", "--address", server.address) == 0
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert igdit(*STUDY, *words, "--address", server.address) == 0
    sent = [job["submission_id"] for job in server.sent]
    assert sent == ["igdit-study-digits-1", "igdit-study-digits-2"]
    out = capsys.readouterr().out
    assert "Note: igdit-study-digits-1 is running" in out
    assert "igdit-study-digits-2: SUCCEEDED" in out


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("--trials", "50", "--parallel", "2")),
        ({"IGDIT_HOME": "/scratch/igdit/", "IGDIT_STORE": "s3://bucket/store/"}, ()),
        ({"IGDIT_STUDY_STORAGE": ""}, ("--storage", PG)),
        ({}, ("--experiment.resources.num-workers", "1")),
    ],
)
def test_the_same_in_other_words_is_followed(environment, words, server, monkeypatch, capsys):
    assert igdit(*STUDY, "--detach", "--address", server.address) == 0
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert igdit(*STUDY, *words, "--address", server.address) == 0
    assert len(server.sent) == 1
    assert "Note: igdit" not in capsys.readouterr().out


def test_a_run_into_another_store_is_another(server, monkeypatch, capsys):
    words = ("run", "digits", "--address", server.address)
    assert igdit(*words, "--detach") == igdit(*words, "--detach") == 0
    assert len(server.sent) == 1
    monkeypatch.setenv("IGDIT_STORE", "s3://bucket/bob")
    assert igdit(*words) == 0
    first, second = (job["submission_id"] for job in server.sent)
    assert (first[-2:], second) == ("-1", first[:-1] + "2")
    assert f"Note: {first} is running" in capsys.readouterr().out


def test_a_dry_run_shows_everything_and_sends_nothing(server, capsys, monkeypatch):
    monkeypatch.setenv("IGDIT_SECRETS", "/etc/igdit/secrets")
    assert igdit("study", "digits", "--dry-run", "--address", server.address) == 0
    out = capsys.readouterr().out
    for word in (
        "igdit-study-digits-N",
        "python -m pipelines study digits",
        "1 files",
        "IGDIT_STORE=s3://bucket/store",
        "IGDIT_SECRETS=/etc/igdit/secrets",
        "Nothing was submitted",
    ):
        assert word in out
    assert (server.sent, server.packages) == ([], {})


def test_detached_it_is_not_waited_for(server, capsys):
    assert igdit(*STUDY, "--detach", "--address", server.address) == 0
    out = capsys.readouterr().out
    assert f"ray job stop --address {server.address} igdit-study-digits-1" in out
    assert "hello" not in out


# Following


@pytest.mark.parametrize(
    ("end", "code"),
    [(("FAILED", 7), 7), (("FAILED", None), 1), (("STOPPED", None), 130), (("SUCCEEDED", 0), 0)],
)
def test_the_jobs_end_is_that_of_the_command(server, end, code, capsys):
    server.ends["igdit-study-digits-1"] = end
    assert igdit(*STUDY, "--address", server.address) == code
    assert f"igdit-study-digits-1: {end[0]}" in capsys.readouterr().out


def test_a_lost_connection_is_taken_up_where_it_was_lost(server, capsys):
    server.logs = [["one\n", "tw"], ["one\n"], ["one\ntwo\nthree\n"]]
    assert igdit(*STUDY, "--address", server.address) == 0
    out = capsys.readouterr().out
    assert "one\ntwo\nthree\n" in out
    assert out.count("one") == out.count("three") == 1


def test_a_cluster_that_comes_back_is_followed_on(capsys, monkeypatch):
    serving, pauses = FakeJobServer(logs=[["one\n"], ["one\ntwo\n"]]), []
    with serving:
        assert igdit(*STUDY, "--detach", "--address", serving.address) == 0
        server = JobServer(serving.address)

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            serving.__enter__()

    monkeypatch.setattr(submitting, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))
    try:
        assert submitting.watch(server, "igdit-study-digits-1", make_console()) == 0
    finally:
        serving.__exit__()
    out = capsys.readouterr().out
    assert "lost the connection to the cluster" in out
    assert "reconnected to igdit-study-digits-1" in out
    assert out.count("one") == out.count("two") == 1


def test_a_cluster_that_stays_away_is_given_up(monkeypatch):
    with FakeJobServer(logs=[[]]) as serving:
        server = JobServer(serving.address)
    clock = iter(range(0, 10000, 100))
    monkeypatch.setattr(
        submitting, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(clock))
    )
    with pytest.raises(JobServerError, match="must answer"):
        submitting.watch(server, "igdit-study-digits-1", make_console())


def test_a_job_that_is_quiet_is_looked_at(server, monkeypatch, capsys):
    """A connection over which nothing comes any more does not hold the command for ever."""
    monkeypatch.setattr("pipelines.submit.ray_jobs.QUIET_SECONDS", 0.05)

    async def silent(_):
        server.jobs["igdit-study-digits-1"]["status"] = "SUCCEEDED"
        await asyncio.sleep(60)
        yield "never"

    monkeypatch.setattr(JobServer, "tail", lambda self, submission_id: silent(submission_id))
    assert igdit(*STUDY, "--address", server.address) == 0
    assert "SUCCEEDED" in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(server, capsys, monkeypatch):
    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(JobServer, "follow", interrupted)
    assert igdit(*STUDY, "--address", server.address) == 130
    out = capsys.readouterr().out
    assert "igdit-study-digits-1 keeps running" in out
    assert "ray job stop" in out
    assert server.jobs["igdit-study-digits-1"]["status"] == "RUNNING"


# What is uploaded


def test_what_is_counted_is_what_ray_packs(project, server):
    """Ignore files at every level, our excludes, and the size to the last header."""
    for name, text in {
        ".gitignore": "*.tmp\n/big\n",
        "sub/.rayignore": "inner\n",
        "sub/a.py": "a",
        "b.tmp": "x",
        "sub/inner/c": "x",
        "big/d": "x" * 1000,
        "runs/e": "x",
        "tests/f": "x",
        ".venv/g": "x",
        "sub/tests/h": "kept",
        "pipelines/__pycache__/i": "x",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    files = files_to_upload(project, EXCLUDES)
    assert set(files) == {
        ".gitignore",
        "pipelines/__main__.py",
        "sub/.rayignore",
        "sub/a.py",
        "sub/tests/h",
    }
    assert igdit(*STUDY, "--address", server.address) == 0
    (size,) = server.packages.values()
    assert sum(files.values()) < size < sum(files.values()) + 300 * len(files) + 200
    from ray._private.runtime_env.packaging import create_package

    packed = project.parent / "packed.zip"
    create_package(str(project), packed, include_gitignore=True, excludes=list(EXCLUDES))
    with zipfile.ZipFile(packed) as archive:
        names = {info.filename for info in archive.infolist() if not info.is_dir()}
    assert names == set(files)


def test_files_of_secrets_are_kept_back_and_code_about_them_is_not(project, server):
    hidden = (
        ".env",
        ".env.local",
        "sub/.env",
        "tls.pem",
        "id_rsa",
        "id_rsa.pub",
        "secrets",
        "secrets.env",
        "sub/secrets.json",
        ".pgpass",
        ".aws/credentials",
    )
    for name in (*hidden, "pipelines/common/redaction.py", "environment.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("x")
    assert set(files_to_upload(project, EXCLUDES)) == {
        "pipelines/__main__.py",
        "pipelines/common/redaction.py",
        "environment.py",
    }


@pytest.mark.parametrize(
    "variable",
    [
        "IGDIT_SECRETS",
        "PGPASSFILE",
        "RAY_AUTH_TOKEN_PATH",
        "AWS_SHARED_CREDENTIALS_FILE",
        "--secrets",
    ],
)
@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_named_as_secret_is_not_uploaded(
    variable, link, project, server, monkeypatch, capsys
):
    file = project / "sub" / "hush"
    file.write_text("s3cretword")
    named = project.parent / "link" if link else file
    if link:
        named.symlink_to(file)
    words = [variable, str(named)] if variable == "--secrets" else []
    if not words:
        monkeypatch.setenv(variable, str(named))
    assert igdit(*STUDY, *words, "--address", server.address) == 2
    err = capsys.readouterr().err
    assert "sub/hush must not be uploaded" in err
    assert "s3cretword" not in err
    assert (server.sent, server.packages) == ([], {})
    (project / ".rayignore").write_text("hush\n")
    assert igdit(*STUDY, *words, "--dry-run", "--address", server.address) == 0


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [
        ("# mine\nexport PGPASSWORD='s3cretword'\nA=1\n", 0o600, 2),
        ("[default]\naws_secret_access_key = s3cretword\n", 0o400, 2),
        ("PGPASSWORD=s3cretword\n", 0o644, 0),  # no secret to whoever reads this folder
        ("RAY_AUTH_TOKEN_PATH=/etc/token\nA=1\nPGPASSWORD=\n", 0o600, 0),
        ("A text that names\nTOKEN=x\n", 0o600, 0),
    ],
)
def test_a_private_file_that_sets_secrets_is_not_uploaded(
    text, mode, code, project, server, capsys
):
    file = project / "settings"
    file.write_text(text)
    file.chmod(mode)
    assert igdit(*STUDY, "--dry-run", "--address", server.address) == code
    err = capsys.readouterr().err
    assert ("settings must not be uploaded" in err) == bool(code)
    assert "s3cretword" not in err


def test_too_large_a_folder_is_refused_with_what_is_large(project, server, capsys, monkeypatch):
    monkeypatch.setattr(submitting, "MAX_UPLOAD_BYTES", 2**20)
    (project / "sub" / "weights.bin").write_bytes(bytes(2**20))
    assert igdit(*STUDY, "--address", server.address) == 2
    err = capsys.readouterr().err
    assert "at most 1 MiB" in err
    assert "1.0 MiB  sub/weights.bin" in err
    assert ".rayignore" in err
    assert (server.sent, server.packages) == ([], {})


def test_results_in_the_folder_are_not_uploaded_under_any_name(project, server, monkeypatch):
    monkeypatch.setenv("IGDIT_HOME", str(project / "my results"))
    (project / "my results").mkdir()
    (project / "my results" / "x").write_text("x")
    assert igdit(*STUDY, "--address", server.address) == 0
    assert "/my results" in server.sent[0]["runtime_env"]["excludes"]


def test_the_folder_is_the_projects_wherever_the_command_is_given(project, monkeypatch, capsys):
    monkeypatch.chdir(project / "sub")
    assert igdit(*STUDY, "--dry-run", "--address", "http://127.0.0.1:9") == 0
    assert f"Folder      {project}: " in capsys.readouterr().out


def test_odd_names_make_plain_ids():
    made = Submission("study", "a b", "", "x", (), "python", {}, None, ())
    assert made.prefix == "igdit-study-a-b-"
