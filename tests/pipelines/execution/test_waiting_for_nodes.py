"""A cluster whose nodes are to come: what a training needs is waited for, or refused at once."""

from __future__ import annotations

import threading

import pytest

from experiments import Resources
from pipelines.common.errors import StoppedError
from pipelines.execution.ray_env import prepare_ray_environment
from pipelines.execution.session import RunnerSession
from pipelines.stages.build import WORK
from tests.equipment.processes import wait_for


class Cluster:
    """A Ray that has more at each look, and what its autoscaler was asked for."""

    def __init__(self, looks: list[dict[str, float]]) -> None:
        self.looks, self.requests = looks, []

    def resources(self) -> dict[str, float]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.requests.append(bundles)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Factory: a runner on a cluster that is connected already."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    prepare_ray_environment()
    from pipelines.execution import ray_tasks as ray_runner

    def make(cluster: Cluster, given_up: threading.Event | None = None, **resources):
        monkeypatch.setattr(ray_runner.ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray_runner.ray, "cluster_resources", cluster.resources)
        monkeypatch.setattr(ray_runner, "request_resources", cluster.request)
        return ray_runner.RayRunner(WORK, Resources(**resources), tmp_path, given_up=given_up)

    return make


def test_too_few_nodes_are_refused_at_once_with_what_waits_for_more(start):
    cluster = Cluster([{"CPU": 8, "GPU": 1}])
    expected = r"2 GPUs to train on, but the cluster has 1; --resources\.wait-minutes waits"
    with pytest.raises(ValueError, match=expected):
        start(cluster, num_workers=2, use_gpu=True)
    assert cluster.requests == []


def test_an_autoscaler_is_asked_for_all_workers_and_the_fewest_are_waited_for(start, caplog):
    cluster = Cluster([{}, {"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 8.0}])
    start(cluster, num_workers=4, min_workers=2, cpus_per_worker=2, wait_minutes=1)
    # Two workers of two CPUs are enough; then what is trained keeps the nodes.
    assert cluster.looks == [{"CPU": 8.0}]
    assert cluster.requests == [[{"CPU": 2, "GPU": 0}] * 4 + [{"CPU": 1, "GPU": 0}], []]
    assert "waiting up to 1 minutes for nodes: a training needs 4 CPUs" in caplog.text


def test_nodes_that_do_not_come_in_time_end_it_by_name(start):
    cluster = Cluster([{"CPU": 1}])
    with pytest.raises(ValueError, match=r"2 CPUs to train on, but the cluster has 1 after 0\.001"):
        start(cluster, num_workers=2, wait_minutes=0.001)
    assert cluster.requests[-1] == []


def test_who_gives_up_is_not_kept_waiting(start):
    given_up, cluster = threading.Event(), Cluster([{}])
    given_up.set()
    with pytest.raises(StoppedError):
        start(cluster, given_up, num_workers=2, wait_minutes=60)
    assert len(cluster.requests) == 2
    assert cluster.requests[-1] == []


def test_a_session_that_is_given_up_keeps_no_slot_waiting(start, tmp_path, monkeypatch):
    """Else a study that is stopped would wait for its nodes, and not for what it was doing."""
    start(Cluster([{"CPU": 8}]))
    from pipelines.execution import ray_tasks as ray_runner

    empty = Cluster([{}])
    monkeypatch.setattr(ray_runner.ray, "cluster_resources", empty.resources)
    monkeypatch.setattr(ray_runner, "request_resources", empty.request)
    session = RunnerSession(WORK, Resources(num_workers=2, wait_minutes=60), tmp_path, 2)
    raised = []

    def ask() -> None:
        try:
            session.runner()
        except StoppedError as error:
            raised.append(error)

    slots = [threading.Thread(target=ask) for _ in range(2)]
    for slot in slots:
        slot.start()
    wait_for(lambda: empty.requests)
    session.give_up()
    for slot in slots:
        slot.join(30)
    assert len(raised) == 2
    session.close()


def test_a_time_below_zero_is_refused():
    with pytest.raises(ValueError, match="wait_minutes must be at least 0, but got -1"):
        Resources(wait_minutes=-1)
