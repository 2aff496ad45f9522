"""Submissions on a real cluster: three Ray nodes on this machine, MLflow, PostgreSQL if it is here.

The nodes need a token; passwords are on the nodes only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from cluster.processes import descendants
from tests.equipment.processes import LOOPBACK, listeners, wait_for

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "--trials",
    "4",
    "--scales-per-training",
    "2",
    "--experiment.train.steps",
    "200",
    "--experiment.train.checkpoint-every",
    "50",
    "--experiment.resources.num-workers",
    "1",
    "--experiment.evaluation.num-samples",
    "200",
    "--experiment.evaluation.curve-samples",
    "100",
    "--experiment.evaluation.shard-size",
    "100",
    "--experiment.evaluation.groups",
    "10",
    "--experiment.evaluation.extractor-epochs",
    "1",
    "--yes",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    # Not below pytest's folder: paths of Ray's sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="ig", dir="/tmp"))
    made = LocalCluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("IGDIT_", "RAY_", "MLFLOW_"))]:
            patch.delenv(name)
        services = ("postgres", "mlflow") if shutil.which("initdb") else ("mlflow",)
        made.start(3, 1, services)
        try:
            yield made
        finally:
            made.stop()
    shutil.rmtree(folder, ignore_errors=True)


def command(cluster: LocalCluster, *words: str, **changes: str) -> subprocess.Popen:
    """A program of this environment, as a client of the cluster."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("IGDIT_", "MLFLOW_"))}
    environment = {**inherited, **cluster.client_environment, **changes}
    return subprocess.Popen(
        words,
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, seconds: float = 500) -> str:
    out, _ = process.communicate(timeout=seconds)
    return out


def submit(cluster: LocalCluster, *words: str) -> subprocess.Popen:
    return command(
        cluster,
        sys.executable,
        "-m",
        "pipelines",
        "submit",
        "--shared",
        "--python",
        sys.executable,
        *words,
    )


def ray(cluster: LocalCluster, *words: str) -> str:
    return finish(command(cluster, sys.executable, "-m", "ray.scripts.scripts", "job", *words))


def log(cluster: LocalCluster, submission_id: str) -> str:
    """The job's log, as it lies on the head."""
    files = list(cluster.folder.glob(f"ray/session_*/logs/job-driver-{submission_id}.log"))
    return files[0].read_text() if files else ""


def wait_for_log(cluster: LocalCluster, submission_id: str, text: str, sender=None) -> None:
    """Wait until the job says something; at once an error if whoever sent it gave up."""

    def said() -> bool:
        if sender is not None and sender.poll() is not None:
            pytest.fail(finish(sender) + log(cluster, submission_id))
        return text in log(cluster, submission_id)

    wait_for(said, 400)


def states(cluster: LocalCluster, study: str) -> list[str]:
    """States of a study's trials, by their numbers."""
    import optuna

    url = cluster.client_environment.get("IGDIT_STUDY_STORAGE")
    if url:
        password = cluster.secrets.read_text().rpartition("PGPASSWORD=")[2].strip()
        url = url.replace("igdit@", f"igdit:{password}@", 1)
    storage = optuna.storages.RDBStorage(url or f"sqlite:///{cluster.folder}/home/study.db")
    trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    storage.remove_session()
    return [trial.state.name for trial in trials]


