from __future__ import annotations

import pytest

from ig_core.config import Guidance
from pipelines.console.eta import RemainingWork
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.stages.jobs import TrainProgress
from tests.pipelines.conftest import tiny


class Run:
    """A run that is only played: one node after the other, beside a training or after it."""

    def __init__(self, **changes) -> None:
        self.graph, self.now = Graph(tiny(**changes)), 0.0
        self.remaining = RemainingWork(self.graph, lambda: self.now)
        self.nodes = list(closure(self.graph.targets))
        self.shares: list[float] = []

    def expect(self) -> None:
        self.remaining.expect(self.nodes)

    def build(self, node, seconds: float) -> None:
        self.remaining.started([node])
        self.now += seconds
        self.remaining.finished(node)
        self.shares.append(self.remaining.share())

    def train(self, step: int, rate: float) -> None:
        steps = self.graph.experiment.train.steps
        self.remaining.training(TrainProgress(step, steps, 0.5, rate))
        self.shares.append(self.remaining.share())


def of_kind(run: Run, kind: str, step: int | None = None) -> list:
    return [
        n
        for n in run.nodes
        if n.kind == kind and (step is None or run.remaining._step_needed(n) == step)
    ]


def _holdout(graph: Graph, scale: float) -> list:
    """Evaluations of a scale and of the baseline on holdout noise."""
    return [p.evaluate for p in graph.holdout(Guidance(ig_scale=scale)).values()]


def test_one_bar_over_everything_rises_to_its_end_once():
    run = Run()
    assert run.remaining.share() == 0  # nothing is known yet: not that all of it is done
    run.expect()
    for node in run.nodes:
        if node.trained:
            run.now += 5
            run.train(node.step, 2.0)
            run.remaining.finished(node)
        else:
            run.build(node, {"images": 3.0, "features": 0.5}.get(node.kind, 0.1))
    assert run.shares == sorted(run.shares)
    assert max(run.shares[:-1]) < 1
    assert run.shares[-1] == 1


def test_what_is_not_known_yet_does_not_let_the_bar_go_back():
    """The scale that is measured anew is known when all the others are there."""
    run = Run()
    run.nodes += [n for n in closure(_holdout(run.graph, 1.5)) if n not in run.nodes]
    run.expect()
    first = [n for n in run.nodes if n in set(closure(run.graph.targets))]
    for node in first:
        run.train(node.step, 2.0) if node.trained else None
        run.build(node, 1.0)
    before = run.remaining.share()
    assert before < 1
    run.remaining.expect(n for n in closure(_holdout(run.graph, 1.0)) if n not in first)
    assert before <= run.remaining.share() < 1


def test_the_bar_waits_when_the_rest_turns_out_to_take_longer():
    run = Run()
    run.expect()
    run.train(10, 2.0)
    before = run.remaining.share()
    run.build(of_kind(run, "images", 20)[0], 1000.0)
    assert run.remaining.share() >= before
    run.train(11, 0.001)
    assert run.remaining.share() >= before > 0


def test_nothing_is_promised_before_anything_is_measured():
    run = Run()
    run.expect()
    assert run.remaining.seconds_left() is None
    run.train(1, 2.0)
    assert run.remaining.seconds_left() is not None


def test_the_time_left_is_that_of_training_and_of_what_must_wait_for_its_end():
    """With one task at a time of 4 s for a shard of samples; steps are 0.5 s each."""
    run = Run(resources={"sample_tasks": 1})
    run.expect()
    for node in run.nodes:
        if node.stage == "data":
            run.build(node, 1.0)
    run.train(10, 2.0)
    run.remaining.finished(of_kind(run, "checkpoint", 10)[0])
    first, *others = of_kind(run, "images", 10)
    run.build(first, 4.0)
    size = first.config["stop"] - first.config["start"]
    behind = of_kind(run, "images", 20)
    tail = sum(4.0 * (n.config["stop"] - n.config["start"]) / size for n in behind)
    small = [n for n in run.nodes if n.kind in ("features", "evaluate", "sample")]
    for node in small:  # they cost nothing here
        run.build(node, 0.0)
    steps = 10 * 0.5 - 4.0  # ten steps are left, and 4 s have passed since they were told
    beside = 4.0 * len(others)
    assert run.remaining.seconds_left() == pytest.approx(max(steps, beside) + tail, rel=0.01)


def test_two_tasks_at_a_time_take_half_as_long():
    left = {}
    for slots in (1, 2):
        run = Run(resources={"sample_tasks": slots})
        run.expect()
        for node in run.nodes:
            if node.stage in ("data", "train"):
                run.train(20, 2.0)
                run.build(node, 0.0)
        run.build(of_kind(run, "images")[0], 4.0)
        left[slots] = run.remaining.seconds_left()
    assert left[1] == pytest.approx(2 * left[2])
    assert left[2] > 1


def test_what_runs_now_counts_the_time_that_it_has_run():
    run = Run(resources={"sample_tasks": 1})
    run.expect()
    for node in run.nodes:
        if node.stage in ("data", "train"):
            run.train(20, 2.0)
            run.build(node, 0.0)
    first, second, *_ = of_kind(run, "images", 20)
    run.build(first, 4.0)
    left = run.remaining.seconds_left()
    run.remaining.started([second])
    assert run.remaining.running == [second]
    run.now += 3.0
    assert run.remaining.seconds_left() == pytest.approx(left - 3.0)
    run.now += 100.0  # one that takes longer than others is not said to be done
    size = first.config["stop"] - first.config["start"]
    whole = 4.0 * (second.config["stop"] - second.config["start"]) / size
    assert run.remaining.seconds_left() == pytest.approx(left - 0.9 * whole)


def test_what_is_built_together_shares_its_time():
    runs = Run(), Run()
    for run in runs:
        run.expect()
    one, two = of_kind(runs[0], "images", 20)[:2]
    runs[0].remaining.started([one, two])
    runs[0].now += 6.0
    runs[0].remaining.finished(one)
    runs[0].remaining.finished(two)
    runs[1].build(one, 3.0)
    assert runs[0].remaining._seconds_per_unit("images") == pytest.approx(
        runs[1].remaining._seconds_per_unit("images")
    )


def test_a_training_that_begins_again_farther_back_has_done_nothing():
    """A state that is damaged: what was to be trained from there takes longer than all of it."""
    run = Run()
    last = [node for node in run.nodes if node.trained][-1]
    run.remaining.expect([last], last.step - 1)
    run.train(last.step - 1, 1.0)
    run.now += 10
    assert run.remaining.share() == 0


def test_evaluations_made_anew_move_the_bar_though_the_last_noise_is_still_to_be_sampled():
    run = Run()
    evaluations = of_kind(run, "evaluate")
    last = closure(_holdout(run.graph, 1.5))
    samples = [n for n in last if n.kind == "images" and n not in run.nodes]
    assert samples, "noise that nothing else uses"
    run.nodes = [*evaluations, *samples]
    run.expect()
    run.build(evaluations[0], 2.0)
    assert 0 < run.remaining.share() < 1
    assert run.remaining.seconds_left() is not None
