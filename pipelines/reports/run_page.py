"""Report of a run as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.common.errors import ArtifactError
from pipelines.common.formatting import change, metric, percents
from pipelines.graph.node import closure
from pipelines.reports import blocks as page
from pipelines.reports.charts import Sample, Series, line_chart
from pipelines.reports.html import Html, badge, markup, paragraph, section, table, tag
from pipelines.reports.html import page as document
from pipelines.reports.reproduce import run_name, run_words
from pipelines.results.measurements import checkpoint_name, published
from pipelines.store.files import replace_text

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.config import Guidance, TrainConfig
    from pipelines.results.measurements import Measurement, Results


UNGUIDED, GUIDED = 0, 1
LOSS, FINAL, AUXILIARY = 2, 3, 4
"""Numbers of colours in page.css."""
MAX_POINTS = 300
"""Most points of a line over training steps; each point is a mean over steps."""


def write_run_page(results: Results, directory: Path) -> Path:
    """Write the page into a report folder; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / page.PAGE_FILE
    replace_text(path, run_page(results))
    return path


def run_page(results: Results) -> Html:
    """Compose the page of an experiment."""
    experiment, graph = results.experiment, results.graph
    artifacts = list(published(results.store, closure(results.targets)).values())
    facts = [
        f"run {graph.run_key[:8]}",
        _trained(experiment.train),
        f"{experiment.evaluation.num_samples:,} samples for each scale",
        f"features of {experiment.evaluation.extractor}",
    ]
    if artifacts:
        facts.append(page.built_at(artifacts))
    return document(
        f"{experiment.name} {graph.run_key[:8]}",
        page.header("experiment", run_name(experiment), facts),
        page.lead(headline(results)),
        _second(results),
        _incomplete(results),
        section(
            "Findings",
            tag("div", _curve_chart(results), _scale_chart(results), class_="pair")
            if results.curve or results.final
            else None,
        ),
        section("Samples", samples(results)),
        section("By guidance scale", scale_tables(results)),
        section("Over training", _training_charts(results), _curve_table(results)),
        section("Cost", page.costs(results.store, closure(results.targets)) if artifacts else None),
        section("Configuration", page.configuration(experiment, "experiment")),
        section("Provenance", page.provenance(artifacts) if artifacts else None),
        section(
            "Reproduce",
            page.reproduction(
                [run_words(experiment)],
                experiment,
                "is this experiment with all its settings: save it and run it.",
            ),
        ),
        section("Protocol", *(page.protocol(m) for m in [*results.final.values()][:1])),
        section("How to read the numbers", _notes(results)),
    )


def headline(results: Results) -> str:
    """State the result in a sentence, at the scale that was fixed before the run."""
    own, base = results.headline(), results.baseline
    if own is None:
        return "The last checkpoint is not evaluated yet."
    scale = f"internal guidance of scale {own.guidance.ig_scale:g}"
    if own is base:
        return f"Without guidance FID is {metric(own.metrics)} after {own.point.step:,} steps."
    gain = results.improvements()[own.guidance]
    if base is None or gain is None:
        return (
            f"With {scale} FID is {metric(own.metrics)} after {own.point.step:,} "
            f"steps; the unguided samples are not measured yet."
        )
    both = f"from {metric(base.metrics)} to {metric(own.metrics)}"
    value, low, high = gain
    if low > 0:
        less = percents(value, low, high, sign="")
        return (
            f"{scale[0].upper()}{scale[1:]} lowers FID {both}: {less[0]} % less "
            f"({less[1]} .. {less[2]}) on the same noise."
        )
    if high < 0:
        more = percents(-value, -high, -low, sign="")
        return (
            f"{scale[0].upper()}{scale[1:]} raises FID {both}: {more[0]} % more "
            f"({more[1]} .. {more[2]}) on the same noise."
        )
    return (
        f"{scale[0].upper()}{scale[1:]} cannot be distinguished from no guidance: FID changes "
        f"{both}, a change of {change(gain)} on the same noise."
    )


