"""The cluster's files against the schemas and field lists that there are, and our own rules."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.processes import free_port
from pipelines.commands.study import parse_study
from pipelines.submit.job import JOB_SETTINGS, SECRET_NAME, check_addresses
from tests.equipment.processes import kill_tree, wait_for

CLUSTER = Path(__file__).parent.parent / "cluster"
LOCK = (CLUSTER.parent / "requirements.lock").read_text()
RAY_VERSION = re.search(r"^ray==(\S+)$", LOCK, re.MULTILINE)[1]

# ray up: the schema is in Ray's package


@pytest.fixture(scope="module")
def ray_up():
    return yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())


def test_ray_up_keeps_to_rays_schema_before_and_after_its_defaults(ray_up):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(ray_up, schema)
    prepared = prepare_config(json.loads(json.dumps(ray_up)))
    validate_config(prepared)
    (nodes,) = prepared["available_node_types"].values()
    assert nodes["min_workers"] == nodes["max_workers"] == len(ray_up["provider"]["worker_ips"])


def test_ray_up_starts_ray_with_a_token_and_its_dashboard_on_loopback(ray_up):
    head, worker = ray_up["head_start_ray_commands"][-1], ray_up["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "IGDIT_SECRETS=" in command
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in ray_up["file_mounts"]


# RayJob: fields as KubeRay's API reference lists them (v1, 1.6), Kubernetes' own as of 1.28

POD = {
    "terminationGracePeriodSeconds": int,
    "automountServiceAccountToken": bool,
    "containers": list,
    "volumes": list,
}
TEMPLATE = {"spec": POD}
FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "entrypointNumCpus": (int, float),
        "submissionMode": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "runtimeEnvYAML": str,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "headGroupSpec": {"serviceType": str, "rayStartParams": dict, "template": TEMPLATE},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": dict,
                    "template": TEMPLATE,
                }
            ],
        },
    },
}
CONTAINER = {
    "name": str,
    "image": str,
    "envFrom": list,
    "env": list,
    "ports": list,
    "volumeMounts": list,
    "resources": {"requests": dict, "limits": dict},
    "securityContext": {"allowPrivilegeEscalation": bool, "runAsNonRoot": bool},
}


def check_fields(value, expected, path="rayjob"):
    """Every field is one of those listed, and of its type."""
    if isinstance(expected, dict):
        assert isinstance(value, dict), path
        assert value.keys() <= expected.keys(), path
        for name, inner in value.items():
            check_fields(inner, expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        for item in value:
            check_fields(item, expected[0], f"{path}[]")
    else:
        assert isinstance(value, expected), path
        assert expected is bool or not isinstance(value, bool), path


@pytest.fixture(scope="module")
def rayjob():
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())


@pytest.fixture
def pods(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.fixture
def environment(rayjob):
    return yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]


def test_rayjob_has_documented_fields_only(rayjob, pods):
    check_fields(rayjob, FIELDS)
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", rayjob["metadata"]["name"])
    assert len(rayjob["metadata"]["name"]) <= 47
    for pod in pods:
        for container in pod["containers"]:
            check_fields(container, CONTAINER)
        named = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert mounts == named
    for group in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_rayjob_runs_the_ray_of_the_lock_on_one_image(rayjob, pods):
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY_VERSION
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert len(images) == 1
    assert not images.pop().endswith(":latest")


def test_rayjob_wants_a_token_and_holds_no_secret(rayjob, pods, environment):
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for pod in pods:
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "igdit-secrets"}}]
        assert not any(SECRET_NAME.search(variable["name"]) for variable in container["env"])
        assert container["securityContext"]["runAsNonRoot"] is True
    assert not any(SECRET_NAME.search(name) for name in environment)
    assert rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_rayjob_gives_a_study_addresses_that_a_submission_would_take(rayjob, environment):
    words = shlex.split(rayjob["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "pipelines", "study"]
    command = parse_study(words[4:])
    assert command.options.yes
    assert command.study.experiment.resources.use_gpu
    assert rayjob["metadata"]["name"].startswith(f"igdit-study-{command.study.name}-")
    assert all(isinstance(value, str) for value in environment.values())
    check_addresses(environment, None, "http://head:8265", shared=False, study=True)
    ours = {name for name in environment if not name.startswith(("IGDIT_", "MLFLOW_"))}
    assert {name: environment[name] for name in ours}.items() <= JOB_SETTINGS.items()


def test_rayjob_waits_longer_for_an_end_than_a_job_that_is_stopped(pods, environment):
    wait = int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    assert all(pod["terminationGracePeriodSeconds"] > wait for pod in pods)


def test_rayjob_caches_less_than_its_volumes_hold(pods, environment):
    """A pod whose volume is too full is evicted; a variable of the job would go before these."""
    assert "IGDIT_CACHE_GIB" not in environment
    for pod in pods:
        (container,) = pod["containers"]
        set_there = {variable["name"]: variable["value"] for variable in container["env"]}
        (limit,) = (v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "cache")
        assert float(set_there["IGDIT_CACHE_GIB"]) <= 0.75 * float(limit.removesuffix("Gi"))


# Slurm


def test_the_slurm_script_is_bash_and_asks_for_what_it_needs(tmp_path):
    script = CLUSTER / "slurm.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    bare = {"PATH": os.environ["PATH"]}
    for words, expected in (([], "needs the words"), (["run", "digits"], "IGDIT_HOME must be")):
        run = subprocess.run(
            ["bash", script, *words],
            env=bare,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert run.returncode != 0
        assert expected in run.stderr


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo 127.0.0.2; else exec "$@"; fi
"""


@pytest.mark.slow
def test_the_slurm_script_runs_a_command_on_its_nodes_and_leaves_nothing(tmp_path, short_folder):
    """Two nodes of a Slurm that is pretended; Ray and the command are real."""
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\nprintf 'n1\\nn2\\n'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    home, job = tmp_path / "home", str(os.getpid())
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "IGDIT_"))}
    environment = inherited | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "IGDIT_PYTHON": sys.executable,
        "IGDIT_HOME": str(home),
        "IGDIT_RAY_PORT": str(free_port()),
        "IGDIT_RAY_TMP": str(short_folder),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "0",
        "PYTHONPATH": str(CLUSTER.parent),
    }
    words = [
        "run",
        "digits",
        "--train.steps",
        "20",
        "--train.checkpoint-every",
        "10",
        "--train.batch-size",
        "64",
        "--evaluation.extractor-epochs",
        "1",
        "--evaluation.num-samples",
        "200",
        "--evaluation.curve-samples",
        "100",
        "--evaluation.shard-size",
        "100",
        "--evaluation.groups",
        "10",
        "--resources.num-workers",
        "1",
        "--sampler.num-steps",
        "2",
    ]
    script = subprocess.Popen(
        ["bash", CLUSTER / "slurm.sh", *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        token = wait_for(lambda: next(home.glob(f"slurm/{job}/token"), None))
        assert token.stat().st_mode & 0o077 == 0
        out, _ = script.communicate(timeout=400)
    finally:
        kill_tree(script.pid)
    assert script.returncode == 0, out
    assert "FID by internal guidance scale" in out
    assert list((home / "slurm").iterdir()) == []