def trained(cluster: LocalCluster) -> dict[str, list[int]]:
    """Training -> steps it was started from."""
    found: dict[str, list[int]] = {}
    for line in (cluster.folder / "home" / "store" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "execute" and event["kind"] == "checkpoint":
            found.setdefault(event["key"], []).append(event["from_step"])
    return found


def test_a_study_that_is_stopped_is_taken_up_by_the_next_attempt(cluster):
    first = submit(cluster, "study", "digits", "--name", "clean", *SMALL)
    wait_for_log(cluster, "igdit-study-clean-1", "step 50, 100 samples\n", first)
    said = ray(cluster, "stop", "igdit-study-clean-1")
    assert "was stopped" in said, said
    out = finish(first)
    assert first.returncode == 130, out
    assert "igdit-study-clean-1: STOPPED" in out
    assert "stopped; run the same command to continue" in log(cluster, "igdit-study-clean-1")
    assert set(states(cluster, "clean")) <= {"RUNNING", "COMPLETE"}

    second = submit(cluster, "study", "digits", "--name", "clean", *SMALL)
    out = finish(second)
    assert second.returncode == 0, out
    assert "Submitted igdit-study-clean-2" in out
    assert "0 are complete" in out
    assert states(cluster, "clean") == ["COMPLETE"] * 4
    starts = list(trained(cluster).values())
    assert len(starts) == 2
    assert any(len(one) > 1 and one[1] >= 50 for one in starts), starts


def test_rays_own_command_works_and_its_short_patience_loses_nothing(cluster):
    """Without our settings Ray kills a job 3 seconds after it told it to stop."""
    client = cluster.client_environment
    names = ("IGDIT_HOME", "IGDIT_STUDY_STORAGE", "MLFLOW_TRACKING_URI")
    addresses = {name: client[name] for name in names if name in client}
    runtime_env = {"excludes": [".venv", "tests", "runs"], "env_vars": addresses}
    study = [sys.executable, "-m", "pipelines", "study", "digits", "--name", "raw", "--seed", "1"]
    for attempt in ("raw-1", "raw-2"):
        out = ray(
            cluster,
            "submit",
            "--no-wait",
            "--submission-id",
            attempt,
            "--working-dir",
            ".",
            "--runtime-env-json",
            json.dumps(runtime_env),
            "--",
            *study,
            *SMALL,
        )
        assert "submitted successfully" in out, out
        if attempt == "raw-1":
            wait_for_log(cluster, "raw-1", "step 50, 100 samples\n")
            ray(cluster, "stop", "raw-1")
    wait_for_log(cluster, "raw-2", "Done in")
    assert states(cluster, "raw") == ["COMPLETE"] * 4


def test_another_token_does_not_get_in(cluster, tmp_path):
    (tmp_path / "token").write_text("f" * 64)
    words = (sys.executable, "-m", "pipelines", "submit", "--shared", "run", "digits")
    for change, code in (
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "(403)"),
        ({"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"}, "(401)"),
    ):
        process = command(cluster, *words, **change)
        out = finish(process)
        assert process.returncode == 1, out
        assert code in out


def test_a_node_that_is_gone_is_noticed_and_can_come_back(cluster):
    address = cluster.nodes[2].address
    cluster.kill_node(2)
    wait_for(lambda: address not in cluster.alive(), 60)
    cluster.start_node(2)
    assert address in cluster.alive()


def test_a_service_that_was_away_is_back_on_its_port(cluster):
    before = cluster.mlflow.port
    cluster.mlflow.stop()
    assert not cluster.mlflow.running
    cluster.mlflow.start()
    assert (cluster.mlflow.running, cluster.mlflow.port) == (True, before)


def test_dashboard_and_services_listen_on_loopback_only(cluster):
    for service in cluster.services.values():
        addresses = listeners([service.process.pid, *descendants(service.process.pid)])
        assert addresses
        assert {address.partition(":")[0] for address in addresses} <= set(LOOPBACK)
    port = f"{cluster.dashboard_port:04X}"
    head = cluster.nodes[0].process.pid
    of_dashboard = {a for a in listeners([head, *descendants(head)]) if a.endswith(f":{port}")}
    assert of_dashboard
    assert {address.partition(":")[0] for address in of_dashboard} <= set(LOOPBACK)


def test_no_secret_is_written_down_anywhere(cluster):
    """Runs last: over all that the other tests left, and what the dashboard tells of the jobs."""
    found = cluster.secrets.read_text().splitlines() if cluster.secrets.exists() else []
    secrets = [line.partition("=")[2].encode() for line in found if "ACCESS_KEY_ID" not in line]
    secrets.append(cluster.token.read_bytes())
    assert len(secrets) == 3
    own = {cluster.token, cluster.secrets}
    for path in cluster.folder.rglob("*"):
        if path.is_file() and path not in own:
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
    for path in own:
        assert path.stat().st_mode & 0o077 == 0
    told = ray(cluster, "list")
    assert re.search("igdit-study-clean-2", told)
    assert not any(secret.decode() in told for secret in secrets)
