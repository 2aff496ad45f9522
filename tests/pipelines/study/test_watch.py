"""What a training's watch enters, in whatever order its parts come."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from experiments import PruningConfig
from pipelines.graph.graph import Graph
from pipelines.results.measurements import Measurement, Results
from pipelines.store.folder import FolderStore
from pipelines.study.trials import CurvePoint
from pipelines.study.watch import Watch
from tests.pipelines.conftest import run_inline
from tests.pipelines.study.conftest import claimed

STEPS = (2, 4, 6, 8, 10, 12)
RULE = PruningConfig(warmup_trainings=1, patience=2)


def good_curve(fid):
    return {step: CurvePoint(fid, 0.1) for step in STEPS}


class Watched:
    """A watch over a training whose measurements are put into its store by hand."""

    def __init__(self, ledger, store, good_fid, monkeypatch, passed):
        """One training is done, with such a curve; the next one is watched.

        Args:
            ledger: Of a study that gives trainings up.
            store: Where nothing is.
            good_fid: FID of the first training at all checkpoints.
            monkeypatch: Of the test.
            passed: Whether a scale of the watched training is complete.
        """
        self.ledger, self.said, self.stopped = ledger, [], []
        done = claimed(ledger, 1)
        ledger.report(done, good_curve(good_fid))
        ledger.complete(done[0], 1.0, {})
        trial_group = claimed(ledger, 4)
        while trial_group[0].point.training == done[0].point.training:
            for trial in trial_group:
                ledger.complete(trial, 1.0, {})
            trial_group = claimed(ledger, 8)
        if passed:
            ledger.complete(trial_group[0], 1.0, {})
            trial_group = trial_group[1:]
        self.graph = Graph(
            ledger.study.at(
                *trial_group[0].point.training, tuple(t.point.ig_scale for t in trial_group)
            )
        )
        self.measured: list[Measurement] = []
        monkeypatch.setattr("pipelines.study.watch.collect", lambda *_: self._results(store))
        self.watch = Watch(ledger, store, self.graph, trial_group, lambda _, m: self.said.append(m))
        self.watch.pipeline = SimpleNamespace(stop=lambda: self.stopped.append(True))

    def _results(self, store):
        nodes = {m.point.evaluate: m for m in self.measured}
        curve, final = (
            {key: nodes[p.evaluate] for key, p in points.items() if p.evaluate in nodes}
            for points in (self.graph.curve, self.graph.final)
        )
        return Results(self.graph, store, curve, final)

    def measure(self, fid, *steps, half_width=1.0, scales=()):
        """Put the curve at these steps there, and the last checkpoint at these scales."""
        curve = self.graph.curve_of(self.graph.experiment.guidance)
        points = [point for step, point in curve.items() if step in steps]
        points += [p for g, p in self.graph.final.items() if g.ig_scale in scales]
        self.measured += [
            Measurement(
                p,
                None,
                {
                    "fid": fid,
                    "fid_low": fid - half_width,
                    "num_samples": 40,
                    "fid_high": fid + half_width,
                },
            )
            for p in points
        ]
        return [p.evaluate for p in points]

    @property
    def scales(self):
        return [trial.point.ig_scale for trial in self.watch.trial_group]

    def trials(self, *states):
        own = self.graph.experiment
        training = (own.model.aux_layer, own.loss.aux_weight)
        return [
            t for t in self.ledger.trials() if t.point.training == training and t.state in states
        ]


@pytest.fixture
def watched(open_ledger, study, tmp_path, monkeypatch):
    """Factory of `Watched`."""
    base = study().experiment
    train = dataclasses.replace(base.train, steps=STEPS[-1])
    given = study(pruning=RULE, experiment=dataclasses.replace(base, train=train))

    def make(good_fid, *, passed=False):
        ledger, store = open_ledger(given), FolderStore(tmp_path / "store")
        return Watched(ledger, store, good_fid, monkeypatch, passed)

    return make


def test_a_checkpoint_that_is_early_counts_when_its_turn_is(watched):
    training = watched(1e9)
    training.measure(50.0, *STEPS[1:])
    training.watch.look()
    assert training.watch.curve == {}
    assert all(t.curve == {} for t in training.trials("RUNNING"))
    training.measure(60.0, STEPS[0])
    training.watch.look()
    assert training.watch.curve == {2: CurvePoint(60.0, 1.0)} | {
        step: CurvePoint(50.0, 1.0) for step in STEPS[1:]
    }
    assert not training.watch.should_prune
    assert [t.curve for t in training.trials("RUNNING")] == 3 * [training.watch.curve]


def test_no_trial_is_complete_before_its_training_was_judged(watched):
    """Else a bad training would be complete or pruned by which of its parts came first."""
    training = watched(1.0)
    training.measure(9.0, scales=training.scales)
    training.watch.look()
    assert len(training.trials("RUNNING")) == 3
    training.measure(50.0, *STEPS)
    training.watch.look()
    assert training.watch.should_prune
    assert training.trials("COMPLETE") == []
    assert training.stopped == [True]
    assert [t.number for t in training.watch.trial_group] == [
        t.number for t in training.trials("RUNNING")
    ]


def test_trials_are_complete_with_their_own_fid_once_the_curve_is_whole(watched):
    training = watched(1e9)
    first, *others = training.scales
    training.measure(50.0, *STEPS[:-1])
    training.measure(20.0, scales=[first], half_width=3.0)
    training.watch.look()
    assert training.trials("COMPLETE") == []
    training.measure(50.0, STEPS[-1])
    training.watch.look()
    (done,) = training.trials("COMPLETE")
    assert (done.point.ig_scale, done.fid) == (first, 20.0)
    assert (done.facts["fid_low"], done.facts["fid_high"]) == (17.0, 23.0)
    assert done.facts["num_samples"] == 40
    training.measure(30.0, scales=others)
    training.watch.look()
    assert {t.point.ig_scale: t.fid for t in training.trials("COMPLETE")} == {
        first: 20.0,
        **dict.fromkeys(others, 30.0),
    }
    assert not training.watch.should_prune
    assert training.stopped == []


@pytest.mark.parametrize("at_once", [True, False])
def test_the_shortest_beginning_decides_however_much_is_there(watched, at_once):
    training = watched(1.0)
    for steps in [STEPS] if at_once else [(2,), (4,)]:
        assert not training.watch.should_prune
        training.measure(50.0, *steps)
        training.watch.look()
    assert training.watch.should_prune
    assert list(training.watch.curve) == [2, 4]
    training.ledger.prune(training.watch.trial_group, training.watch.curve)
    pruned = training.trials("PRUNED")
    assert [(list(t.curve), t.fid) for t in pruned] == 3 * [([2, 4], None)]


@pytest.mark.parametrize(("half_width", "pruned"), [(3.9, True), (4.1, False)])
def test_noise_is_half_the_width_of_the_interval(watched, half_width, pruned):
    """FIDs lie 4 above those of the other training, whose own noise is small."""
    training = watched(10.0)
    training.measure(14.0, *STEPS, half_width=half_width)
    training.watch.look()
    assert training.watch.should_prune == pruned
    assert training.watch.curve[2] == CurvePoint(14.0, pytest.approx(half_width))


def test_a_training_that_passed_is_not_pruned_when_its_scales_are_refined(watched):
    training = watched(1.0, passed=True)
    training.measure(50.0, *STEPS)
    training.watch.look()
    assert not training.watch.should_prune
    assert list(training.watch.curve) == list(STEPS)
    training.measure(40.0, scales=training.scales)
    training.watch.look()
    assert len(training.trials("COMPLETE")) == 3


def test_nothing_is_pruned_at_the_last_checkpoint(watched):
    """Its work is done: the samples of its scales are cheap."""
    training = watched(10.0)
    training.measure(5.0, *STEPS[:-2])
    training.measure(50.0, *STEPS[-2:])
    training.watch.look()
    assert not training.watch.should_prune


def test_news_is_said_once_it_is_measured(watched):
    training = watched(1e9)
    curve, other = training.measure(50.0, 2, 4)
    training.watch.on_finished(curve, 1, 9)
    assert [m.point.evaluate for m in training.said] == [curve]
    training.watch.on_finished(training.graph.data, 2, 9)
    training.watch.look()
    assert len(training.said) == 1
    training.watch.on_finished(other, 3, 9)
    (final,) = training.measure(20.0, scales=training.scales[:1])
    training.watch.on_finished(final, 4, 9)
    assert [m.point.evaluate for m in training.said] == [curve, other, final]


def test_what_a_pipeline_builds_is_added(open_ledger, study, tmp_path):
    """The same with a training of real checkpoints."""
    store, ledger = FolderStore(tmp_path / "store"), open_ledger(study())
    trial_group = claimed(ledger, 8)
    experiment = study().at(
        *trial_group[0].point.training, tuple(t.point.ig_scale for t in trial_group)
    )
    graph = Graph(experiment)
    watch = Watch(ledger, store, graph, trial_group, lambda trial_group, m: None)
    run_inline(store, experiment, watch.targets)
    watch.look()
    points = {p.evaluate for p in graph.curve_of(experiment.guidance).values()}
    scales = {t.point.ig_scale for t in trial_group}
    points |= {p.evaluate for g, p in graph.final.items() if g.ig_scale in scales}
    assert set(watch.targets) == points
    done = ledger.trials()
    assert [t.state for t in done] == 3 * ["COMPLETE"]
    assert [list(t.curve) for t in done] == 3 * [[2, 4, 6]]
    assert len({t.fid for t in done}) == 3
    assert len({t.facts["fingerprint"] for t in done}) == 1
    assert all(t.facts["point_seconds"] > 0 for t in done)
