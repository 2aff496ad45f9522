"""States published for safety, and workers that are preempted."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from concurrent.futures import Executor, Future

import pytest
import torch

from experiments import experiment_from_json, experiment_to_json
from ig_core.checkpoints.own import load_checkpoint
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan
from pipelines.graph.trajectory import published_steps, resume_steps, starting_points, starting_step
from pipelines.stages.jobs import TrainJob, TrainOutcome
from pipelines.stages.training import publisher as saving
from pipelines.stages.training.publisher import TRAINING, Meetings, Orders
from pipelines.stages.training.worker import train_worker
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.folder import FolderStore
from tests.equipment.processes import run_processes
from tests.ig_core.training.test_loop import assert_same, leave, process_group
from tests.pipelines.conftest import damage, events, run_inline, tiny

pytestmark = pytest.mark.long

ALWAYS = {"save_minutes": 1e-9}
LONG = {"steps": 60, "checkpoint_every": 30}


class AtOnce(Executor):
    """Does what it is given, and nothing in the background."""

    def submit(self, work, *arguments):
        done = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 - as an executor does
            done.set_exception(error)
        return done


@pytest.fixture
def every_step(monkeypatch):
    """Workers meet after every step, however fast they are, and publish before the next one."""
    monkeypatch.setattr(saving, "MEETING_STEPS", 1)
    monkeypatch.setattr(saving, "ThreadPoolExecutor", lambda threads: AtOnce())


def trained(store: FolderStore, experiment, **kwargs) -> tuple[Graph, TrainOutcome]:
    """Train what is missing in this process."""
    graph = run_inline(store, experiment, [Graph(experiment).data])
    steps = tuple(node.step for node in graph.checkpoints if not store.find(node.ref))
    job = TrainJob(str(store.root), experiment_to_json(experiment), steps)
    return graph, train_worker(job, 0, 1, lambda progress: None, **kwargs)


def state_of(store: FolderStore, graph: Graph, step: int):
    return load_checkpoint(store.open(graph.checkpoint(step).ref).path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> FolderStore:
    """A store with the same training, never interrupted and without states between checkpoints."""
    store = FolderStore(tmp_path_factory.mktemp("undisturbed"))
    trained(store, tiny(train=LONG, resources={"save_minutes": None}))
    return store


def assert_same_end(store: FolderStore, other: FolderStore, graph: Graph) -> None:
    """Bit for bit."""
    assert_same(state_of(store, graph, 60), state_of(other, graph, 60))


def steps_of(found: list[dict]) -> list[int]:
    return [int(event["key"][-8:]) for event in found]


def starts(store: FolderStore) -> list[int]:
    return [event["from_step"] for event in events(store, "execute", "checkpoint")]


@pytest.mark.usefixtures("every_step")
def test_states_between_checkpoints_are_published_and_give_way_to_newer_ones(tmp_path):
    store = FolderStore(tmp_path)
    graph, outcome = trained(store, tiny(train=LONG, resources=ALWAYS))
    assert outcome == TrainOutcome(60)
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([30, 60], [])
    assert steps_of(events(store, "published", "checkpoint")) == [30, 60]
    between = [step for step in range(1, 60) if step != 30]
    assert steps_of(events(store, "published", "resume")) == between
    assert steps_of(events(store, "deleted")) == between
    assert Counter(e["kind"] for e in events(store, "deleted")) == {"resume": len(between)}


def test_states_published_for_safety_change_no_result(tmp_path, undisturbed):
    often = FolderStore(tmp_path)
    graph, _ = trained(often, tiny(train=LONG, resources=ALWAYS))
    assert events(often, "published", "resume")
    assert not events(undisturbed, "published", "resume")
    assert_same_end(often, undisturbed, graph)


@pytest.mark.usefixtures("every_step")
def test_a_state_between_checkpoints_is_no_checkpoint_for_a_run_that_wants_its_step(tmp_path):
    """Else it would be taken, and be deleted under it."""
    store, experiment = FolderStore(tmp_path), tiny(train=LONG, resources=ALWAYS)
    graph, seen = Graph(experiment), []

    def look() -> bool:
        if resume_steps(store, graph) == [25]:
            wanted = tiny(train={"steps": 25, "checkpoint_every": 25})
            plan = make_plan(store, Graph(wanted).checkpoints)
            seen.append((published_steps(store, graph), [node.step for node in plan.missing]))
        return False

    trained(store, experiment, is_preempted=look)
    assert seen == [([], [25])]


def interrupted(store: FolderStore, experiment, step: int) -> Graph:
    """Train until something breaks after the given step."""

    def fail() -> bool:
        if resume_steps(store, Graph(experiment))[-1:] >= [step]:
            raise ConnectionError("the node is gone")
        return False

    with pytest.raises(ConnectionError):
        trained(store, experiment, is_preempted=fail)
    return Graph(experiment)


@pytest.mark.usefixtures("every_step")
def test_after_a_crash_the_newest_state_is_continued_and_its_work_is_counted_once(
    tmp_path, undisturbed
):
    store, experiment = FolderStore(tmp_path), tiny(train=LONG, resources=ALWAYS)
    graph = interrupted(store, experiment, 11)
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([], [11])
    left = store.find(graph.resume(11).ref).manifest
    assert (left["work_from_step"], left["work_seconds"] > 0) == (0, True)
    assert starting_step(store, graph, [30, 60]) == 11

    trained(store, experiment)
    assert starts(store) == [0, 11]
    # What was there before this training began stays.
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([30, 60], [11])
    first, last = (store.find(graph.checkpoint(s).ref).manifest for s in (30, 60))
    assert (first["work_from_step"], last["work_from_step"]) == (0, 30)
    assert first["work_seconds"] > left["work_seconds"]

    assert_same_end(store, undisturbed, graph)


@pytest.mark.usefixtures("every_step")
def test_the_same_training_after_its_workers_were_replaced_tidies_up(tmp_path):
    store, experiment = FolderStore(tmp_path), tiny(train=LONG, resources=ALWAYS)
    graph = run_inline(store, experiment, [Graph(experiment).data])
    job = TrainJob(str(store.root), experiment_to_json(experiment), (30, 60))

    def fail() -> bool:
        if 11 in resume_steps(store, graph):
            raise ConnectionError("the node is gone")
        return False

    with pytest.raises(ConnectionError):
        train_worker(job, 0, 1, lambda progress: None, fail)
    assert store.find(graph.resume(11).ref).manifest[TRAINING] == job.id
    assert train_worker(job, 0, 1, lambda progress: None) == TrainOutcome(60)
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([30, 60], [])


@pytest.mark.usefixtures("every_step")
def test_a_checkpoint_that_was_there_before_is_continued_from_and_stays(tmp_path):
    """That of another experiment of the trajectory, at a step where this one would save."""
    store = FolderStore(tmp_path)
    other = tiny(train={"steps": 11, "checkpoint_every": 11}, resources={"save_minutes": None})
    graph, _ = trained(store, other)
    before = store.find(graph.checkpoint(11).ref).manifest
    graph, _ = trained(store, tiny(train=LONG, resources=ALWAYS))
    assert starts(store) == [0, 11]
    assert published_steps(store, graph) == [11, 30, 60]
    assert store.find(graph.checkpoint(11).ref).manifest == before


@pytest.mark.usefixtures("every_step")
def test_a_state_that_another_training_published_first_is_not_deleted(tmp_path):
    """A step that this training saved too, but not as the first one."""
    store, experiment = FolderStore(tmp_path), tiny(train=LONG, resources=ALWAYS)
    graph = Graph(experiment)
    theirs = graph.resume(5)

    def publish_before_us() -> bool:
        if not store.find(theirs.ref):
            with store.publish(theirs.ref, {"work_from_step": 0}) as directory:
                (directory / "state.json").write_text("{}")
        return False

    trained(store, experiment, is_preempted=publish_before_us)
    assert resume_steps(store, graph) == [5]


def test_of_a_checkpoint_and_a_state_of_one_step_the_checkpoint_is_continued(tmp_path):
    store, graph = FolderStore(tmp_path), Graph(tiny(train=LONG))
    for node in (graph.resume(11), graph.checkpoint(11), graph.resume(7), graph.resume(40)):
        with store.publish(node.ref, {}) as directory:
            (directory / "state.json").write_text("{}")
    refs = store.refs()
    points = starting_points(refs, graph, [30, 60])
    assert [(n.kind, n.step) for n in points] == [("checkpoint", 11), ("resume", 11), ("resume", 7)]
    assert [n.step for n in starting_points(refs, graph, [60])] == [40, 11, 11, 7]
    assert starting_step(store, graph, [7]) == 0


def test_workers_that_are_replaced_go_on_from_what_those_before_them_published(tmp_path):
    """Their job still wants it, since it is the job of those before them."""
    store, graph = FolderStore(tmp_path), Graph(tiny(train=LONG))
    for step in (10, 20):
        node = graph.checkpoint(step)
        with store.publish(node.ref, {}) as directory:
            (directory / "state.json").write_text("{}")
    assert starting_step(store, graph, [10, 20, 30, 40]) == 20
    assert starting_step(store, graph, [5, 10, 20, 30]) == 0  # what is missing before it is made
    assert starting_step(store, graph, [10, 20]) == 10  # the end is come to again, and found there


# Damage


def with_damage(store: FolderStore, node) -> None:
    damage(store.root / str(node.ref) / "model.safetensors")


@pytest.mark.usefixtures("every_step")
def test_of_damaged_states_the_next_older_good_one_is_continued(tmp_path, undisturbed):
    store = FolderStore(tmp_path)
    trained(store, tiny(train={"steps": 6, "checkpoint_every": 6}))
    experiment = tiny(train=LONG, resources=ALWAYS)
    graph = interrupted(store, experiment, 11)
    interrupted(store, experiment, 13)
    assert resume_steps(store, graph) == [11, 13]
    for step in (11, 13):
        with_damage(store, graph.resume(step))
    _, outcome = trained(store, experiment)
    assert outcome == TrainOutcome(60)
    assert starts(store) == [0, 6, 11, 6]
    aside = [name.rpartition("-")[0] for name in store.quarantined()]
    assert aside == [f"resume-{graph.resume(step).key}" for step in (11, 13)]
    assert_same_end(store, undisturbed, graph)


@pytest.mark.usefixtures("every_step")
def test_without_a_good_state_a_training_begins_anew(tmp_path):
    store, experiment = FolderStore(tmp_path), tiny(train=LONG, resources=ALWAYS)
    graph = interrupted(store, experiment, 11)
    with_damage(store, graph.resume(11))
    trained(store, experiment)
    assert starts(store) == [0, 0]


# Leaving


def test_a_notice_publishes_the_state_and_ends_the_training(tmp_path, undisturbed):
    store, experiment = FolderStore(tmp_path), tiny(train=LONG)
    asked = []

    def is_preempted() -> bool:
        asked.append(1)
        return len(asked) == 2

    graph, outcome = trained(store, experiment, is_preempted=is_preempted)
    assert outcome.preempted
    assert 1 < outcome.step <= 1 + saving.MEETING_STEPS
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([], [outcome.step])
    _, again = trained(store, experiment)
    assert again == TrainOutcome(60)
    assert starts(store) == [0, outcome.step]
    assert_same_end(store, undisturbed, graph)


def one_of_two(rank: int, world_size: int, folder, text: str) -> None:
    """One process of a group; the second one is preempted, and publishing takes a while."""
    torch.set_num_threads(1)
    commit = FolderStore._commit

    def slow(*arguments):
        time.sleep(1.0)
        return commit(*arguments)

    FolderStore._commit = slow
    job = TrainJob(str(folder), text, (30, 60))
    asked = []

    def is_preempted() -> bool:
        asked.append(1)
        return rank == 1 and len(asked) == 2

    with process_group(rank, world_size, folder / "group"):
        outcome = train_worker(job, rank, world_size, lambda progress: None, is_preempted)
        there = resume_steps(FolderStore(folder), Graph(experiment_from_json(text)))
        (folder / f"left-{rank}").write_text(f"{outcome.preempted} {outcome.step} {there}")
        # Two of them go on from there, for a while.
        shorter = TrainJob(str(folder), text, (30,), job.id)
        assert train_worker(shorter, rank, world_size, lambda progress: None) == TrainOutcome(30)
    leave()


def damaged_for_one(rank: int, world_size: int, folder, text: str, blind: int) -> None:
    """One process of a group; `blind` is the only worker that finds checkpoints damaged."""
    torch.set_num_threads(1)
    job = TrainJob(str(folder), text, (60,))
    opened = FolderStore.open

    def read(store, ref):
        if ref.kind == "checkpoint" and rank == blind:
            raise CorruptArtifactError(ref, folder, "it is")
        return opened(store, ref)

    FolderStore.open = read
    with process_group(rank, world_size, folder / "group"):
        outcome = train_worker(job, rank, world_size, lambda progress: None)
        (folder / f"damaged-{rank}").write_text(str(outcome.damaged))
    leave()


@pytest.mark.parametrize("blind", [0, 1])
def test_damage_that_one_worker_finds_ends_all_of_them(tmp_path, blind):
    store = FolderStore(tmp_path)
    short, long = tiny(train={"steps": 30, "checkpoint_every": 30}), tiny(train=LONG)
    graph, _ = trained(store, short)
    resources = dataclasses.replace(long.resources, runner="ray", num_workers=2)
    text = experiment_to_json(dataclasses.replace(long, resources=resources))
    run_processes(damaged_for_one, 2, tmp_path, text, blind)
    for rank in range(2):
        said = (tmp_path / f"damaged-{rank}").read_text()
        assert f"checkpoint/{graph.checkpoint(30).key} is damaged" in said
        assert ("another worker" in said) == (rank != blind)
    assert starts(store) == [0]


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_all_workers_leave_at_the_step_at_which_one_is_told_to(tmp_path, undisturbed, sharding):
    store = FolderStore(tmp_path)
    inline = tiny(train=LONG)
    graph = run_inline(store, inline, [Graph(inline).data])
    resources = dataclasses.replace(
        inline.resources, runner="ray", num_workers=2, sharding=sharding, **ALWAYS
    )
    text = experiment_to_json(dataclasses.replace(inline, resources=resources))
    run_processes(one_of_two, 2, tmp_path, text)
    ends = {(tmp_path / f"left-{rank}").read_text() for rank in range(2)}
    assert starts(store) == [0, step := events(store, "execute", "checkpoint")[1]["from_step"]]
    assert 0 < step < 30
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([30], [])
    # None ends before it is published: Ray would end the others with it.
    assert ends == {f"True {step} [{step}]"}
    # The state of two workers, maybe in parts, is continued by one.
    trained(store, inline)
    found, expected = (state_of(each, graph, 60).history for each in (store, undisturbed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.001, [1, 25, 50, 75]),
        (0.5, [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]),
        (7.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_meetings_follow_the_pace(monkeypatch, seconds, expected):
    now, steps = [0.0], []
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    meetings = Meetings(0, 1, torch.device("cpu"))
    for step in range(1, expected[-1] + 1):
        now[0] += seconds
        if meetings.due(step):
            steps.append(step)
            assert meetings.meet(step, drain=False, save=False) == Orders(drain=False, save=False)
    assert steps == expected


def test_a_wish_to_save_is_granted_at_once():
    meetings = Meetings(1, 1, torch.device("cpu"))
    assert meetings.due(2)
    assert meetings.meet(2, drain=False, save=True).save
