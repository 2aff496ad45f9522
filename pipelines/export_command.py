"""`igdit export`: samples of a run in the formats of other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.collection import in_use
from pipelines.graph import Graph
from pipelines.results import collect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from experiments import Experiment
    from pipelines.artifacts import Store
    from pipelines.graph import Point
    from pipelines.home import Home


def export_samples(
    home: Home, experiment: Experiment, target: Path, ig_scale: float | None, *, report: bool
) -> int:
    """Write the samples of the last checkpoint as an ADM .npz or as a folder of PNG files.

    Args:
        home: Whose results.
        experiment: Whose samples; they must be in the store.
        target: `NAME.npz` (arr_0 images, arr_1 labels), or a folder for `000000.png`, ...
        ig_scale: Internal guidance scale; None: the experiment's own.
        report: Take the bank of noise on which what was chosen is reported.

    Returns:
        How many images were written.

    Raises:
        ValueError: there are no such samples, or something is in the way.
    """
    from ig_core.image_files import write_folder, write_npz
    from ig_core.images import read_images
    from pipelines.stages.data import IMAGES

    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"target must be new, but {target} exists")
    store, graph = home.store, Graph(experiment)
    with in_use(store):
        point = _point(store, graph, ig_scale, report=report)
        rows, labels = _chosen(graph, point)

        def batches() -> Iterator[Tensor]:
            """Shard by shard, so that a set need not fit into memory."""
            start = 0
            for node in point.images:
                images = read_images([store.open(node.kind, node.key).path / IMAGES]).image
                mine = rows[(rows >= start) & (rows < start + len(images))] - start
                yield images[mine]
                start += len(images)

        if target.suffix == ".npz":
            write_npz(target, batches(), len(rows), labels)
        else:
            write_folder(target, batches())
    return len(rows)


def _point(store: Store, graph: Graph, ig_scale: float | None, *, report: bool) -> Point:
    scale, points = ig_scale, graph.final
    if scale is None:
        chosen = collect(store, graph).chosen_scale if report else None
        scale = graph.experiment.guidance.ig_scale if chosen is None else chosen
    if report:
        every = {*graph.experiment.scales, scale}
        points = tuple(dict.fromkeys(point for one in every for point in graph.report(one)))
    found = next((point for point in points if point.guidance.ig_scale == scale), None)
    if found is None or not all(store.find(node.kind, node.key) for node in found.images):
        there = sorted(
            {
                f"{p.guidance.ig_scale:g}"
                for p in points
                if all(store.find(node.kind, node.key) for node in p.images)
            }
        )
        raise ValueError(
            f"ig_scale must be one that was sampled ({', '.join(there) or 'none'}), "
            f"but got {scale:g}"
        )
    return found


def _chosen(graph: Graph, point: Point) -> tuple[Tensor, Tensor]:
    """Rows of the shards, one after another, that belong to the set, and their labels (N,)."""
    import torch

    from ig_core.pools import beyond_balanced, random_pool, rows_of

    classes, index = graph.experiment.model.num_classes, torch.arange(point.num_samples)
    if graph.experiment.evaluation.labels == "balanced":
        return index, index % classes
    pool = random_pool(point.images[0].config["seed"], point.num_samples, classes)
    stored = torch.cat([index, torch.from_numpy(beyond_balanced(pool))])
    rows = torch.from_numpy(rows_of(pool)).sort().values
    return rows, stored[rows] % classes
