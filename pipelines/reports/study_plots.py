"""Plots of a study: FID by scale, curves, and confirmed points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.reports.plots import GUIDED, UNGUIDED, make_figure
from pipelines.study.findings import CONFIRMED, Findings
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from pipelines.study.trials import Trial


def write_findings(
    found: Findings, directory: Path, confirmed: pd.DataFrame | None = None
) -> list[Path]:
    """Write tables as Parquet, and the plots; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    table = directory / "trials.parquet"
    found.table.to_parquet(table)
    files = [table]
    complete = [t for t in found.trials if t.fid is not None]
    if complete:
        files.append(plot_scales(complete, directory / "fid_by_scale.png"))
        files.append(plot_curves(complete, directory / "fid_curves.png"))
    if confirmed is not None:
        files.append(directory / CONFIRMED)
        confirmed.to_parquet(files[-1])
        files.append(plot_confirmed(confirmed, directory / "fid_confirmed.png"))
    return files


def plot_scales(trials: Sequence[Trial], path: Path) -> Path:
    """Plot FID over guidance scale, a line for each training of a study."""
    figure, axes = make_figure(7.2, 4.6)
    for label, points in _by_training(trials).items():
        fids = [t.fid for t in points]
        errors = [
            [t.fid - t.facts["fid_low"] for t in points],
            [t.facts["fid_high"] - t.fid for t in points],
        ]
        axes.errorbar(
            [t.point.ig_scale for t in points],
            fids,
            yerr=errors,
            marker="o",
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=label,
        )
    axes.set_xlabel("internal guidance scale (1 is off)")
    axes.set_ylabel("FID, 95 % intervals")
    return _finish(figure, axes, "FID over guidance scale, by training", path)


def plot_curves(trials: Sequence[Trial], path: Path) -> Path:
    """Plot FID over training, a line for each training of a study."""
    figure, axes = make_figure(7.2, 4.6)
    for label, points in _by_training(trials).items():
        curve = points[0].curve
        axes.plot(
            sorted(curve),
            [curve[step].fid for step in sorted(curve)],
            marker="o",
            markersize=3,
            linewidth=1.2,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("FID at the curve's guidance scale")
    return _finish(figure, axes, "FID over training, by training", path)


def plot_confirmed(table: pd.DataFrame, path: Path) -> Path:
    """Plot the FID of the best points on other seeds: each seed, mean and 95 % interval."""
    from pipelines.study.confirm import BASELINE, summarise

    figure, axes = make_figure(7.2, 3.2)
    summary = summarise(table)
    for row, (label, found) in enumerate(summary.iterrows()):
        color = UNGUIDED if label == BASELINE else GUIDED
        own = table[table["candidate"] == label]["fid"]
        axes.plot(own, [row] * len(own), "o", color=color, alpha=0.4, markersize=5)
        axes.errorbar(
            found["fid"],
            row,
            xerr=[[found["fid"] - found["fid_low"]], [found["fid_high"] - found["fid"]]],
            marker="|",
            markersize=14,
            capsize=4,
            color=color,
        )
    axes.set_yticks(range(len(summary)), [str(label) for label in summary.index])
    axes.set_ylim(len(summary) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("FID; dots are training seeds, bars 95 % intervals of their mean")
    axes.set_title("Best point of each layer, confirmed on other seeds", loc="left")
    figure.savefig(path)
    return path


def _by_training(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return label of a training -> its trials; earliest layer first."""
    found = by_training(sorted(trials, key=lambda t: t.point.ig_scale))
    return {found[training][0].point.training_name: found[training] for training in sorted(found)}


def _finish(figure: Any, axes: Any, title: str, path: Path) -> Path:  # noqa: ANN401
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(path)
    return path
