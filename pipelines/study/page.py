"""One study as one HTML file that can be mailed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pipelines import page
from pipelines.charts import Row, Sample, Series, interval_chart, line_chart, y_limits
from pipelines.files import replace_text
from pipelines.graph import Graph, closure
from pipelines.html import Html, badge, markup, paragraph, section, table, tag
from pipelines.html import page as document
from pipelines.reproduce import study_words
from pipelines.results import collect
from pipelines.study.confirm import BASELINE, summarise
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from pipelines.artifacts import Store
    from pipelines.graph import Node
    from pipelines.html import Child
    from pipelines.study.report import Findings
    from pipelines.study.trials import Trial

STATES = {"COMPLETE": "plain", "RUNNING": "equal", "PRUNED": "plain", "FAIL": "bad"}
"""State of a trial -> look of its badge."""
WORDS = {"COMPLETE": "complete", "RUNNING": "running", "PRUNED": "given up", "FAIL": "failed"}


def write_study_page(
    found: Findings, store: Store, directory: Path, confirmed: pd.DataFrame | None = None
) -> Path:
    """Write the page into a report folder; returns its path.

    Args:
        found: What the study found.
        store: Where its artifacts are.
        directory: The folder.
        confirmed: What came of the best points on other seeds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / page.FILE
    replace_text(path, study_page(found, store, confirmed))
    return path


def study_page(found: Findings, store: Store, confirmed: pd.DataFrame | None = None) -> Html:
    """The page of a study."""
    study, nodes = found.study, _nodes(found)
    artifacts = page.published(store, nodes)
    states = Counter(trial.state for trial in found.trials)
    facts = [*(f"{n} {WORDS[state]}" for state, n in states.items()),
             f"{len(by_training(found.trials))} trainings",
             f"{study.experiment.train.steps:,} steps each",
             f"{study.experiment.evaluation.num_samples:,} samples a point"]  # fmt: skip
    if artifacts:
        facts.append(page.when(artifacts))
    best = found.best
    return document(
        f"Study {study.name}",
        page.header("study", study.name, facts),
        paragraph(headline(found), class_="lead"),
        _confirmed_sentence(confirmed),
        paragraph("Brackets hold 95 % intervals. The best point was chosen on the very samples "
                  "that it is reported on.", class_="note") if best else None,
        section("FID over guidance scale, by training", scale_charts(found)),
        section("FID over training", curve_chart(found)),
        section("Best point and its equals", best_table(found)),
        section("Confirmed on other seeds", confirmation(confirmed)),
        section("What matters", importances(found)),
        section("Samples of the best training", samples(found, store)),
        section("All trials", trials_table(found)),
        section("Cost", _costs(found, store, nodes) if artifacts else None),
        section("Configuration", page.configuration(study, "study")),
        section("Made with", page.provenance(artifacts) if artifacts else None),
        section("Do it again", _again(found)),
    )


def _nodes(found: Findings) -> list[Node]:
    """All that the study's points are made from, each once."""
    nodes: dict[Node, None] = {}
    for training, members in by_training(found.trials).items():
        graph = Graph(found.study.at(*training, tuple(t.point.ig_scale for t in members)))
        nodes |= dict.fromkeys(closure(graph.targets))
    return list(nodes)


def headline(found: Findings) -> str:
    """What was found, in a sentence."""
    best = found.best
    if best is None:
        return "No point of this study is complete yet."
    count = len(found.equals)
    others = {0: "no other point is as good", 1: "one other point cannot be told from it"}.get(
        count, f"{count} other points cannot be told from it"
    )
    return (f"{_name(best)} has the lowest FID of {len(_complete(found))} points, "
            f"{_fid(best)}; {others} on the same noise.")  # fmt: skip


def _name(trial: Trial) -> str:
    name = trial.point.training_name
    return f"{name[0].upper()}{name[1:]}, scale {trial.point.ig_scale:g}"


def _complete(found: Findings) -> list[Trial]:
    return [t for t in found.trials if t.fid is not None]


def _fid(trial: Trial) -> str:
    return page.interval({"fid": trial.fid, **trial.facts})


def _sample(trial: Trial) -> Sample:
    assert trial.fid is not None
    return Sample(trial.point.ig_scale, trial.fid, trial.facts.get("fid_low"),
                  trial.facts.get("fid_high"), f"trial {trial.number}: {_name(trial)}, FID "
                  f"{_fid(trial)}")  # fmt: skip


