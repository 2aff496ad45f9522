"""Progress of a run: one bar on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.common.formatting import clock, metric_interval, number
from pipelines.console.console import log
from pipelines.console.eta import RemainingWork
from pipelines.graph.node import closure
from pipelines.graph.trajectory import starting_step
from pipelines.store.file_names import METRICS_FILE, STATISTICS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console, RenderableType

    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.stages.jobs import TrainProgress
    from pipelines.status.activity import Training
    from pipelines.store.base import Store


HEARTBEAT_SECONDS = 30.0
"""Seconds between two lines of progress where there is no terminal."""
MAX_BAR_CELLS = 40
MAX_FAULTY_IMAGES = 10
"""Most faulty images that are named; the data's statistics list all of them."""
DATA_NAMES = {
    "listing": "list of the source",
    "data": "training images",
    "extractor": "feature extractor",
    "reference": "reference features",
}
DOING = {
    "checkpoint": "starting the training",
    "latents": "encoding latents",
    "images": "sampling",
    "sample": "collecting samples",
    "features": "extracting features",
    "evaluate": "evaluating",
}
"""Kind of artifact -> the work that builds it; for other kinds DATA_NAMES is shown."""


class LiveProgress:
    """Progress bar on a terminal; elsewhere a line every HEARTBEAT_SECONDS."""

    def __init__(
        self,
        console: Console,
        share: Callable[[], float],
        how_far: Callable[[], str],
        what_runs: Callable[[], str],
    ) -> None:
        """Prepare to show progress; nothing is shown before the context is entered.

        Args:
            console: Console to print to.
            share: Returns the part of the work that is done, in [0, 1].
            how_far: Returns the same in words, with the time left.
            what_runs: Returns a description of the work in progress.
        """
        self.console, self._share = console, share
        self._how_far, self._what_runs = how_far, what_runs
        self._live = Live(
            get_renderable=self.bar,
            console=console,
            refresh_per_second=2,
            transient=True,
            vertical_overflow="crop",
        )
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> LiveProgress:
        if self.console.is_terminal:
            self._live.start()
        else:
            self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self._heart.join()

    def bar(self) -> RenderableType:
        """Return the bar, and a line that describes the work in progress."""
        text = self._how_far()
        width = min(MAX_BAR_CELLS, self.console.width - len(text) - 2)
        line: RenderableType = Text(text)
        if width >= 4:
            line = Table.grid(padding=(0, 2, 0, 0))
            line.add_row(ProgressBar(1.0, self._share(), width=width), text)
        return Group(line, Text(self._what_runs(), style="dim", overflow="fold"))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            log(
                self.console,
                f"progress  {self._how_far()}: {self._what_runs()}",
            )


