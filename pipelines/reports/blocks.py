"""Blocks that the page of a run and the page of a study share."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from experiments import experiment_to_json
from pipelines.common.errors import ArtifactError
from pipelines.common.formatting import change, data_size, in_words, metric, value_text
from pipelines.common.revision import split_commit
from pipelines.reports import reproduce
from pipelines.reports.html import (
    Child,
    Html,
    data_uri,
    encode_png,
    figure,
    image,
    markup,
    paragraph,
    table,
    tag,
)
from pipelines.reports.plots import has_real_images, real_images, sampled_images
from pipelines.results.measurements import stage_costs
from pipelines.store.file_names import EXPERIMENT_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from experiments import Experiment
    from pipelines.graph.node import Node
    from pipelines.results.measurements import Holdout, Measurement, Results
    from pipelines.store.base import Artifact, Store


PAGE_FILE = "report.html"
MAX_IMAGE_BYTES = 1_000_000
"""Size above which a sample grid is left out, as pages are mailed."""
LABELS = {
    "num_samples": "samples",
    "fid": "FID",
    "fid_infinity": "FID at infinity",
    "sfid": "sFID",
    "kid": "KID",
    "inception_score": "Inception Score",
}
"""Metric -> title of its column; other metrics are shown under their own names."""
UNCERTAINTY_SUFFIXES = ("low", "high", "std", "excess", "share", "slope")
"""Ends of the names of numbers that describe the uncertainty of a metric."""
INTERVALS = "Brackets hold 95 % intervals of the sampling, for the metric at this number of samples"


def header(kind: str, name: str, facts: Sequence[str]) -> Html:
    """Return the head of a page: its kind, name and facts."""
    return tag(
        "header",
        paragraph(f"igdit {kind}", class_="kicker"),
        tag("h1", name),
        paragraph(" \N{MIDDLE DOT} ".join(facts), class_="meta"),
    )


def lead(text: str) -> Html:
    """Return the sentence with the result; intervals are not broken over lines."""
    unbroken = text.replace(" .. ", "\N{NO-BREAK SPACE}..\N{NO-BREAK SPACE}")
    return paragraph(unbroken, class_="lead")


def built_at(artifacts: Sequence[Artifact]) -> str:
    """Return when the newest artifact was built; a page is the same whenever it is written."""
    newest = max(artifact.built for artifact in artifacts)
    return datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC")


def metrics_table(
    measurements: Sequence[Measurement],
    first: Sequence[str],
    cells: Sequence[Sequence[Child]],
    caption: str,
) -> Html:
    """Tabulate all metrics of some measurements, with their intervals.

    Args:
        measurements: One for each row.
        first: Titles of the columns before the metrics.
        cells: Cells of these columns, for each row.
        caption: Caption of the table.
    """
    names: dict[str, None] = {}
    for m in measurements:
        names |= {name: None for name, value in m.metrics.items() if _is_number(value)}
    own = [n for n in names if n.rpartition("_")[2] not in UNCERTAINTY_SUFFIXES]
    rows = [
        [*before, *(_metric(m.metrics, name) for name in own)]
        for m, before in zip(measurements, cells, strict=True)
    ]
    titles = [LABELS.get(name, name.replace("_", " ")) for name in own]
    return table([*first, *titles], rows, left=0, caption=caption)


def holdout_sentence(holdout: Holdout) -> str:
    """State the FID of the chosen guidance on holdout noise."""
    m, gain = holdout
    against = "" if gain is None else f", {change(gain)} against scale 1 there"
    infinite = ""
    if "fid_infinity" in m.metrics:
        infinite = (
            f"; extrapolated to infinitely many samples FID is {metric(m.metrics, 'fid_infinity')}"
        )
    return (
        f"On holdout noise, which was not used to choose it, its FID is {metric(m.metrics)}"
        f"{against}{infinite}."
    )


def protocol(measurement: Measurement) -> Html:
    """Tabulate the protocol of a number, which comparable numbers share."""
    fingerprint = measurement.fingerprint
    rows = [
        (field.name.replace("_", " "), value_text(getattr(fingerprint, field.name)))
        for field in dataclasses.fields(fingerprint)
    ]
    return markup(
        paragraph(
            f"Fingerprint {fingerprint.id}. Compare numbers only if these agree; they "
            f"include the seed of the noise and the number of samples.",
            class_="note",
        ),
        tag("div", _pairs(rows), class_="single"),
    )


def sample_grids(results: Results, chosen: Sequence[tuple[str, Measurement]]) -> Html | None:
    """Show real images and grids of samples from the same noise and labels, side by side."""
    if not chosen:
        return None
    panels = []
    if has_real_images(results):
        panels.append(_grid("Real", "what is learnt", functools.partial(real_images, results)))
    panels += [
        _grid(
            title,
            f"FID {metric(m.metrics)}, step {m.point.step:,}",
            functools.partial(sampled_images, results, m),
        )
        for title, m in chosen
    ]
    return tag("div", *panels, class_="grids")


def costs(store: Store, nodes: Iterable[Node]) -> Html:
    """Tabulate the work by stage."""
    frame = stage_costs(store, nodes)
    rows = [
        [str(stage), f"{row['artifacts']:,.0f}", in_words(row["seconds"]), data_size(row["bytes"])]
        for stage, row in frame.iterrows()
    ]
    total = [
        "total",
        f"{frame['artifacts'].sum():,.0f}",
        in_words(frame["seconds"].sum()),
        data_size(frame["bytes"].sum()),
    ]
    return markup(
        table(
            ["stage", "artifacts", "work", "size"],
            [*rows, total],
            marked=[len(rows)],
            caption="Work by stage, whenever and by whomever it was done",
        ),
        paragraph(
            "Artifacts that other runs share with this one are counted here too. A training "
            "counts the time of its group of workers once.",
            class_="note",
        ),
    )


def configuration(config: object, title: str, without: tuple[str, ...] = ()) -> Html:
    """Show all fields of a configuration, with a box for each of its parts.

    Args:
        config: A dataclass whose parts are dataclasses.
        title: Title of the box with the fields that belong to no part.
        without: Parts that are left out.
    """
    parts = [part for part in _parts(config, title) if part[0] not in without and part[1]]
    return tag("div", *(_box(name, items) for name, items in parts), class_="boxes")


def provenance(artifacts: Sequence[Artifact]) -> Html:
    """Show the commits, packages and hosts that the artifacts record."""
    hosts = Counter(str(a.manifest.get("host", "not recorded")) for a in artifacts)
    versions: dict[str, Counter[str]] = {}
    for artifact in artifacts:
        made_by = {"git commit": _commit(artifact), **artifact.manifest.get("packages", {})}
        for name, version in made_by.items():
            versions.setdefault(name, Counter())[version] += 1
    rows = [[name, ", ".join(_counted(found, len(artifacts)))] for name, found in versions.items()]
    mixed = any(len(found) > 1 for found in versions.values())
    return markup(
        tag(
            "div",
            table(["package", "version"], rows, left=2, caption="Versions that made the artifacts"),
            table(
                ["host", "artifacts"],
                [[host, f"{n:,}"] for host, n in sorted(hosts.items())],
                caption="Where they were made",
            ),
            class_="pair",
        ),
        paragraph(
            "Some artifacts were made by other versions than the rest; a number in brackets "
            "counts them.",
            class_="note",
        )
        if mixed
        else None,
    )


def reproduction(words: Sequence[list[str] | None], experiment: Experiment, note: str) -> Html:
    """Show the commands that reproduce the results, and the experiment as a file.

    Args:
        words: Command lines without the program's name; None where there is none.
        experiment: Experiment in the file.
        note: Description of the file.
    """
    text = experiment_to_json(experiment)
    lines = [reproduce.command(line) for line in words if line is not None]
    link = tag(
        "a",
        EXPERIMENT_FILE,
        download=EXPERIMENT_FILE,
        href=data_uri(text.encode(), "application/json"),
    )
    return markup(
        tag(
            "pre",
            "\n# or, from the file below:\n".join([*lines, f"igdit run {EXPERIMENT_FILE}"]),
            class_="wrap",
        ),
        paragraph("What is in the store is not computed again. ", link, f" {note}", class_="note"),
        tag("details", tag("summary", f"{EXPERIMENT_FILE} as text"), tag("pre", text)),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return metric(metrics, name)


def _grid(title: str, caption: str, read: Callable[[], tuple[Tensor, int]]) -> Html:
    from ig_core.images.sets import contact_sheet

    try:
        images, columns = read()
        sheet = contact_sheet(images, columns, gap=0)
        content = encode_png(sheet)
    except (ArtifactError, ValueError):
        picture: Html = paragraph("These images are not in the store any more.", class_="note")
    else:
        if len(content) > MAX_IMAGE_BYTES:
            picture = paragraph(
                "This grid is too large for a page that is to be mailed.", class_="note"
            )
        else:
            picture = image(
                content,
                f"{title}: a row for each class",
                "samples gray" if len(sheet) == 1 else "samples",
            )
    return figure(markup(tag("h3", title), picture), caption)


def _parts(config: Any, title: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:  # noqa: ANN401
    values = {f.name.replace("_", " "): getattr(config, f.name) for f in dataclasses.fields(config)}
    yield title, [(n, value_text(v)) for n, v in values.items() if not dataclasses.is_dataclass(v)]
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            yield from _parts(value, f"{title}: {name}" if title == "space" else name)


def _box(name: str, items: Sequence[tuple[str, str]]) -> Html:
    return tag("div", tag("h3", name), _pairs(items))


def _pairs(items: Sequence[tuple[str, str]]) -> Html:
    pairs = (part for key, value in items for part in (tag("dt", key), tag("dd", value)))
    return tag("dl", *pairs, class_="config")


def _commit(artifact: Artifact) -> str:
    commit, dirty = split_commit(str(artifact.manifest.get("commit", "")))
    changed = " with uncommitted changes" if dirty else ""
    return f"{commit[:12]}{changed}" if commit else "not recorded"


def _counted(versions: Counter[str], total: int) -> list[str]:
    """List versions, with counts unless all artifacts have the same one."""
    if len(versions) == 1 and versions.total() == total:
        return list(versions)
    return [f"{version} ({count:,})" for version, count in versions.most_common()]