def scale_charts(found: Findings) -> Html | None:
    """A chart for each layer, a line for each weight; all with the same vertical axis."""
    trainings = by_training(sorted(_complete(found), key=lambda t: t.point.ig_scale))
    layers: dict[int, list[Series]] = {}
    for layer, weight in sorted(trainings):
        lines = layers.setdefault(layer, [])
        points = tuple(map(_sample, trainings[layer, weight]))
        lines.append(Series(f"weight {weight:g}", points, len(lines) + 1, bars=True))
    if not layers:
        return None
    limits = y_limits([line for lines in layers.values() for line in lines])
    return tag("div", *(
        line_chart(f"Auxiliary layer {layer}", lines, "internal guidance scale (1 is off)",
                   "FID, 95 % intervals", y_range=limits)
        for layer, lines in layers.items()
    ), class_="pair")  # fmt: skip


def curve_chart(found: Findings) -> Html | None:
    """FID of each training at its checkpoints, in the colour of its layer."""
    lines = []
    for layer, weight in sorted(by_training(found.trials)):
        members = by_training(found.trials)[layer, weight]
        curve = max((t.curve for t in members), key=len)
        points = tuple(
            Sample(step, p.fid, p.fid - p.half_width, p.fid + p.half_width,
                   f"layer {layer}, weight {weight:g}, step {step}: FID {p.fid:.2f}")
            for step, p in sorted(curve.items())
        )  # fmt: skip
        lines.append(Series(f"layer {layer}, weight {weight:g}", points, layer, bars=True))
    scale = found.study.experiment.guidance.ig_scale
    chart = line_chart("One line for each training, coloured by layer", lines, "training step",
                       f"FID at scale {scale:g}", log=True)  # fmt: skip
    return tag("div", chart, class_="single") if chart else None


def best_table(found: Findings) -> Html | None:
    """The best point; below it, in the order of the space, all that cannot be told from it."""
    if found.best is None:
        return None
    place = lambda t: (t.point.aux_layer, t.point.aux_weight, t.point.ig_scale)  # noqa: E731
    chosen = [found.best, *sorted(found.equals, key=place)]
    rows = [[*_place(t), _fid(t), _mark(found, t)] for t in chosen]
    return markup(
        table(["trial", "layer", "weight", "scale", "FID", ""], rows, left=0, marked=[0]),
        paragraph("Equals are listed by layer, weight and scale, not by FID: the 95 % interval of "
                  "their paired difference from the best point holds 0, so that their order says "
                  "nothing.", class_="note") if found.equals else None,
    )  # fmt: skip


def _place(trial: Trial) -> list[Child]:
    point = trial.point
    return [str(trial.number), str(point.aux_layer), f"{point.aux_weight:g}",
            f"{point.ig_scale:g}"]  # fmt: skip


def _mark(found: Findings, trial: Trial) -> Html | None:
    if trial is found.best:
        return badge("lowest", "lowest")
    return badge("equal", "equal") if trial in found.equals else None


def confirmation(confirmed: pd.DataFrame | None) -> Html | None:
    """Mean FID on other seeds, with its interval over the seeds."""
    if confirmed is None or confirmed.empty:
        return None
    summary = summarise(confirmed)
    rows: list[list[Child]] = []
    bars = []
    for label, row in summary.iterrows():
        base = label == BASELINE
        gain = (row["gain"], row["gain_low"], row["gain_high"])
        rows.append([str(label), f"{row['seeds']:.0f}", page.interval(dict(row)),
                     "" if base else page.change(gain),
                     None if base else badge(*_confirmed_mark(gain))])  # fmt: skip
        dots = tuple(confirmed[confirmed["candidate"] == label]["fid"])
        bars.append(Row(str(label), row["fid"], row["fid_low"], row["fid_high"], dots,
                        0 if base else 1))  # fmt: skip
    return markup(
        tag("div", interval_chart("Dots are training seeds, bars 95 % intervals of their mean",
                                  bars, "FID"), class_="single"),
        table(["candidate", "seeds", "mean FID", "against the first, same seeds", ""], rows,
              caption="Trained anew and sampled from noise that had no part in the choice"),
    )  # fmt: skip