class ProgressDisplay:
    """`Listener` that shows the progress of a run, and each FID as it is measured."""

    def __init__(
        self, console: Console, store: Store, graph: Graph, evaluated: Callable[[], None]
    ) -> None:
        self.console, self.store, self.graph = console, store, graph
        self.evaluated = evaluated
        self.remaining = RemainingWork(graph)
        holdout = graph.holdout(*graph.final)
        points = (*holdout.values(), *graph.curve.values(), *graph.final.values())
        self._points = {p.evaluate: p for p in points}
        self._places: dict[Node, str] = {}
        for point in points:
            place = f"step {point.step}, scale {point.guidance.ig_scale:g}"
            own = (n for n in closure([point.evaluate]) if n.stage in ("sample", "evaluate"))
            self._places |= dict.fromkeys(own, place)
        self._began, self._waiting = time.monotonic(), ""
        self.live = LiveProgress(console, self.remaining.share, self._how_far, self._what_runs)

    def __enter__(self) -> ProgressDisplay:
        self.live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.__exit__()

    def expect(self, nodes: Iterable[Node]) -> None:
        """Set the artifacts that are missing now.

        Args:
            nodes: All artifacts to build, with stand-ins for those that are not known yet.
        """
        nodes = list(nodes)
        steps = [node.step for node in nodes if node.trained]
        start = starting_step(self.store, self.graph, steps) if steps else 0
        self.remaining.expect(nodes, start)

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        log(self.console, text)

    def on_waiting(self, node: Node) -> None:
        """Show that another process builds the node."""
        self._waiting = str(node.ref)
        self.log(f"{node.stage:<9} waiting: another process builds {node.ref}")

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Show that one task of this process builds the nodes."""
        self.remaining.started(nodes)

    def on_training(self, progress: TrainProgress) -> None:
        """Show the steps of the training."""
        self.remaining.training(progress)

    def on_finished(self, node: Node, done: int, total: int) -> None:  # noqa: ARG002
        """Show that the artifact is published."""
        self.remaining.finished(node)
        if self._waiting == str(node.ref):
            self._waiting = ""
        point = self._points.get(node)
        if node.stage == "data":
            self._log_data(node)
        elif node.kind == "checkpoint":
            self.log(f"{node.stage:<9} checkpoint of step {node.step}")
        elif point is not None:
            path = self.store.open(node.ref).path / METRICS_FILE
            metrics = json.loads(path.read_text(encoding="utf-8"))
            self.log(
                f"{node.stage:<9} step {point.step:>6}  ig scale {point.guidance.ig_scale:<4g} "
                f"FID {number(metrics['fid']):>8}  [{metric_interval(metrics)}]  "
                f"{metrics['num_samples']:,} samples"
            )
            self.evaluated()

    def _log_data(self, node: Node) -> None:
        name = DATA_NAMES.get(node.kind, node.kind)
        if node.kind == "latents":
            name = f"latents {node.config['start']:,} to {node.config['stop']:,}"
        self.log(f"{node.stage:<9} {name} ready")
        read_images = "listing" in node.inputs or "images" in node.config
        if node.kind not in ("data", "reference") or not read_images:
            return
        path = self.store.open(node.ref).path / STATISTICS_FILE
        faulty = json.loads(path.read_text(encoding="utf-8"))["broken"]
        for entry in faulty[:MAX_FAULTY_IMAGES]:
            self.log(f"{node.stage:<9} faulty image {entry['name']}: {entry['fault']}")
        if faulty:
            self.log(f"{node.stage:<9} {len(faulty)} faulty images, listed in {path}")

    def _how_far(self) -> str:
        """Return the part that is done, the time left and the time elapsed."""
        left = self.remaining.seconds_left()
        until = "time left unknown" if left is None else f"{clock(left)} left"
        # 100 % means that everything is published.
        share = min(int(100 * self.remaining.share()), 99)
        return f"{share} %  {until}  {clock(time.monotonic() - self._began)} elapsed"

    def _what_runs(self) -> str:
        """Describe the work in progress."""
        parts, progress = [], self.remaining.progress
        running = [n for n in self.remaining.running if progress is None or not n.trained]
        if progress is not None:
            parts.append(
                f"training step {progress.step} of {progress.steps}, loss "
                f"{number(progress.loss, 4)}, "
                f"{number(progress.steps_per_second, 2, 1)} steps/s"
            )
        kinds = Counter(node.kind for node in running)
        for kind, count in kinds.items():
            places = {self._places[n] for n in running if n.kind == kind and n in self._places}
            work = DOING.get(kind, DATA_NAMES.get(kind, kind))
            details = [*places] if len(places) == 1 else []
            details += [f"{count} at once"] if count > 1 else []
            parts.append(f"{work} ({', '.join(details)})" if details else work)
        if self._waiting:
            parts.append(f"waiting for {self._waiting}, which another process builds")
        return "; ".join(parts) or "starting"


def training_text(training: Training, now: float) -> str:
    """Format the step, the loss, the rate, the time left and the host of a training."""
    rate = training.steps_per_second
    left = ""
    if rate > 0:
        seconds = (training.steps - training.step) / rate - max(now - training.reported_at, 0)
        left = f", {clock(max(seconds, 0))} left"
    workers = "1 worker" if training.workers == 1 else f"{training.workers} workers, the first"
    place = f", {workers} on {training.host}" if training.host else ""
    overdue = now - training.reported_at > 30
    reported = f" (reported {time_ago(training.reported_at, now)})" if overdue else ""
    return (
        f"step {training.step} of {training.steps}, loss {number(training.loss, 4)}, "
        f"{number(rate, 2, 1)} steps/s{left}{place}{reported}"
    )


def time_ago(then: float, now: float) -> str:
    """Format the time since a moment; at least 0 s, as the clocks of hosts differ a little."""
    seconds = max(now - then, 0.0)
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.1f} h ago" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d ago"
