"""Results, plans, the store and its garbage, printed on the terminal."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.text import Text

from experiments.protocols import protocol_name
from pipelines.common.formatting import change, data_size, in_words, metric, metric_interval, number
from pipelines.common.redaction import redact
from pipelines.console.console import ScreenTable, log, numbers, print_table, words
from pipelines.graph.garbage import store_summary
from pipelines.results.measurements import checkpoint_name
from pipelines.store.register import read_register

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from experiments import Experiment
    from pipelines.graph.garbage import Garbage
    from pipelines.results.measurements import Results
    from pipelines.store.base import Store


SHOWN_METRICS = (
    "fid",
    "fid_infinity",
    "balanced_fid",
    "sfid",
    "kid",
    "inception_score",
    "precision",
    "recall",
)
"""Metrics of an evaluation that are printed, in this order."""


def print_report(results: Results, console: Console) -> None:
    """Print the FID by scale, the FID curve and the cost of each stage."""
    if results.final:
        print_table(_scale_table(results), console)
        for line in _verdict(results):
            console.print(line)
        console.print()
    if results.curve:
        print_table(_curve_table(results), console)
    print_table(_cost_table(results), console)


def print_metrics(path: Path, protocol: str, console: Console) -> None:
    """Print the metrics of an evaluation from its file."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name in SHOWN_METRICS:
        if name in metrics:
            spread = metrics.get(f"{name}_std")
            splits = "" if spread is None else f" (std over splits {number(spread)})"
            rows.append(
                (
                    name.replace("_", " "),
                    number(metrics[name]),
                    metric_interval(metrics, name) + splits,
                )
            )
    title = (
        f"{metrics['num_samples']:,} images, protocol {protocol} ({metrics['fingerprint']['id']})"
    )
    columns = [*words("metric"), *numbers("value", "95 % interval")]
    print_table(ScreenTable(title, columns, rows), console)
    log(console, f"All metrics: {path}")


def print_store(store: Store, console: Console) -> None:
    """Print the recorded runs, studies, tables and evaluations, and the artifacts of each kind."""
    register = read_register(store)
    runs = [
        (
            key[:8],
            experiment.name,
            _length(experiment),
            " ".join(f"{scale:g}" for scale in experiment.scales),
        )
        for key, experiment in register.runs
    ]
    runs += [(key[:8], "(unreadable record)", "", "") for key in register.unreadable_keys]
    columns = [*words("run", "experiment"), *numbers("steps"), *words("ig scales")]
    print_table(ScreenTable("Recorded runs", columns, runs), console)
    others = dict.fromkeys((r.key, r.kind, r.name) for r in register.records if r.kind != "run")
    if others:
        parts = Counter(r.key for r in register.records if r.run is not None)
        rows = [(key[:8], kind, name, str(parts[key] or "")) for key, kind, name in others]
        columns = [*words("key", "what", "name"), *numbers("runs")]
        print_table(ScreenTable("Studies, tables, evaluations", columns, rows), console)
    kinds = [(kind, f"{count:,}", data_size(size)) for kind, count, size in store_summary(store)]
    columns = [*words("kind"), *numbers("artifacts", "size")]
    print_table(ScreenTable(f"Artifacts in {redact(store.uri)}", columns, kinds), console)


def print_garbage(garbage: Garbage, console: Console) -> None:
    """Print what is forgotten, and each artifact that is garbage."""
    for root in garbage.forgotten:
        log(console, f"forgotten: {root}")
    for artifact in garbage.artifacts:
        log(console, f"{artifact.ref}  {data_size(artifact.size)}")
    for name in garbage.quarantined:
        log(console, f"quarantined: {name}")


def _scale_table(results: Results) -> ScreenTable:
    experiment, best = results.experiment, results.best()
    names = ("scale", "FID", "95 % interval", "against scale 1", "prec.", "recall", "IS")
    rows = [
        (
            f"{m.guidance.ig_scale:g}",
            number(m.fid),
            metric_interval(m.metrics),
            "" if gain is None else change(gain),
            *(_number(m.metrics, name) for name in ("precision", "recall", "inception_score")),
        )
        for m, gain in zip(results.final.values(), results.improvements().values(), strict=True)
    ]
    return ScreenTable(
        f"FID by internal guidance scale: {checkpoint_name(experiment.train)}, "
        f"{experiment.evaluation.num_samples:,} samples a scale",
        numbers(*names),
        rows,
        marked=[i for i, m in enumerate(results.final.values()) if best and m is best[0]],
    )