def _confirmed_mark(gain: tuple[float, float, float]) -> tuple[str, str]:
    _, low, high = gain
    if low > 0:
        return "lower", "lowest"
    return ("higher", "bad") if high < 0 else ("not told apart", "equal")


def _confirmed_sentence(confirmed: pd.DataFrame | None) -> Html | None:
    if confirmed is None or confirmed.empty:
        return None
    summary = summarise(confirmed)
    gains = summary.drop(index=BASELINE, errors="ignore")
    better = [str(label) for label, row in gains.iterrows() if row["gain_low"] > 0]
    seeds = int(summary["seeds"].max())
    held = f"lower FID than the model without auxiliary loss holds for {'; '.join(better)}" \
           if better else "no candidate can be told from the model without auxiliary loss"  # fmt: skip
    return paragraph(f"On {seeds} other training seeds and other noise, {held}.")


def importances(found: Findings) -> Html | None:
    """Share of each parameter in the differences of FID."""
    if not found.importances:
        return None
    names = {"aux_layer": "auxiliary layer", "aux_weight": "auxiliary weight",
             "ig_scale": "internal guidance scale"}  # fmt: skip
    rows = [[names.get(name, name), f"{share:.0%}",
             tag("span", class_="meter", style=f"width:{10 * share:.2f}rem")]
            for name, share in found.importances.items()]  # fmt: skip
    rows = [[name, bar, share] for name, share, bar in rows]
    return markup(table(["parameter", "", "importance for FID"], rows, left=2),
                  paragraph("Optuna's estimate from the complete trials; it has no interval.",
                            class_="note"))  # fmt: skip


def samples(found: Findings, store: Store) -> Html | None:
    """The best training unguided, and at the best scale."""
    if found.best is None:
        return None
    training, scale = found.best.point.training, found.best.point.ig_scale
    results = collect(store, Graph(found.study.at(*training, (scale,))))
    titles = {1.0: "Unguided"} | {scale: f"Internal guidance, scale {scale:g}"} \
        if scale != 1 else {1.0: "Unguided"}  # fmt: skip
    return page.sample_grids(results, [(titles[m.scale], m) for m in results.final
                                       if m.scale in titles])  # fmt: skip


def trials_table(found: Findings) -> Html | None:
    """Every trial, by number."""
    if not found.trials:
        return None
    seconds: dict[int, Any] = found.table.set_index("trial").to_dict("index")
    rows = [
        [*_place(t), badge(WORDS[t.state], STATES[t.state]), "" if t.fid is None else _fid(t),
         _mark(found, t), _seconds(seconds[t.number]["train_seconds"]),
         _seconds(seconds[t.number]["point_seconds"])]
        for t in found.trials
    ]  # fmt: skip
    best = [i for i, t in enumerate(found.trials) if t is found.best]
    return table(["trial", "layer", "weight", "scale", "state", "FID", "", "training", "own samples"],
                 rows, left=0, marked=best,
                 caption="In the order in which they were entered")  # fmt: skip


def _seconds(value: float) -> str:
    return page.duration(value) if value == value else "-"  # noqa: PLR0124 - not for NaN


def _costs(found: Findings, store: Store, nodes: Sequence[Node]) -> Html:
    saved = ""
    if found.naive_seconds:
        saved = (f"Work on the trials: {page.duration(found.spent_seconds)}. One training for each "
                 f"point would have cost {page.duration(found.naive_seconds)}, so that sharing "
                 f"trainings saved {1 - found.spent_seconds / found.naive_seconds:.0%}.")  # fmt: skip
    return markup(paragraph(saved) if saved else None, page.costs(store, nodes))


def _again(found: Findings) -> Html:
    study = found.study
    words = study_words(study)
    if words is not None:
        words += [] if study.name == words[1] else ["--name", study.name]
        words += ["--trials", str(len(_complete(found)))]
    point = found.best.point if found.best else None
    experiment = study.experiment if point is None else study.at(
        point.aux_layer, point.aux_weight, (point.ig_scale,))  # fmt: skip
    what = "the experiment that the study varies" if point is None else \
           "the best training, evaluated at the best scale"  # fmt: skip
    return page.reproduction([words], experiment, f"is {what}: save it and run it.")
