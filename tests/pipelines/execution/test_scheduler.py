from __future__ import annotations

import collections
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from experiments import experiment_to_json
from ig_core.images.sets import ImageDataset
from pipelines.common.errors import TrainingFailedError
from pipelines.execution.listener import NullListener
from pipelines.execution.scheduler import Pipeline
from pipelines.graph.graph import Graph
from pipelines.graph.node import Node, closure
from pipelines.graph.plan import make_plan, quarantine_corrupt
from pipelines.stages import data as data_stage
from pipelines.stages.jobs import Job, TrainOutcome
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import MANIFEST_FILE
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from pipelines.store.locks import FileLock
from tests.pipelines.conftest import InlineRunner, damage, events, run_inline, tiny, tree


def no_runner():
    raise AssertionError("a runner was made")


def counts(store: FolderStore, event: str) -> dict[Ref, int]:
    """How often an event befell each artifact; the one for a training is its trajectory's."""
    return collections.Counter(Ref(e["kind"], e["key"]) for e in events(store, event))


def since(store: FolderStore, known: int, event: str) -> list[dict]:
    """Events of a sort after the first `known` ones of the log."""
    return [e for e in list(store.events())[known:] if e["event"] == event]


def logged(store: FolderStore) -> int:
    return len(list(store.events()))


def kinds(found: list[dict]) -> dict[str, int]:
    return dict(collections.Counter(event["kind"] for event in found))


def folder(store: FolderStore, node: Node) -> Path:
    return store.root / str(node.ref)


def contents(store: FolderStore, node: Node) -> dict[str, bytes | None]:
    """Files of an artifact that say what it is, not when and where it was made."""
    files = tree(store.open(node.ref).path)
    return {name: file for name, file in files.items() if name != MANIFEST_FILE}


# Running


def test_a_run_builds_everything_and_each_thing_once(finished):
    store, graph = finished.home.store, finished.graph
    wanted = {node.ref for node in finished.nodes}
    assert counts(store, "published") == dict.fromkeys(wanted, 1)
    training = Ref("checkpoint", graph.checkpoints[-1].hash)
    built = {ref for ref in wanted if ref.kind != "checkpoint"}
    assert counts(store, "execute") == dict.fromkeys([*built, training], 1)


def test_artifacts_say_what_they_were_made_from(finished):
    store, graph = finished.home.store, finished.graph
    for node in closure(graph.targets):
        manifest = store.open(node.ref).manifest
        assert manifest["stage"] == node.stage
        assert manifest["inputs"] == {n: str(i.ref) for n, i in node.inputs.items()}
        assert manifest["config"] == json.loads(json.dumps(node.config))
        assert {"python", "torch", "numpy"} <= set(manifest["packages"])


def test_a_second_run_executes_nothing_and_makes_no_runner(store):
    before = list(store.events())
    run_inline(store, tiny(), runner=no_runner)
    assert list(store.events()) == before


def test_a_second_run_with_other_resources_makes_no_runner_either(store):
    run_inline(store, tiny(resources={"sample_batch": 7, "sample_tasks": 5}), runner=no_runner)


def test_one_more_scale_executes_one_sample_and_one_evaluation(store):
    known = logged(store)
    run_inline(store, tiny(ig_scales=(1.5, 2.5)))
    assert kinds(since(store, known, "execute")) == {
        "images": 2,
        "sample": 1,
        "features": 2,
        "evaluate": 1,
    }


def test_images_are_the_same_whatever_the_batch_of_the_sampler(store, finished):
    node = finished.graph.headline.images[0]
    before = contents(store, node)
    store.quarantine(node.ref)
    run_inline(store, tiny(resources={"sample_batch": 7}), [node])
    assert contents(store, node)["images.parquet"] == before["images.parquet"]


def test_longer_training_continues_from_the_last_checkpoint(store):
    known, before = logged(store), tree(store.root / "checkpoint")
    graph = run_inline(store, tiny(train={"steps": 30}), Graph(tiny(train={"steps": 30})).targets)
    training = [e for e in since(store, known, "execute") if e["kind"] == "checkpoint"]
    assert [(e["from_step"], e["to_step"]) for e in training] == [(20, 30)]
    published = since(store, known, "published")
    assert [e["key"] for e in published if e["kind"] == "checkpoint"] == [graph.checkpoints[-1].key]
    after = tree(store.root / "checkpoint")
    assert {name: after[name] for name in before} == before