def _infinity(metrics: dict[str, Any]) -> str:
    """Format FID-infinity, which has no bias of the number of samples; empty if not computed."""
    if "fid_infinity" not in metrics:
        return ""
    return f"; extrapolated to infinitely many samples: {metric(metrics, 'fid_infinity')}"


def _number(metrics: dict[str, Any], name: str) -> str:
    """Format a metric; a dash if the reference or the number of samples does not allow it."""
    return number(metrics[name]) if name in metrics else "-"


def _verdict(results: Results) -> Iterator[str | Text]:
    """Yield the sentences below the table of scales."""
    headline, best = results.headline(), results.best()
    if headline is not None:
        gain = results.improvements()[headline.guidance]
        if gain is not None:
            yield (
                f"At the experiment's own scale {headline.guidance.ig_scale:g}: FID {change(gain)} "
                f"against scale 1, same noise and labels."
            )
    if best is not None:
        lowest, equal = best
        text = f"Lowest FID at scale {lowest.guidance.ig_scale:g}"
        if equal:
            scales = ", ".join(f"{m.guidance.ig_scale:g}" for m in equal)
            text += f"; statistically indistinguishable: {scales}"
        yield f"{text}."
    holdout = results.chosen_holdout()
    if holdout is not None:
        m, gain = holdout
        scale = m.guidance.ig_scale
        against = "" if gain is None else f", {change(gain)} against scale 1"
        yield Text.assemble(
            (f"Reported: scale {scale:g}, FID {metric(m.metrics)}{against}", "bold"),
            f", on holdout noise (noise seed "
            f"{results.experiment.evaluation.holdout_noise_seed}){_infinity(m.metrics)}.",
        )
    yield "Intervals cover the sampling error alone, at this number of samples."
    yield f"Protocol: {_protocol(results)}"


def _protocol(results: Results) -> str:
    """Describe the protocol of the evaluations by scale."""
    fingerprint = next(iter(results.final.values())).fingerprint
    name = protocol_name(results.experiment.evaluation)
    return (
        f"{name} ({fingerprint.id}): {fingerprint.num_samples:,} {fingerprint.labels} samples, "
        f"{fingerprint.network_evaluations} network evaluations each, "
        f"{fingerprint.extractor.split()[0]}; compare only numbers with the same fingerprint."
    )


def _curve_table(results: Results) -> ScreenTable:
    curves = results.curves()
    names = ("unguided" if g.ig_scale == 1 else f"ig scale {g.ig_scale:g}" for g in curves)
    rows = []
    for step in dict.fromkeys(step for step, _ in results.curve):
        found = [curve.get(step) for curve in curves.values()]
        rows.append((str(step), *("-" if m is None else metric(m.metrics) for m in found)))
    samples = results.experiment.evaluation.curve_samples
    columns = numbers("step", *names)
    return ScreenTable(f"FID over training: {samples:,} samples a point", columns, rows)


def _cost_table(results: Results) -> ScreenTable:
    rows = [
        (
            str(stage),
            f"{int(row['artifacts']):,}",
            in_words(row["seconds"]),
            data_size(row["bytes"]),
        )
        for stage, row in results.costs().iterrows()
    ]
    columns = [*words("stage"), *numbers("artifacts", "work", "size")]
    return ScreenTable("Cost: all artifacts, cached ones included", columns, rows)


def _length(experiment: Experiment) -> str:
    train = experiment.train
    return "imported" if train.imported else str(train.steps)


def print_freed(garbage: Garbage, console: Console, *, deleted: bool) -> None:
    """Print how much was deleted, or would be."""
    total = data_size(sum(artifact.size for artifact in garbage.artifacts))
    verb = "Deleted" if deleted else "Would delete"
    console.print(
        f"{verb} {len(garbage.artifacts)} artifacts ({total}) and "
        f"{len(garbage.quarantined)} quarantined ones.",
    )
    if garbage.unreadable:
        keys = " ".join(f"--forget {key[:8]}" for key in garbage.unreadable)
        console.print(
            f"All artifacts are kept, because a run with an unreadable record may need them. Run "
            f"it again, or forget it: {keys}",
        )
    if not deleted and (garbage.artifacts or garbage.quarantined or garbage.forgotten):
        console.print("Nothing was deleted; add --delete to delete.")
