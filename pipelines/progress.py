"""What a person sees while it runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from pipelines.durations import clock
from pipelines.number_format import metric_interval, number
from pipelines.results import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from pipelines.artifacts import Store
    from pipelines.graph import Graph, Node
    from pipelines.stages.train import TrainProgress

PLAIN_EVERY_SECONDS = 5.0
MOST_BROKEN = 10
"""Faulty images that are named here; all of them are in the data's statistics."""
STATISTICS = "statistics.json"
DATA_NAMES = {
    "listing": "list of the source",
    "data": "training images",
    "extractor": "feature extractor",
    "reference": "reference features",
}


class ProgressDisplay:
    """A `dag.Listener` that shows the stages, the loss and each FID as it comes."""

    def __init__(
        self, console: Console, store: Store, graph: Graph, evaluated: Callable[[], None]
    ) -> None:
        self.console, self.store = console, store
        self.evaluated = evaluated
        reports = [p for scale in graph.experiment.scales for p in graph.report(scale)]
        self._points = {p.evaluate: p for p in (*reports, *graph.curve, *graph.final)}
        self._bars = Progress(
            TextColumn("{task.description:<9}"), BarColumn(bar_width=28), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._last_plain = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False, soft_wrap=True)

    def waiting(self, node: Node) -> None:
        """Another process builds the node."""
        self.say(f"{node.stage:<9} waiting: another process builds {node.kind}/{node.key}")

    def training(self, progress: TrainProgress) -> None:
        """A training moved on."""
        left = (progress.steps - progress.step) / max(progress.steps_per_second, 1e-9)
        rate = number(progress.steps_per_second, 2, 1)
        note = f"loss {number(progress.loss, 4)}  {rate} steps/s  {clock(left)} left"
        self._show("train", progress.step, progress.steps, note)

    def finished(self, node: Node, done: int, total: int) -> None:
        """An artifact is there."""
        point = self._points.get(node)
        if node.stage == "data":
            self._say_data(node)
        elif node.kind == "checkpoint":
            self.say(f"{node.stage:<9} checkpoint of step {int(node.key.rpartition('-')[2])}")
        elif point is not None:
            path = self.store.open(node.kind, node.key).path / METRICS
            metrics = json.loads(path.read_text(encoding="utf-8"))
            self.say(
                f"{node.stage:<9} step {point.step:>6}  ig scale {point.guidance.ig_scale:<4g} "
                f"FID {number(metrics['fid']):>8}  [{metric_interval(metrics)}]  "
                f"{metrics['num_samples']:,} samples"
            )
            self.evaluated()
        self._show("artifacts", done, total, f"last: {node.kind}")

    def _say_data(self, node: Node) -> None:
        name = DATA_NAMES.get(node.kind, node.kind)
        if node.kind == "latents":
            name = f"latents {node.config['start']:,} to {node.config['stop']:,}"
        self.say(f"{node.stage:<9} {name} ready")
        if node.kind != "data" or "listing" not in node.inputs:
            return
        path = self.store.open(node.kind, node.key).path / STATISTICS
        broken = json.loads(path.read_text(encoding="utf-8"))["broken"]
        for each in broken[:MOST_BROKEN]:
            self.say(f"{node.stage:<9} faulty image {each['name']}: {each['fault']}")
        if broken:
            self.say(f"{node.stage:<9} faulty images: {len(broken)}, all of them in {path}")

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, note=note)
            self._bars.update(self._tasks[name], completed=done, total=total, note=note)
            late = time.monotonic() - self._last_plain > PLAIN_EVERY_SECONDS
            plain = not self.console.is_terminal and name == "train" and (late or done == total)
            if plain:
                self._last_plain = time.monotonic()
        if plain:
            self.say(f"{name:<9} step {done} of {total}  {note}")
