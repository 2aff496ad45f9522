"""The part of a study's page about other seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.charts import Row, interval_chart
from pipelines.html import Html, badge, markup, paragraph, table, tag
from pipelines.number_format import change, metric
from pipelines.study.confirm import BASELINE, summarise

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.html import Child


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
            caption="Trained anew and sampled from noise that had no part in the choice",
        ),
    )


def _confirmed_mark(gain: tuple[float, float, float]) -> tuple[str, str]:
    _, low, high = gain
    if low > 0:
        return "lower", "lowest"
    return ("higher", "bad") if high < 0 else ("not told apart", "equal")


def confirmed_sentence(confirmed: pd.DataFrame | None) -> Html | None:
    """Whether the study's answer holds."""
    if confirmed is None or confirmed.empty:
        return None
    summary = summarise(confirmed)
    gains = summary.drop(index=BASELINE, errors="ignore")
    better = [str(label) for label, row in gains.iterrows() if row["gain_low"] > 0]
    seeds = int(summary["seeds"].max())
    held = "no candidate has a lower FID than the model without auxiliary loss, beyond the interval"
    if better:
        held = f"lower FID than the model without auxiliary loss holds for {'; '.join(better)}"
    return paragraph(f"On {seeds} other training seeds and other noise, {held}.")
