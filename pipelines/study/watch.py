"""Watch over a training of a study: record its results, and prune it by the study's rule."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from pipelines.graph.node import closure
from pipelines.results.measurements import Measurement, collect, work_seconds
from pipelines.study.search import should_prune
from pipelines.study.trials import Curve, CurvePoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ig_core.config import Guidance
    from pipelines.execution.scheduler import Pipeline
    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.results.measurements import Results
    from pipelines.stages.jobs import TrainProgress
    from pipelines.store.base import Store
    from pipelines.study.ledger import StudyLedger
    from pipelines.study.trials import Trial


class Watch:
    """`Listener` that records the FID curve and the FIDs of trials, and stops a pruned training."""

    def __init__(
        self,
        ledger: StudyLedger,
        store: Store,
        graph: Graph,
        trial_group: list[Trial],
        on_measured: Callable[[Sequence[Trial], Measurement], None],
    ) -> None:
        """Prepare to watch the trials of one training.

        Args:
            ledger: Ledger in which results are recorded.
            store: Store of the artifacts.
            graph: Graph of the training with the scales of all trials.
            trial_group: The trials.
            on_measured: Called with the trials and the measurement of each evaluated point.
        """
        self._ledger, self._store, self._graph, self.trial_group = ledger, store, graph, trial_group
        self._on_measured = on_measured
        self.should_prune = False
        self.pipeline: Pipeline | None = None
        self._lock, self._open = threading.Lock(), list(trial_group)
        self.curve: Curve = {}
        curve = graph.curve_of(graph.experiment.guidance).values()
        wanted = {self._guidance_of(trial) for trial in trial_group}
        final = [point for guidance, point in graph.final.items() if guidance in wanted]
        self._curve_nodes = {p.evaluate for p in curve}
        self._nodes = {p.evaluate for p in (*curve, *final)}
        self.targets = [p.evaluate for p in (*curve, *final)]

    def on_waiting(self, node: Node) -> None:
        """Ignore that another process builds the node."""

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Ignore that one task of this process builds the nodes."""

    def on_training(self, progress: TrainProgress) -> None:
        """Ignore the steps of the training."""

    def on_finished(self, node: Node, done: int, total: int) -> None:  # noqa: ARG002
        """Record the measurement of a published evaluation."""
        if node in self._nodes:
            self.look(node)

    def look(self, news: Node | None = None) -> None:
        """Record published measurements; report that of `news`, if given."""
        with self._lock:
            results = collect(self._store, self._graph)
            # One evaluation can be both the end of the curve and that of a trial.
            found = (*results.curve.values(), *results.final.values())
            measured = {m.point.evaluate: m for m in found}
            if news in measured:
                self._on_measured(self.trial_group, measured[news])
            curve = self._without_gaps(results)
            if curve != self.curve:
                fatal = self._fatal_beginning(curve)
                self.should_prune = fatal is not None
                self.curve = curve if fatal is None else fatal
                self._ledger.report(self._open, self.curve)
            if self.should_prune:
                self.trial_group = list(self._open)
                if self.pipeline is not None:
                    self.pipeline.stop()
                return
            # Results must not depend on the order in which evaluations are published.
            judged = len(curve) == len(self._curve_nodes)
            for guidance, m in results.final.items() if judged else ():
                for trial in [t for t in self._open if self._guidance_of(t) == guidance]:
                    self._ledger.complete(trial, m.fid, _facts(m, results.store))
                    self._open.remove(trial)

    def _guidance_of(self, trial: Trial) -> Guidance:
        return self._ledger.study.guidance_at(trial.point)

    def _without_gaps(self, results: Results) -> Curve:
        """Return the FID curve up to the first checkpoint that is not evaluated yet.

        Later checkpoints are left out, so that results do not depend on the order of evaluations.
        """
        found = results.curve_of(self._graph.experiment.guidance)
        steps = itertools.takewhile(
            found.__contains__, self._graph.experiment.train.checkpoint_steps
        )
        return {
            step: CurvePoint(
                found[step].fid,
                (found[step].metrics["fid_high"] - found[step].metrics["fid_low"]) / 2,
            )
            for step in steps
        }

    def _fatal_beginning(self, curve: Curve) -> Curve | None:
        """Return the shortest beginning of the curve for which the training is pruned, if any.

        It is compared with the trainings that are finished now.
        """
        trials = self._ledger.trials()
        own = self.trial_group[0].point.training
        finished = {t.point.training: t.curve for t in trials if t.state == "COMPLETE"}
        if own in finished:  # it was not pruned before, and its scales are refined
            return None
        steps = [
            step for step in curve if step != self._graph.experiment.train.checkpoint_steps[-1]
        ]
        beginnings = (
            {step: curve[step] for step in steps[:count]} for count in range(1, len(steps) + 1)
        )
        rule, others = self._ledger.study.pruning, list(finished.values())
        return next((b for b in beginnings if should_prune(b, others, rule)), None)


def _facts(m: Measurement, store: Store) -> dict[str, object]:
    """Return the facts of a complete trial besides its FID; seconds are of its own samples."""
    own = (node for node in closure([m.point.evaluate]) if node.stage in ("sample", "evaluate"))
    return {
        "fid_low": m.metrics["fid_low"],
        "fid_high": m.metrics["fid_high"],
        "num_samples": m.metrics["num_samples"],
        "fingerprint": m.fingerprint.id,
        "evaluate": str(m.point.evaluate.ref),
        "point_seconds": round(work_seconds(store, own), 3),
    }
