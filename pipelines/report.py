"""What a person sees at the end: tables on screen, plots and sample grids as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.collection import recorded_runs, store_summary
from pipelines.graph import STAGES, Graph, Node, closure
from pipelines.stages.build import EXPERIMENT_FILE, write_experiment
from pipelines.stages.train import starting_step

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pipelines.artifacts import Store
    from pipelines.collection import Garbage
    from pipelines.dag import Plan
    from pipelines.results import Measurement, Results

UNGUIDED, GUIDED = "#8d99ae", "#d1495b"
GRID_COLUMNS, GRID_ROWS = 12, 12


def print_report(results: Results, console: Console) -> None:
    """Print the FID by scale, the FID curve and the cost of each stage."""
    if results.final:
        console.print(_scale_table(results))
        console.print(_verdict(results))
    if results.curve:
        console.print(_curve_table(results))
    console.print(_cost_table(results))


def _scale_table(results: Results) -> Table:
    experiment = results.experiment
    table = Table(
        title=f"FID by internal guidance scale, step {experiment.train.steps}, "
        f"{experiment.evaluation.num_samples:,} samples a scale",
        title_justify="left",
    )
    for name in ("ig scale", "FID", "95 % interval", "against scale 1 (paired)", "KID x 1000",
                 "precision", "recall", "IS"):  # fmt: skip
        table.add_column(name, justify="right")
    best = results.best()
    for m, gain in zip(results.final, results.improvements(), strict=True):
        style = "bold" if best and m is best[0] else None
        change = "" if gain is None else f"{-gain[0]:+.1%} [{-gain[2]:+.1%}, {-gain[1]:+.1%}]"
        table.add_row(
            f"{m.scale:g}", f"{m.fid:.2f}",
            f"{m.metrics['fid_low']:.2f} .. {m.metrics['fid_high']:.2f}", change,
            f"{1000 * m.metrics['kid']:.1f}", f"{m.metrics['precision']:.3f}",
            f"{m.metrics['recall']:.3f}", f"{m.metrics['inception_score']:.2f}", style=style,
        )  # fmt: skip
    return table


def _verdict(results: Results) -> str:
    best = results.best()
    if best is None:
        return ""
    measurement, equal = best
    text = f"Lowest FID at scale {measurement.scale:g}"
    if equal:
        text += f"; not distinguishable from it: {', '.join(f'{s:g}' for s in equal)}"
    return text + ". (The scale is read off the same samples; intervals are of the sampling.)\n"


def _curve_table(results: Results) -> Table:
    table = Table(
        title=f"FID over training, {results.experiment.evaluation.curve_samples:,} samples a point",
        title_justify="left",
    )
    table.add_column("step", justify="right")
    scales = sorted({m.scale for m in results.curve})
    for scale in scales:
        table.add_column("unguided" if scale == 1 else f"ig scale {scale:g}", justify="right")
    for step in sorted({m.point.step for m in results.curve}):
        found = {m.scale: m for m in results.curve if m.point.step == step}
        cells = [
            f"{found[s].fid:.1f} ({found[s].metrics['fid_low']:.1f} .. "
            f"{found[s].metrics['fid_high']:.1f})" if s in found else "-"
            for s in scales
        ]  # fmt: skip
        table.add_row(str(step), *cells)
    return table


def _cost_table(results: Results) -> Table:
    table = Table(title="Cost of each stage (seconds of work, whenever it was done)",
                  title_justify="left")  # fmt: skip
    for name in ("stage", "artifacts", "seconds", "MiB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, row in results.costs().iterrows():
        table.add_row(str(stage), str(int(row["artifacts"])), f"{row['seconds']:.1f}",
                      f"{row['bytes'] / 2**20:.1f}")  # fmt: skip
    return table


def print_plan(graph: Graph, store: Store, plan: Plan, console: Console) -> None:
    """Print what is cached and what would run, by stage."""
    table = Table(title=f"{graph.experiment.name} {graph.run_key[:8]} in {store.root}",
                  title_justify="left")  # fmt: skip
    for name in ("stage", "kind", "cached", "to build", "what would run"):
        table.add_column(name, justify="right" if name in ("cached", "to build") else "left")
    nodes = list(closure(graph.targets))
    for kind, stage in STAGES.items():
        own = [node for node in nodes if node.kind == kind]
        missing = [node for node in own if node in plan.missing]
        cached = sum(store.find(node.kind, node.key) is not None for node in own)
        table.add_row(stage, kind, str(cached), str(len(missing)),
                      _what_would_run(graph, store, kind, missing))  # fmt: skip
    console.print(table)
    if not plan.missing:
        console.print("Everything is there: running it only prints the results.")


def _what_would_run(graph: Graph, store: Store, kind: str, missing: list[Node]) -> str:
    if not missing:
        return ""
    if kind == "checkpoint":
        start = starting_step(store, graph)
        return f"training from step {start} to {graph.experiment.train.steps}"
    if kind == "images":
        count = sum(node.config["stop"] - node.config["start"] for node in missing)
        return f"{count:,} images"
    if kind == "evaluate":
        points = [p for p in dict.fromkeys((*graph.curve, *graph.final)) if p.evaluate in missing]
        texts = [f"step {p.step} at ig scale {p.guidance.ig_scale:g}" for p in points]
        more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
        return ", ".join(texts[:3]) + more
    return ""


def print_store(store: Store, console: Console) -> None:
    """Print the recorded runs and what the store holds of each kind."""
    runs = Table(title="Recorded runs", title_justify="left")
    for name in ("run", "experiment", "steps", "ig scales"):
        runs.add_column(name)
    for key, experiment in recorded_runs(store).items():
        scales = " ".join(f"{scale:g}" for scale in experiment.scales)
        runs.add_row(key[:8], experiment.name, str(experiment.train.steps), scales)
    console.print(runs)
    table = Table(title=f"Artifacts in {store.root}", title_justify="left")
    for name in ("kind", "artifacts", "MiB"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, count, size in store_summary(store):
        table.add_row(kind, str(count), f"{size / 2**20:.1f}")
    console.print(table)


def print_garbage(garbage: Garbage, console: Console, *, deleting: bool) -> None:
    """Print what collection would remove."""
    for artifact in garbage.artifacts:
        console.print(f"{artifact.kind}/{artifact.key}  {artifact.size / 2**20:.1f} MiB",
                      highlight=False)  # fmt: skip
    for path in garbage.set_aside:
        console.print(f"set aside: {path.name}", highlight=False)
    total = sum(artifact.size for artifact in garbage.artifacts) / 2**20
    verb = "Deleting" if deleting else "Would delete"
    console.print(f"{verb} {len(garbage.artifacts)} artifacts ({total:.1f} MiB) and "
                  f"{len(garbage.set_aside)} set aside.", highlight=False)  # fmt: skip
    if not deleting and (garbage.artifacts or garbage.set_aside):
        console.print("Nothing was deleted; add --delete to do it.")


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


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _band(axes: Any, x: list[float], points: list[Measurement], **style: Any) -> None:  # noqa: ANN401
    axes.plot(x, [m.fid for m in points], marker="o", markersize=4, **style)
    axes.fill_between(x, [m.metrics["fid_low"] for m in points],
                      [m.metrics["fid_high"] for m in points], alpha=0.2,
                      color=style["color"], linewidth=0)  # fmt: skip


def _draw_curve(results: Results, path: Path) -> None:
    figure, axes = _figure(6.4, 4.2)
    for scale in sorted({m.scale for m in results.curve}):
        points = [m for m in results.curve if m.scale == scale]
        label = "unguided" if scale == 1 else f"internal guidance, scale {scale:g}"
        _band(axes, [m.point.step for m in points], points,
              color=UNGUIDED if scale == 1 else GUIDED, label=label)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel(f"FID ({results.experiment.evaluation.curve_samples:,} samples, "
                    f"{results.experiment.evaluation.extractor})")  # fmt: skip
    axes.set_title(f"{results.experiment.name}: FID over training, 95 % intervals", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)


def _draw_scales(results: Results, path: Path) -> None:
    figure, axes = _figure(6.4, 4.2)
    _band(axes, [m.scale for m in results.final], list(results.final), color=GUIDED)
    base = next((m for m in results.final if m.scale == 1), None)
    if base is not None:
        axes.axhline(base.fid, color=UNGUIDED, linestyle="--", linewidth=1)
        axes.annotate("unguided", (results.final[-1].scale, base.fid), color=UNGUIDED,
                      xytext=(0, 4), textcoords="offset points", ha="right")  # fmt: skip
    best = results.best()
    if best is not None:
        axes.annotate(f"{best[0].fid:.2f} at {best[0].scale:g}", (best[0].scale, best[0].fid),
                      xytext=(0, -18), textcoords="offset points", ha="center")  # fmt: skip
        axes.margins(y=0.15)
    axes.set_xlabel("internal guidance scale (1 = off)")
    axes.set_ylabel(f"FID ({results.experiment.evaluation.num_samples:,} samples)")
    axes.set_title(f"{results.experiment.name}: FID by guidance scale, 95 % intervals, "
                   f"step {results.experiment.train.steps}", loc="left")  # fmt: skip
    figure.savefig(path)


def _draw_samples(results: Results, path: Path) -> None:
    """The same noise and labels side by side: unguided, and at the scale with the lowest FID."""
    from matplotlib.figure import Figure

    from ig_core.images import contact_sheet

    best = results.best()
    base = next((m for m in results.final if m.scale == 1), None)
    panels = [("real", _real_images(results))]
    if base is not None:
        panels.append((f"unguided: FID {base.fid:.1f}", _sampled_images(results, base)))
    if best is not None and best[0] is not base:
        title = f"internal guidance {best[0].scale:g}: FID {best[0].fid:.1f}"
        panels.append((title, _sampled_images(results, best[0])))
    figure = Figure(figsize=(4.4 * len(panels), 4.1), dpi=130, layout="constrained")
    for axes, (title, (images, columns)) in zip(
        figure.subplots(1, len(panels)), panels, strict=True
    ):
        sheet = contact_sheet(images, columns, zoom=4)
        pixels = sheet[0] if len(sheet) == 1 else sheet.permute(1, 2, 0)
        axes.imshow(pixels.numpy(), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, loc="left")
        axes.axis("off")
    figure.savefig(path)


def _by_class(images: Any, labels: Any, classes: int) -> Any:  # noqa: ANN401
    """The first images of each class, one row a class, and the length of a row."""
    import torch

    chosen = [images[labels == label] for label in range(min(classes, GRID_ROWS))]
    columns = min(GRID_COLUMNS, *(len(row) for row in chosen))
    return torch.cat([row[:columns] for row in chosen]), columns


def _real_images(results: Results) -> Any:  # noqa: ANN401
    return _shard_images(results, [results.graph.data])


def _sampled_images(results: Results, measurement: Measurement) -> Any:  # noqa: ANN401
    return _shard_images(results, [measurement.point.images[0]])


def _shard_images(results: Results, nodes: list[Any]) -> Any:  # noqa: ANN401
    from ig_core.images import read_images
    from pipelines.stages.data import IMAGES

    paths = [results.store.open(n.kind, n.key).path / IMAGES for n in nodes]
    images = read_images(paths)
    return _by_class(images.image, images.label, results.experiment.model.num_classes)
