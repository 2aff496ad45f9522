"""Report of a study as one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments import Study
from pipelines.common.formatting import change, in_words, metric, number, percent
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.reports import blocks as page
from pipelines.reports.charts import Row, Sample, Series, interval_chart, line_chart, y_limits
from pipelines.reports.html import Html, badge, markup, paragraph, section, table, tag
from pipelines.reports.html import page as document
from pipelines.reports.reproduce import study_words
from pipelines.results.measurements import collect, published
from pipelines.store.files import replace_text
from pipelines.study.confirm import BASELINE, candidate, summarise
from pipelines.study.findings import CONFIRMED
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipelines.graph.node import Node
    from pipelines.reports.html import Child
    from pipelines.store.base import Store
    from pipelines.study.findings import Findings
    from pipelines.study.trials import Trial


BADGE_CLASSES = {"COMPLETE": "plain", "RUNNING": "equal", "PRUNED": "plain", "FAIL": "bad"}
"""State of a trial -> class of its badge in page.css."""
SELECTION_NOTE = (
    "Brackets hold 95 % intervals. The best point was chosen on the same samples that give its FID."
)
STATE_NAMES = {"COMPLETE": "complete", "RUNNING": "running", "PRUNED": "pruned", "FAIL": "failed"}


def write_study_page(found: Findings, store: Store, directory: Path) -> Path:
    """Write the page into a report folder; returns its path.

    It shows the study as it is stored, so that it does not depend on the resources of the writer.

    Args:
        found: Findings of the study.
        store: Store of its artifacts.
        directory: The folder; it may hold the confirmation on other seeds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored = Study.from_fixed(found.study.name, found.study.fixed())
    found = dataclasses.replace(found, study=stored)
    table, path = directory / CONFIRMED, directory / page.PAGE_FILE
    confirmed = pd.read_parquet(table) if table.exists() else None
    replace_text(path, study_page(found, store, confirmed))
    return path


def study_page(found: Findings, store: Store, confirmed: pd.DataFrame | None = None) -> Html:
    """Compose the page of a study."""
    study, nodes = found.study, _nodes(found)
    artifacts = list(published(store, nodes).values())
    states = Counter(trial.state for trial in found.trials)
    facts = [
        *(f"{n} {STATE_NAMES[state]}" for state, n in states.items()),
        f"{len(by_training(found.trials))} trainings",
        f"{study.experiment.train.steps:,} steps each",
        f"{study.experiment.evaluation.num_samples:,} samples a point",
    ]
    if artifacts:
        facts.append(page.built_at(artifacts))
    return document(
        f"Study {study.name}",
        page.header("study", study.name, facts),
        page.lead(headline(found)),
        confirmed_sentence(confirmed),
        _not_confirmed(found, confirmed),
        paragraph(SELECTION_NOTE, class_="note") if found.best else None,
        section("FID over guidance scale, by training", scale_charts(found)),
        section("FID over training", curve_chart(found)),
        section("Best point and its equals", best_table(found)),
        section("Confirmed on other seeds", confirmation(confirmed)),
        section("What matters", importances(found)),
        section("Samples of the best training", samples(found, store)),
        section("All trials", trials_table(found)),
        section("Cost", _costs(found, store, nodes) if artifacts else None),
        section("Configuration", page.configuration(study, "study", without=("resources",))),
        section("Provenance", page.provenance(artifacts) if artifacts else None),
        section("Reproduce", _again(found)),
    )


def headline(found: Findings) -> str:
    """State the result in a sentence."""
    best = found.best
    if best is None:
        return "No point of this study is complete yet."
    count = len(found.equals)
    others = {
        0: "no other point is its equal",
        1: "one other point cannot be distinguished from it",
    }.get(count, f"{count} other points cannot be distinguished from it")
    text = (
        f"{_name(best)} has the lowest FID of {len(_complete(found))} points, "
        f"{_fid(best)}; {others} on the same noise."
    )
    return text if found.holdout is None else f"{text} {page.holdout_sentence(found.holdout)}"


def confirmed_sentence(confirmed: pd.DataFrame | None) -> Html | None:
    """State whether the study's result holds on other seeds."""
    if confirmed is None or confirmed.empty:
        return None
    summary = summarise(confirmed)
    gains = summary.drop(index=BASELINE, errors="ignore")
    better = [str(label) for label, row in gains.iterrows() if row["gain_low"] > 0]
    seeds = int(summary["seeds"].max())
    held = "no candidate has a significantly lower FID than the model without auxiliary loss"
    if better:
        held = f"lower FID than the model without auxiliary loss holds for {'; '.join(better)}"
    return paragraph(f"On {seeds} other training seeds and other noise, {held}.")