def test_a_shorter_training_finds_its_checkpoints_there(store):
    known = logged(store)
    run_inline(store, tiny(train={"steps": 10}), Graph(tiny(train={"steps": 10})).checkpoints)
    assert since(store, known, "execute") == []


def test_what_is_missing_between_checkpoints_is_made_without_doing_the_others_again(store):
    finer = tiny(train={"checkpoint_every": 5})
    checkpoints, known = Graph(finer).checkpoints, logged(store)
    run_inline(store, finer, checkpoints)
    assert [e["from_step"] for e in since(store, known, "execute")] == [0]
    published = [e["key"] for e in since(store, known, "published")]
    assert published == [checkpoints[0].key, checkpoints[2].key]


def test_a_missing_middle_checkpoint_is_rebuilt_from_the_one_before(store, finished):
    finer = tiny(train={"checkpoint_every": 5})
    checkpoints = run_inline(store, finer, Graph(finer).checkpoints).checkpoints
    before, known = contents(store, checkpoints[2]), logged(store)
    store.quarantine(checkpoints[2].ref)
    run_inline(store, finer, checkpoints)
    assert [e["from_step"] for e in since(store, known, "execute")] == [10]
    assert [e["key"] for e in since(store, known, "published")] == [checkpoints[2].key]
    assert contents(store, checkpoints[2]) == before


class Progress(NullListener):
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.counts: list[tuple[int, int]] = []
        self.nodes: list[Node] = []

    def on_training(self, progress) -> None:
        self.steps.append(progress.step)

    def on_finished(self, node, done, total) -> None:
        self.nodes.append(node)
        self.counts.append((done, total))


def test_training_stops_at_the_last_checkpoint_that_is_missing(store, finished, monkeypatch):
    """What lies behind it is there: nobody would use the steps."""
    first, batches, batch = finished.graph.checkpoints[0], [], ImageDataset.batch

    def counting(self, index):
        batches.append(index)
        return batch(self, index)

    monkeypatch.setattr(ImageDataset, "batch", counting)
    store.quarantine(first.ref)
    run_inline(store, tiny(), [first])
    assert len(batches) == 10
    assert events(store, "execute", "checkpoint")[-1]["to_step"] == 10


def test_the_listener_hears_of_each_artifact_and_of_the_training(tmp_path):
    listener, graph = Progress(), Graph(tiny())
    images = [node for point in graph.curve.values() for node in point.images]
    Pipeline(FolderStore(tmp_path / "store"), tiny(), InlineRunner, listener).run(images)
    assert listener.steps == [10, 20]
    assert set(listener.nodes) == set(closure(images))
    assert listener.counts == [(done, 7) for done in range(1, 8)]


def test_the_listener_hears_once_that_another_process_builds(tmp_path):
    store, graph = FolderStore(tmp_path / "store"), Graph(tiny())
    waited_for, building = [], threading.Event()

    class Waiting(NullListener):
        def on_waiting(self, node) -> None:
            waited_for.append(node)
            building.set()

    pipeline = Pipeline(store, tiny(), InlineRunner, Waiting())
    thread = threading.Thread(target=pipeline.run, args=([graph.data],))
    with store.lease(graph.data.ref):
        thread.start()
        assert building.wait(60)
        InlineRunner().build(Job(str(store.root), (graph.data,), experiment_to_json(tiny())))
    thread.join()
    assert waited_for == [graph.data]
    assert counts(store, "execute") == {graph.data.ref: 1}


