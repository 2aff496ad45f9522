"""Report files of a run: plots and sample grids as PNG, the table of results as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.common.formatting import number
from pipelines.results.measurements import checkpoint_name, published
from pipelines.stages.context import write_experiment
from pipelines.store.file_names import EXPERIMENT_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.results.measurements import Measurement, Results


UNGUIDED, GUIDED = "#8d99ae", "#d1495b"
"""Colours."""
GRID_COLUMNS, GRID_ROWS = 12, 12
"""Largest size of a grid of samples, in images."""


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write plots, sample grid, table and the resolved experiment; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    write_experiment(results.experiment, directory)
    files = [directory / EXPERIMENT_FILE, directory / "results.csv"]
    results.table().to_csv(files[1], index=False)
    drawings = {
        "fid_curve.png": _draw_curve if results.curve else None,
        "fid_by_ig_scale.png": _draw_scales if results.final else None,
        "samples.png": _draw_samples if results.final else None,
    }
    for name, draw in drawings.items():
        if draw is not None:
            draw(results, directory / name)
            files.append(directory / name)
    return files


def make_figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of matplotlib and its axes; the size is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def real_images(results: Results) -> Any:  # noqa: ANN401
    """Return real images, a row for each class, and the length of a row."""
    return _shard_images(results, [results.graph.data])


def has_real_images(results: Results) -> bool:
    """Return whether the store has training images.

    It has none if another program made the latents, or if the checkpoint is a published one.
    """
    from pipelines.store.file_names import IMAGES_FILE

    data = published(results.store, [results.graph.data]).get(results.graph.data)
    if data is None:
        return not results.experiment.train.imported
    return IMAGES_FILE in data.manifest["files"]


def sampled_images(results: Results, measurement: Measurement) -> Any:  # noqa: ANN401
    """Return the first samples of a measurement, a row for each class, and the length of a row."""
    return _shard_images(results, [measurement.point.images[0]])


def _band(axes: Any, x: list[float], points: list[Measurement], **style: Any) -> None:  # noqa: ANN401
    axes.plot(x, [m.fid for m in points], marker="o", markersize=4, **style)
    axes.fill_between(
        x,
        [m.metrics["fid_low"] for m in points],
        [m.metrics["fid_high"] for m in points],
        alpha=0.2,
        color=style["color"],
        linewidth=0,
    )


def _draw_curve(results: Results, path: Path) -> None:
    figure, axes = make_figure(6.4, 4.2)
    for guidance, curve in results.curves().items():
        scale = guidance.ig_scale
        _band(
            axes,
            list(curve),
            list(curve.values()),
            color=UNGUIDED if scale == 1 else GUIDED,
            label="unguided" if scale == 1 else f"internal guidance, scale {scale:g}",
        )
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel(
        f"FID ({results.experiment.evaluation.curve_samples:,} samples, "
        f"{results.experiment.evaluation.extractor})"
    )
    axes.set_title(f"{results.experiment.name}: FID over training, 95 % intervals", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)


def _draw_scales(results: Results, path: Path) -> None:
    figure, axes = make_figure(6.4, 4.2)
    scales = [guidance.ig_scale for guidance in results.final]
    _band(axes, scales, list(results.final.values()), color=GUIDED)
    base = results.baseline
    if base is not None:
        axes.axhline(base.fid, color=UNGUIDED, linestyle="--", linewidth=1)
        axes.annotate(
            "unguided",
            (scales[-1], base.fid),
            color=UNGUIDED,
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
        )
    best = results.best()
    if best is not None:
        scale = best[0].guidance.ig_scale
        text = f"lowest here: {number(best[0].fid)} at {scale:g}"
        axes.annotate(
            text,
            (scale, best[0].fid),
            ha="center",
            xytext=(0, -18),
            textcoords="offset points",
        )
        axes.margins(y=0.15)
    axes.set_xlabel("internal guidance scale (1 = off)")
    axes.set_ylabel(f"FID ({results.experiment.evaluation.num_samples:,} samples)")
    axes.set_title(
        f"{results.experiment.name}: FID by guidance scale, 95 % intervals, "
        f"{checkpoint_name(results.experiment.train)}",
        loc="left",
    )
    figure.savefig(path)


def _draw_samples(results: Results, path: Path) -> None:
    """Draw samples without guidance and at the best scale, from the same noise and labels."""
    from matplotlib.figure import Figure

    from ig_core.images.sets import contact_sheet

    best = results.best()
    base = results.baseline
    panels = [("real", real_images(results))] if has_real_images(results) else []
    if base is not None:
        panels.append((f"unguided: FID {number(base.fid)}", sampled_images(results, base)))
    if best is not None and best[0] is not base:
        title = f"internal guidance {best[0].guidance.ig_scale:g}: FID {number(best[0].fid)}"
        panels.append((title, sampled_images(results, best[0])))
    if not panels:
        return
    figure = Figure(figsize=(4.6 * len(panels), 4.1), dpi=150, layout="constrained")
    for axes, (title, (images, columns)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        sheet = contact_sheet(images, columns, zoom=max(1, 64 // images.shape[-1]), gap=0)
        pixels = sheet[0] if len(sheet) == 1 else sheet.permute(1, 2, 0)
        axes.imshow(pixels.numpy(), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, loc="left")
        axes.axis("off")
    figure.savefig(path)


def _by_class(images: Any, labels: Any, classes: int) -> Any:  # noqa: ANN401
    """Return the first images of each class, a row for each class, and the length of a row."""
    import torch

    chosen = [images[labels == label] for label in range(classes)]
    rows = [row for row in chosen if len(row)][:GRID_ROWS]
    columns = min([GRID_COLUMNS, *map(len, rows)])
    return torch.cat([row[:columns] for row in rows]), columns


def _shard_images(results: Results, nodes: list[Any]) -> Any:  # noqa: ANN401
    from ig_core.images.sets import read_images
    from pipelines.store.file_names import IMAGES_FILE

    paths = [results.store.open(n.ref).path / IMAGES_FILE for n in nodes]
    images = read_images(paths)
    return _by_class(images.image, images.label, results.experiment.model.num_classes)