def scale_charts(found: Findings) -> Html | None:
    """Draw a chart for each layer with a line for each weight, on one vertical axis."""
    trainings = by_training(sorted(_complete(found), key=lambda t: t.point.ig_scale))
    layers: dict[int, list[Series]] = {}
    for layer, weight in sorted(trainings):
        lines = layers.setdefault(layer, [])
        points = tuple(map(_sample, trainings[layer, weight]))
        lines.append(
            Series(
                f"weight {weight:g}", points, 1 + len(lines) % 7, bars=True, dashes=len(lines) // 7
            )
        )
    if not layers:
        return None
    every = [line for lines in layers.values() for line in lines]
    scales = [s.x for line in every for s in line.samples]
    x_range, y_range = (min(scales), max(scales)), y_limits(every)
    return tag(
        "div",
        *(
            line_chart(
                f"Auxiliary layer {layer}",
                lines,
                "internal guidance scale (1 is off)",
                "FID, 95 % intervals",
                x_range=x_range,
                y_range=y_range,
            )
            for layer, lines in layers.items()
        ),
        class_="pair",
    )


def curve_chart(found: Findings) -> Html | None:
    """Draw the FID of each training over its checkpoints, in the colour of its layer."""
    lines: list[Series] = []
    for (layer, weight), members in sorted(by_training(found.trials).items()):
        curve = max((t.curve for t in members), key=len)
        points = tuple(
            Sample(
                step,
                p.fid,
                p.fid - p.half_width,
                p.fid + p.half_width,
                f"layer {layer}, weight {weight:g}, step {step}: FID {number(p.fid)}",
            )
            for step, p in sorted(curve.items())
        )
        same = sum(line.color == layer for line in lines)
        lines.append(
            Series(f"layer {layer}, weight {weight:g}", points, layer, bars=True, dashes=same)
        )
    scale = found.study.experiment.guidance.ig_scale
    chart = line_chart(
        "One line for each training, coloured by layer",
        lines,
        "training step",
        f"FID at scale {scale:g}",
        log=True,
    )
    return tag("div", chart, class_="single") if chart else None


def best_table(found: Findings) -> Html | None:
    """Tabulate the best point and, in the order of the space, its statistical equals."""
    if found.best is None:
        return None
    equals = sorted(
        found.equals, key=lambda t: (t.point.aux_layer, t.point.aux_weight, t.point.ig_scale)
    )
    rows = [[*_place(t), _fid(t), _mark(found, t)] for t in (found.best, *equals)]
    return markup(
        table(["trial", "layer", "weight", "scale", "FID", ""], rows, left=0, marked=[0]),
        paragraph(
            "Equals are listed by layer, weight and scale, not by FID: the 95 % interval of "
            "their paired difference from the best point holds 0, so that their order has no "
            "meaning.",
            class_="note",
        )
        if found.equals
        else None,
    )


def confirmation(confirmed: pd.DataFrame | None) -> Html | None:
    """Show the mean FID on other seeds, with its interval over the seeds."""
    if confirmed is None or confirmed.empty:
        return None
    summary = summarise(confirmed)
    rows: list[list[Child]] = []
    bars = []
    for label, row in summary.iterrows():
        base = label == BASELINE
        gain = (row["gain"], row["gain_low"], row["gain_high"])
        rows.append(
            [
                str(label),
                f"{row['seeds']:.0f}",
                metric(dict(row)),
                "" if base else change(gain),
                None if base else badge(*_confirmed_mark(gain)),
            ]
        )
        dots = tuple(confirmed[confirmed["candidate"] == label]["fid"])
        bars.append(
            Row(str(label), row["fid"], row["fid_low"], row["fid_high"], dots, 0 if base else 1)
        )
    return markup(
        tag(
            "div",
            interval_chart(
                "Dots are training seeds, bars 95 % intervals of their mean", bars, "FID"
            ),
            class_="single",
        ),
        table(
            ["candidate", "seeds", "mean FID", "against the first, same seeds", ""],
            rows,
            caption="Trained from other seeds and sampled from noise that was not used to choose",
        ),
    )


def importances(found: Findings) -> Html | None:
    """Tabulate the importance of each parameter for FID."""
    if not found.importances:
        return None
    names = {
        "aux_layer": "auxiliary layer",
        "aux_weight": "auxiliary weight",
        "ig_scale": "internal guidance scale",
    }
    rows = [
        [
            names.get(name, name),
            percent(share),
            tag("span", class_="meter", style=f"width:{10 * share:.2f}rem"),
        ]
        for name, share in found.importances.items()
    ]
    rows = [[name, bar, share] for name, share, bar in rows]
    return markup(
        table(["parameter", "", "importance for FID"], rows, left=2),
        paragraph("Optuna's estimate from the complete trials; it has no interval.", class_="note"),
    )