class Impatient(FolderStore):
    """A store that fails a test which would turn in circles."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.looks = 0

    def find(self, ref):
        self.looks += 1
        assert self.looks < 5000, "the run waits for something that nobody builds"
        return super().find(ref)


def test_who_waited_for_another_training_builds_what_is_still_missing(store):
    """The last checkpoint is there, and the other process dies before it made those between."""
    finer = tiny(train={"checkpoint_every": 5})
    graph, store = Graph(finer), Impatient(store.root)
    lease = store.lease(Ref("train", graph.checkpoints[0].hash))
    held = []

    class Waiting(NullListener):
        def on_waiting(self, node) -> None:
            lease.__exit__(None, None, None)  # the other dies

    class Watching(InlineRunner):
        def train(self, job, post):
            probe = FileLock(store.root / ".leases" / f"train-{graph.checkpoints[0].hash}")
            held.append(not probe.acquire())
            probe.release()
            return super().train(job, post)

    lease.__enter__()
    Pipeline(store, finer, Watching, Waiting()).run(graph.checkpoints)
    assert held == [True]
    assert make_plan(store, graph.checkpoints).missing == ()


# Plans


def test_a_plan_has_inputs_first_and_changes_nothing(tmp_path):
    store, graph = FolderStore(tmp_path / "store"), Graph(tiny())
    plan = make_plan(store, graph.targets)
    assert plan.missing == tuple(closure(graph.targets))
    assert plan.cached == frozenset()
    assert not store.root.exists()


def test_a_plan_looks_no_further_than_what_is_there(store, finished):
    shutil.rmtree(store.root / "images")
    points = (*finished.graph.curve.values(), *finished.graph.final.values())
    evaluations = [p.evaluate for p in points]
    assert make_plan(store, evaluations).missing == ()


def test_a_plan_takes_along_what_the_missing_needs(store, finished):
    point = finished.graph.headline
    features = point.evaluate.inputs["part-00001"]
    wanted = (point.images[1], features, point.evaluate)
    for node in wanted:
        shutil.rmtree(folder(store, node))
    assert make_plan(store, finished.graph.targets).missing == wanted


# Interruptions


def test_an_interrupted_training_ends_as_the_uninterrupted_one_bit_for_bit(
    tmp_path, finished, monkeypatch
):
    store, graph = FolderStore(tmp_path / "store"), finished.graph
    batches, batch = [], ImageDataset.batch

    def interrupted(self, index):
        batches.append(index)
        if len(batches) == 16:
            raise ConnectionError("the power went")
        return batch(self, index)

    monkeypatch.setattr(ImageDataset, "batch", interrupted)
    with pytest.raises(ConnectionError, match="the power went"):
        run_inline(store, tiny(), graph.checkpoints)
    assert [a.ref.key for a in store.list("checkpoint")] == [graph.checkpoints[0].key]

    run_inline(store, tiny(), graph.checkpoints)
    assert [e["from_step"] for e in events(store, "execute", "checkpoint")] == [0, 10]
    for node in graph.checkpoints:
        again, before = contents(store, node), contents(finished.home.store, node)
        assert {"ema.safetensors", "model.safetensors", "optimizer.safetensors"} <= set(again)
        assert again == before


def test_an_error_in_a_builder_ends_the_run_with_that_error(tmp_path, monkeypatch):
    def broken(context, directory):
        (directory / "half.txt").write_text("half")
        raise ZeroDivisionError("the builder is broken")

    monkeypatch.setattr(data_stage, "build_extractor", broken)
    store = FolderStore(tmp_path / "store")
    with pytest.raises(ZeroDivisionError, match="the builder is broken"):
        run_inline(store, tiny())
    assert store.list("extractor") == []
    assert not list((store.root / ".staging").glob("extractor*"))


def test_an_error_under_training_comes_out_as_it_was_raised(store):
    class Broken(InlineRunner):
        def train(self, job, post):
            raise ZeroDivisionError("the trainer is broken")

    with pytest.raises(ZeroDivisionError, match="the trainer is broken"):
        run_inline(store, tiny(train={"steps": 30}), runner=Broken)


def test_a_failed_run_can_be_run_again(tmp_path, monkeypatch):
    store, graph = FolderStore(tmp_path / "store"), Graph(tiny())
    with monkeypatch.context() as patch:
        patch.setattr(data_stage, "build_data", lambda context, directory: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_inline(store, tiny(), [graph.data])
    run_inline(store, tiny(), [graph.data])
    assert counts(store, "published") == {graph.data.ref: 1}


def test_after_an_error_nothing_new_is_begun(tmp_path):
    """A training that had not begun when the run failed must not go on behind its back."""
    store, over = FolderStore(tmp_path / "store"), threading.Event()

    class Slow(InlineRunner):
        def build(self, job):
            if job.nodes[0].kind == "extractor":
                raise ZeroDivisionError
            super().build(job)

        def train(self, job, post):
            over.wait(60)
            return super().train(job, post)

        def stop(self):
            super().stop()
            over.set()

    with pytest.raises(ZeroDivisionError):
        run_inline(store, tiny(), runner=Slow)
    assert store.list("checkpoint") == []


def test_an_interrupt_ends_the_training_and_keeps_what_was_published(store):
    class Interrupting(NullListener):
        def on_finished(self, node, done, total) -> None:
            raise KeyboardInterrupt

    long = tiny(train={"steps": 3000, "seed": 5})
    with pytest.raises(KeyboardInterrupt):
        Pipeline(store, long, InlineRunner, Interrupting()).run(Graph(long).checkpoints)
    assert not [t for t in threading.enumerate() if t.name.startswith(("train", "build"))]
    published = store.list("checkpoint", Graph(long).checkpoint(0).hash)
    assert 1 <= len(published) < 300
    assert not list((store.root / ".staging").iterdir())


def test_a_training_that_ends_early_is_an_error(store):
    class Lazy(InlineRunner):
        def train(self, job, post):
            return TrainOutcome(25)

    with pytest.raises(TrainingFailedError, match=r"ended at step 25, .* steps .*30"):
        run_inline(store, tiny(train={"steps": 30}), runner=Lazy)


def test_the_runner_is_closed_after_success_and_after_failure(store):
    closed = []

    class Closing(InlineRunner):
        def close(self):
            super().close()
            closed.append(True)

    run_inline(store, tiny(ig_scales=(1.7,)), runner=Closing)
    assert closed == [True]
    Closing.train = lambda self, job, post: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run_inline(store, tiny(train={"steps": 30}), runner=Closing)
    assert closed == [True, True]


# Diverging


def test_a_loss_that_is_not_finite_names_its_step_and_the_last_good_checkpoint(store):
    wild = tiny(optim={"lr": 1e30}, train={"steps": 4, "checkpoint_every": 1})
    graph = Graph(wild)
    with pytest.raises(TrainingFailedError) as caught:
        run_inline(store, wild, graph.checkpoints)
    message = str(caught.value)
    good = graph.checkpoint(1)
    assert "the loss of step 2 is not finite" in message
    assert f"the last good checkpoint is step 1: {folder(store, good)}" in message
    assert "--optim.lr" in message
    found = [a.ref.key for a in store.list("checkpoint", good.hash)]
    assert found == [good.key]


def test_the_last_good_checkpoint_has_finite_weights(store):
    from safetensors.torch import load_file

    wild = tiny(optim={"lr": 1e30}, train={"steps": 4, "checkpoint_every": 1})
    with pytest.raises(TrainingFailedError):
        run_inline(store, wild, Graph(wild).checkpoints)
    weights = load_file(folder(store, Graph(wild).checkpoint(1)) / "ema.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(store):
    wild = tiny(optim={"lr": 1e30})
    with pytest.raises(TrainingFailedError, match="step 2 is not finite; no checkpoint"):
        run_inline(store, wild, Graph(wild).checkpoints)
    assert store.list("checkpoint", Graph(wild).checkpoint(0).hash) == []


# Damage


def test_a_broken_manifest_stops_the_run_before_a_runner_is_made(store, finished):
    checkpoint = finished.graph.checkpoints[-1]
    (folder(store, checkpoint) / MANIFEST_FILE).write_text("{")
    with pytest.raises(CorruptArtifactError, match=f"checkpoint/{checkpoint.key} is damaged"):
        run_inline(store, tiny(ig_scales=(2.5,)), runner=no_runner)


def test_damaged_data_stops_a_training_before_it_begins(store, finished):
    known = logged(store)
    damage(folder(store, finished.graph.data) / "images.parquet")
    longer = tiny(train={"steps": 30})
    with pytest.raises(CorruptArtifactError, match=r"damaged.*images\.parquet"):
        run_inline(store, longer, Graph(longer).checkpoints)
    assert since(store, known, "execute") == []


def test_a_damaged_checkpoint_stops_a_training_that_would_start_from_it(store, finished):
    known = logged(store)
    damage(folder(store, finished.graph.checkpoints[-1]) / "optimizer.safetensors")
    longer = tiny(train={"steps": 30})
    with pytest.raises(CorruptArtifactError, match=r"damaged.*optimizer\.safetensors"):
        run_inline(store, longer, Graph(longer).checkpoints)
    assert since(store, known, "execute") == []


def test_the_driver_of_a_training_moves_none_of_its_files(store, finished, monkeypatch):
    """They may be gigabytes in a bucket, and are checked where they are used."""
    longer, opened = tiny(train={"steps": 30}), []
    monkeypatch.setattr(store, "open", opened.append)
    run_inline(store, longer, Graph(longer).checkpoints)
    assert store.find(Graph(longer).checkpoints[-1].ref)
    assert opened == []


def test_a_damaged_checkpoint_is_not_sampled(store, finished):
    known = logged(store)
    damage(folder(store, finished.graph.checkpoints[-1]) / "ema.safetensors")
    with pytest.raises(CorruptArtifactError, match=r"damaged.*ema\.safetensors"):
        run_inline(store, tiny(ig_scales=(1.5, 2.5)))
    assert since(store, known, "published") == []


@pytest.mark.parametrize("kind", ["data", "extractor", "images", "sample", "features", "evaluate"])
def test_what_was_damaged_is_set_aside_and_comes_out_the_same(store, finished, kind):
    targets = finished.graph.targets
    node = next(node for node in closure(targets) if node.kind == kind)
    before = contents(store, node)
    victim = max(name for name in before if name != "experiment.json")
    damage(folder(store, node) / victim)
    assert quarantine_corrupt(store, finished.graph) == [node]
    run_inline(store, tiny(), [node])
    assert contents(store, node) == before
    assert len(list((store.root / ".corrupt").iterdir())) == 1


def test_a_damaged_checkpoint_is_set_aside_and_comes_out_the_same(store, finished):
    graph = finished.graph
    before = contents(store, graph.checkpoints[-1])
    (folder(store, graph.checkpoints[-1]) / "model.safetensors").unlink()
    assert quarantine_corrupt(store, graph) == [graph.checkpoints[-1]]
    known = logged(store)
    run_inline(store, tiny(), graph.checkpoints)
    assert [e["from_step"] for e in since(store, known, "execute")] == [10]
    assert contents(store, graph.checkpoints[-1]) == before


def test_a_checkpoint_that_was_set_aside_is_made_again_beside_its_evaluations(store, finished):
    """It is a result: MLflow's models point at it, and a longer training starts from it."""
    checkpoint = finished.graph.checkpoints[-1]
    damage(folder(store, checkpoint) / "ema.safetensors")
    aside = quarantine_corrupt(store, finished.graph)
    run_inline(store, tiny(), [*finished.graph.targets, *aside])
    assert store.find(checkpoint.ref) is not None