def samples(results: Results) -> Html | None:
    """Show samples without guidance, at the experiment's own scale, and at the best scale."""
    base, own, best = results.baseline, results.headline(), results.best()
    chosen = [("Unguided", base)]
    if own is not base:
        chosen.append(("Internal guidance, scale {:g}", own))
    if best is not None and best[0] not in (own, base):
        note = "lowest FID" if not best[1] else "lowest FID, with equals"
        chosen.append((f"Internal guidance, scale {{:g}} ({note})", best[0]))
    grids = page.sample_grids(
        results, [(title.format(m.guidance.ig_scale), m) for title, m in chosen if m is not None]
    )
    if grids is None:
        return None
    return markup(
        paragraph(
            "The first samples of each set, not selected: the same place holds the "
            "same noise and the same class.",
            class_="note",
        ),
        grids,
    )


def curve_series(results: Results) -> list[Series]:
    """Draw FID over training, a line for each guidance."""
    lines = []
    for guidance, curve in results.curves().items():
        scale = guidance.ig_scale
        label = "unguided" if scale == 1 else f"internal guidance, scale {scale:g}"
        points = tuple(_point(m, step, f"step {step}, {label}") for step, m in curve.items())
        lines.append(Series(label, points, UNGUIDED if scale == 1 else GUIDED))
    return lines


def scale_tables(results: Results) -> Html | None:
    """Tabulate the paired comparison, then every metric."""
    if not results.final:
        return None
    marked, checkpoint = marks(results), checkpoint_name(results.experiment.train)
    scales, gains = [f"{g.ig_scale:g}" for g in results.final], results.improvements()
    rows = [
        [scale, metric(m.metrics), "" if gain is None else change(gain), marked[m.guidance]]
        for scale, m, gain in zip(scales, results.final.values(), gains.values(), strict=True)
    ]
    own = [i for i, m in enumerate(results.final.values()) if m is results.headline()]
    return markup(
        table(
            ["scale", "FID", "FID against scale 1, paired", "paired with the lowest"],
            rows,
            left=0,
            marked=own,
            caption=f"Comparison on the same noise and labels, {checkpoint}",
        ),
        paragraph(
            'The row in bold is the experiment\'s own scale. Rows marked "equal" cannot be '
            "distinguished from the lowest: the 95 % interval of the paired difference holds 0.",
            class_="note",
        ),
        page.metrics_table(
            list(results.final.values()),
            ["scale"],
            [[scale] for scale in scales],
            f"All metrics, {checkpoint}",
        ),
    )


def marks(results: Results) -> dict[Guidance, Html]:
    """Return guidance -> badge: the lowest, equal to it within the interval, or higher."""
    best = results.best()
    if best is None:
        return {}
    lowest, equal = best
    found = {guidance: badge("higher", "plain") for guidance in results.final}
    found |= {m.guidance: badge("equal", "equal") for m in equal}
    return found | {lowest.guidance: badge("lowest", "lowest")}


def _second(results: Results) -> Html | None:
    """State the best scale, its equals, and its FID on holdout noise."""
    best = results.best()
    if best is None or len(results.final) < 2:
        return None
    lowest, equal = best
    text = f"Of the scales compared, {lowest.guidance.ig_scale:g} has the lowest FID"
    if equal:
        scales = ", ".join(f"{m.guidance.ig_scale:g}" for m in equal)
        text += f"; {scales} cannot be distinguished from it"
    holdout = results.chosen_holdout()
    text += ". " + ("" if holdout is None else f"{page.holdout_sentence(holdout)} ")
    return paragraph(
        f"{text}The scale in the sentence above was fixed before the run. Brackets "
        f"hold 95 % intervals of the sampling error."
    )


