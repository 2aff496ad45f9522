"""Runners without Ray's processes: settings, stopping, and the group's store on one address."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context

import pytest

from experiments import Resources
from pipelines.common.errors import StoppedError
from pipelines.execution import machine
from pipelines.execution.runners import InlineRunner
from pipelines.stages.jobs import TrainJob, TrainProgress, Work
from tests.equipment.processes import is_loopback, listeners


def output_of(code: str, **environment: str) -> str:
    names = ("RAY_", "MLFLOW_", "DO_NOT_TRACK")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | environment,
    )
    return run.stdout.strip()


def test_ray_reports_no_usage():
    code = (
        "from pipelines.execution.ray_env import prepare_ray_environment\n"
        "prepare_ray_environment()\n"
        "from ray._common.usage import usage_lib\nprint(usage_lib.usage_stats_enabled())"
    )
    assert output_of(code) == "False"


def test_mlflow_reports_no_usage():
    code = (
        "from pipelines.tracking.client import import_mlflow\nimport_mlflow()\n"
        "from mlflow.telemetry import get_telemetry_client\nprint(get_telemetry_client())"
    )
    assert output_of(code) == "None"


def test_settings_given_by_the_user_stay():
    code = (
        "import os\nfrom pipelines.execution.runners import prepare_ray_environment\n"
        "prepare_ray_environment()\n"
        "print(os.environ['GLOO_SOCKET_IFNAME'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    assert output_of(code, GLOO_SOCKET_IFNAME="eth7") == "eth7 0"


def test_a_cluster_is_not_told_to_stay_on_loopback():
    code = (
        "import os\nfrom pipelines.execution.runners import prepare_ray_environment\n"
        "prepare_ray_environment()\nprint('GLOO_SOCKET_IFNAME' in os.environ)"
    )
    assert output_of(code, RAY_ADDRESS="10.0.0.1:6379") == "False"


def test_a_stopped_inline_training_ends_at_its_next_report():
    def training(job, rank, world_size, post):
        for step in range(1, 10):
            post(TrainProgress(step, 10, 0.5, 1.0))

    runner, reported = InlineRunner(Work(build=None, train=training)), []

    def post(progress):
        reported.append(progress.step)
        if progress.step == 3:
            runner.stop()

    with pytest.raises(StoppedError):
        runner.train(TrainJob("store", "{}", (10,)), post)
    assert reported == [1, 2, 3]


def _member(rank: int, pipe) -> None:
    """A process of a group of two: says where it listens and what a sum gives."""
    import torch
    from torch import distributed

    from ig_core.training.process_group import join_group, serve_store

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if rank == 0:
        pipe.send(serve_store("127.0.0.1", 2))
    address = pipe.recv()
    join_group(address, rank, 2, "gloo", 60)
    value = torch.tensor([rank + 1.0])
    distributed.all_reduce(value)
    pipe.send((value.item(), listeners([os.getpid()])))
    distributed.destroy_process_group()


def test_the_groups_store_listens_on_the_given_address_only():
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    members = [context.Process(target=_member, args=(rank, pipes[rank][1])) for rank in range(2)]
    for member in members:
        member.start()
    try:
        address = pipes[0][0].recv()
        for ours, _ in pipes:
            ours.send(address)
        answers = [ours.recv() for ours, _ in pipes]
    finally:
        for member in members:
            member.join(60)
            member.kill()
    assert [total for total, _ in answers] == [3.0, 3.0]
    addresses = set.union(*(found for _, found in answers))
    assert addresses
    assert all(map(is_loopback, addresses))


@pytest.mark.parametrize(
    ("resources", "option"),
    [
        (Resources(num_workers=5), "--resources.num-workers 4"),
        (Resources(num_workers=3, cpus_per_worker=2), "--resources.num-workers 2"),
        (Resources(num_workers=1, cpus_per_worker=5), "--resources.cpus-per-worker 4"),
    ],
)
def test_more_cpus_than_the_machine_has_are_refused_before_ray_starts(
    resources, option, monkeypatch, tmp_path
):
    from pipelines.execution import ray_tasks as ray_runner

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "cores_here", lambda: 4)
    monkeypatch.setattr(ray_runner.ray, "init", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(ValueError, match=f"this machine has 4: {option} "):
        ray_runner._connect(resources, tmp_path, 1)


def test_as_many_cpus_as_the_machine_has_are_taken(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "cores_here", lambda: 4)
    for resources in (
        Resources(num_workers=4),
        Resources(num_workers=9, min_workers=4),
        Resources(num_workers=1, cpus_per_worker=9, runner="inline"),
    ):
        machine.require_cores(resources)
