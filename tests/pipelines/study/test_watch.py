"""What a training's watch enters, in whatever order its parts come."""

import dataclasses

import pytest

from experiments import PruningConfig
from pipelines.graph import Graph
from pipelines.results import collect
from pipelines.study.plan import CurvePoint
from pipelines.study.watch import Watch
from tests.pipelines.conftest import run_inline


@pytest.fixture
def watched(open_book, study, tmp_path):
    """Factory: a watch over a training that is evaluated, in a study that judges it."""
    from pipelines.folder_store import FolderStore

    store = FolderStore(tmp_path / "store")
    given = study(pruning=PruningConfig(warmup_trainings=1, patience=2))
    book = open_book(given)

    def make(good_fid):
        done = book.next_unit(1)
        book.report(done, {step: CurvePoint(good_fid, 0.1) for step in (2, 4, 6)})
        book.complete(done[0], 1.0, {})
        unit = book.next_unit(4)
        while unit[0].point.training == done[0].point.training:
            for trial in unit:
                book.complete(trial, 1.0, {})
            unit = book.next_unit(8)
        experiment = given.at(*unit[0].point.training, tuple(t.point.ig_scale for t in unit))
        graph = Graph(experiment)
        watch = Watch(book, store, graph, unit, lambda unit, m: None)
        run_inline(store, experiment, watch.targets)
        return book, watch, graph, store

    return make


def hidden(store, graph, step):
    """The evaluation of a checkpoint, out of sight."""
    scale = graph.experiment.guidance.ig_scale
    point = next(p for p in graph.curve if p.step == step and p.guidance.ig_scale == scale)
    path = store.root / "evaluate" / point.evaluate.key
    path.rename(path.with_name("hidden"))
    return lambda: path.with_name("hidden").rename(path)


def test_a_checkpoint_that_is_early_counts_when_its_turn_is(watched):
    book, watch, graph, store = watched(1e9)
    back = hidden(store, graph, 2)
    watch.look()
    assert watch.curve == {}
    assert all(t.curve == {} for t in book.trials() if t.state == "RUNNING")
    back()
    watch.look()
    assert list(watch.curve) == [2, 4, 6]
    assert not watch.hopeless
    assert all(t.state == "COMPLETE" for t in book.trials())


def test_what_is_entered_of_a_hopeless_training_does_not_depend_on_what_came_first(watched):
    book, watch, graph, store = watched(1.0)
    assert len(collect(store, graph).curve) >= 3
    watch.look()
    assert watch.hopeless
    assert list(watch.curve) == [2, 4], "the shortest beginning that decides"
    book.prune(watch.unit, watch.curve)
    pruned = [t for t in book.trials() if t.state == "PRUNED"]
    assert pruned
    assert all(list(t.curve) == [2, 4] for t in pruned)
    assert dataclasses.replace(watch.unit[0]).fid is None