def test_nothing_is_set_aside_where_nothing_is_damaged(store, finished):
    assert quarantine_corrupt(store, finished.graph) == []
    assert not (store.root / ".corrupt").exists()


# Two runs at once

BUILD = """
import sys
import torch
from pipelines.store.folder import FolderStore
from pipelines.stages import build, data, sample
from tests.pipelines.conftest import run_inline, tiny
from pipelines.graph.graph import Graph
torch.set_num_threads(1)
store, graph = FolderStore(sys.argv[1]), Graph(tiny())
print("ready")
input()
run_inline(store, tiny(), [point.evaluate.inputs["sample"] for point in graph.curve.values()])
print("done")
"""


def test_two_processes_on_one_store_build_each_artifact_once(tmp_path, child, finished):
    store = FolderStore(tmp_path / "store")
    others = [child(BUILD, store.root) for _ in range(2)]
    assert [other.read() for other in others] == ["ready"] * 2
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["done"] * 2
    # data, two checkpoints, and for four points an image shard and a sample
    assert set(counts(store, "published").values()) == {1}
    assert kinds(events(store, "published")) == {
        "data": 1,
        "checkpoint": 2,
        "images": 4,
        "sample": 4,
    }
    assert set(counts(store, "execute").values()) == {1}
    assert kinds(events(store, "execute")) == {
        "data": 1,
        "checkpoint": 1,
        "images": 4,
        "sample": 4,
    }
    checkpoint = finished.graph.checkpoints[-1]
    assert contents(store, checkpoint) == contents(finished.home.store, checkpoint)