def _incomplete(results: Results) -> Html | None:
    if results.complete:
        return None
    wanted = len(results.graph.curve) + len(results.graph.final)
    found = len(results.curve) + len(results.final)
    return paragraph(f"Not finished: {found} of {wanted} points are evaluated.", class_="warning")


def _point(m: Measurement, x: float, what: str) -> Sample:
    metrics = m.metrics
    return Sample(
        x, m.fid, metrics["fid_low"], metrics["fid_high"], f"{what}: FID {metric(metrics)}"
    )


def _curve_chart(results: Results) -> Html:
    return line_chart(
        "FID over training",
        curve_series(results),
        "training step",
        f"FID, {results.experiment.evaluation.curve_samples:,} samples",
        log=True,
    )


def _scale_chart(results: Results) -> Html:
    points = tuple(
        _point(m, guidance.ig_scale, f"scale {guidance.ig_scale:g}")
        for guidance, m in results.final.items()
    )
    base = results.baseline
    return line_chart(
        "FID by internal guidance scale",
        [Series("FID with its 95 % interval", points, GUIDED)],
        "internal guidance scale (1 is off)",
        f"FID, {results.experiment.evaluation.num_samples:,} samples",
        reference=None if base is None else (base.fid, "unguided"),
    )


def _trained(train: TrainConfig) -> str:
    if train.imported:
        return f"checkpoint {checkpoint_name(train)}"
    return f"{train.steps:,} training steps"


def _training_charts(results: Results) -> Html | None:
    """Draw losses and gradient norm over the steps; None for an imported checkpoint."""
    try:
        history = results.history()
    except ArtifactError:  # the page is written without what is damaged
        return None
    if history is None or history.empty:
        return None
    every = -(-len(history) // MAX_POINTS)
    means = history.groupby((history.index - 1) // every).mean()

    def series(column: str, label: str, color: int) -> Series:
        steps = ((int(block) + 1) * every for block in means.index)
        points = zip(steps, means[column], strict=True)
        samples = tuple(Sample(min(step, len(history)), float(y)) for step, y in points)
        return Series(label, samples, color, dots=False)

    losses = [series("total", "loss", LOSS)]
    if results.experiment.model.aux_layer is not None:
        losses += [
            series("final", "of the final output", FINAL),
            series("aux", "of the auxiliary head", AUXILIARY),
        ]
    mean = "" if every == 1 else f", mean of {every:,} steps"
    return tag(
        "div",
        line_chart("Training loss", losses, "training step", f"loss{mean}", log=True),
        line_chart(
            "Gradient norm",
            [series("grad_norm", "", LOSS)],
            "training step",
            f"gradient norm before clipping{mean}",
            log=True,
        ),
        class_="pair",
    )


def _curve_table(results: Results) -> Html | None:
    if not results.curve:
        return None
    cells = [
        [f"{step:,}", "off" if guidance.ig_scale == 1 else f"{guidance.ig_scale:g}"]
        for step, guidance in results.curve
    ]
    measured = list(results.curve.values())
    return page.metrics_table(
        measured, ["step", "guidance"], cells, "All metrics at each checkpoint"
    )


def _notes(results: Results) -> Html:
    evaluation = results.experiment.evaluation
    own = ""
    if evaluation.extractor == "digits-cnn":
        own = (
            " That network was trained on the data itself: compare these FIDs only with each other."
        )
    texts = (
        f"FID is the distance of Gaussians fitted to features of {evaluation.extractor}; lower is "
        f"better.{own}",
        f"{page.INTERVALS}: delete-one-group jackknife with {evaluation.groups} groups, the "
        "reference taken as fixed. They do not cover other training seeds. FIDs of different "
        "numbers of samples are not comparable.",
        "Paired comparisons use the same noise, labels and groups, so that they resolve "
        "differences that are smaller than the single intervals.",
        "A number after \N{PLUS-MINUS SIGN} is the standard deviation over splits.",
    )
    return tag("ul", *(tag("li", text) for text in texts), class_="notes")