def samples(found: Findings, store: Store) -> Html | None:
    """Show samples of the best training, without guidance and at the best scale."""
    if found.best is None:
        return None
    point = found.best.point
    results = collect(store, Graph(found.study.training_of([point])), pass_over_damaged=True)
    base, best = results.baseline, results.headline(found.study.guidance_at(point))
    titled = [("Unguided", base)]
    if best is not base:
        titled.append((f"Internal guidance, scale {point.ig_scale:g}", best))
    return page.sample_grids(results, [(title, m) for title, m in titled if m is not None])


def trials_table(found: Findings) -> Html | None:
    """Tabulate every trial, by number."""
    if not found.trials:
        return None
    seconds: dict[int, Any] = found.table.set_index("trial").to_dict("index")
    rows = [
        [
            *_place(t),
            badge(STATE_NAMES[t.state], BADGE_CLASSES[t.state]),
            "" if t.fid is None else _fid(t),
            _mark(found, t),
            _seconds(seconds[t.number]["train_seconds"]),
            _seconds(seconds[t.number]["point_seconds"]),
        ]
        for t in found.trials
    ]
    best = [i for i, t in enumerate(found.trials) if t is found.best]
    head = ["trial", "layer", "weight", "scale", "state", "FID", "", "training", "own samples"]
    return table(head, rows, left=0, marked=best, caption="In the order in which they were added")


def _nodes(found: Findings) -> list[Node]:
    """Return the artifacts behind the study's points, each once."""
    nodes: dict[Node, None] = {}
    for members in by_training(found.trials).values():
        graph = Graph(found.study.training_of(t.point for t in members))
        nodes |= dict.fromkeys(closure(graph.targets))
    return list(nodes)


def _not_confirmed(found: Findings, confirmed: pd.DataFrame | None) -> Html | None:
    """Warn if the confirmation is older than the best point."""
    if found.best is None or confirmed is None:
        return None
    if candidate(found.best.point).label in set(confirmed["candidate"]):
        return None
    return paragraph(
        "The best point has changed since the confirmation, and is not confirmed.", class_="warning"
    )


def _name(trial: Trial) -> str:
    name = trial.point.training_name
    return f"{name[0].upper()}{name[1:]}, scale {trial.point.ig_scale:g}"


def _complete(found: Findings) -> list[Trial]:
    return [t for t in found.trials if t.fid is not None]


def _fid(trial: Trial) -> str:
    return metric({"fid": trial.fid, **trial.facts})


def _sample(trial: Trial) -> Sample:
    assert trial.fid is not None
    return Sample(
        trial.point.ig_scale,
        trial.fid,
        trial.facts.get("fid_low"),
        trial.facts.get("fid_high"),
        f"trial {trial.number}: {_name(trial)}, FID {_fid(trial)}",
    )


def _place(trial: Trial) -> list[Child]:
    point = trial.point
    return [str(trial.number), str(point.aux_layer), f"{point.aux_weight:g}", f"{point.ig_scale:g}"]


def _mark(found: Findings, trial: Trial) -> Html | None:
    if trial is found.best:
        return badge("lowest", "lowest")
    return badge("equal", "equal") if trial in found.equals else None


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else in_words(value)


def _costs(found: Findings, store: Store, nodes: Sequence[Node]) -> Html:
    saved = ""
    if found.naive_seconds:
        share = percent(1 - found.spent_seconds / found.naive_seconds)
        saved = (
            f"Worker time of the trials: {in_words(found.spent_seconds)}. A training for each "
            f"point would have taken {in_words(found.naive_seconds)}: sharing trainings saved "
            f"{share}."
        )
    return markup(paragraph(saved) if saved else None, page.costs(store, nodes))


def _again(found: Findings) -> Html:
    study = found.study
    words = study_words(study)
    if words is not None:
        words += [] if study.name == words[1] else ["--name", study.name]
        words += ["--trials", str(len(_complete(found)))]
    point = found.best.point if found.best else None
    experiment = study.experiment if point is None else study.training_of([point])
    description = (
        "the experiment that the study varies"
        if point is None
        else "the best training, evaluated at the best scale"
    )
    return page.reproduction([words], experiment, f"is {description}: save it and run it.")


def _confirmed_mark(gain: tuple[float, float, float]) -> tuple[str, str]:
    _, low, high = gain
    if low > 0:
        return "lower", "lowest"
    return ("higher", "bad") if high < 0 else ("indistinguishable", "equal")
