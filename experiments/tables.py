"""Tables of the paper: each row has published numbers and the experiment that should give them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments import published as paper
from experiments.lightningdit import STEPS_680_EPOCHS, lightningdit_xl1_ig, lightningdit_xl1_ig_cfg
from experiments.published import (
    LIGHTNINGDIT_PROTOCOL,
    OTHER_METHODS,
    SIT_AUTHORS_PROTOCOL,
    SIT_PROTOCOL,
    Published,
    PublishedProtocol,
)
from experiments.sit import (
    STEPS_800_EPOCHS,
    sit_b2,
    sit_b2_ig,
    sit_b2_ig_interval,
    sit_xl2,
    sit_xl2_ig,
    sit_xl2_ig_cfg,
)
from ig_core.config import Guidance

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.schema import Experiment

NOT_RECOVERED = "the paper's scale is not known: ours has the lowest FID of a sweep, measured anew"
STEPS_1400_EPOCHS = 7_000_000


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table."""

    name: str
    """Name of the row on the command line and in MLflow."""
    published: Published
    """Published numbers."""
    experiment: Experiment | None = None
    """Experiment that should give them; None if no experiment here does."""
    scale: float | None = None
    """Internal guidance scale of the published number; None if not known: ours is chosen."""
    protocol: PublishedProtocol = SIT_PROTOCOL
    """Protocol of the published numbers."""
    checkpoints: tuple[str, ...] = ()
    """SHA-256 of published checkpoints that stand for the training."""
    note: str = ""
    """Remark for readers of the table."""

    @property
    def guidance(self) -> Guidance | None:
        """Guidance of our number; None if a sweep chooses it, or nothing is run."""
        if self.experiment is None or self.scale is None:
            return None
        return self.experiment.guidance_at(self.scale)


def main_table() -> tuple[TableRow, ...]:
    """The system comparison: what IG reaches, and what it is compared with."""
    others = [TableRow(name=_name(other), published=other) for other in OTHER_METHODS]
    return (*others, *_sit_rows(), *_lightningdit_rows())


def sit_b2_ablation() -> tuple[TableRow, ...]:
    """The ablation on SiT-B/2, 80 epochs: head, its block, and guidance."""
    head = sit_b2_ig()
    rows = [TableRow(name="sit_b2", published=paper.SIT_B2, experiment=sit_b2(), scale=1.0)]
    for layer, numbers in paper.SIT_B2_AUX.items():
        # Only the block of the paper's choice is guided too.
        scales = head.ig_scales if layer == head.model.aux_layer else ()
        guidance = head.guidance if scales else Guidance()
        trained = replace(
            head, model=replace(head.model, aux_layer=layer), ig_scales=scales, guidance=guidance
        )
        rows.append(
            TableRow(name=f"sit_b2-head-{layer}", published=numbers, experiment=trained, scale=1.0)
        )
    rows += [
        TableRow(name="sit_b2_ig-1.5", published=paper.SIT_B2_IG_15, experiment=head, scale=1.5),
        TableRow(name="sit_b2_ig-1.9", published=paper.SIT_B2_IG_19, experiment=head, scale=1.9),
        TableRow(
            name="sit_b2_ig-2.3-interval",
            published=paper.SIT_B2_IG_23_INTERVAL,
            scale=2.3,
            experiment=sit_b2_ig_interval(),
            note="t = 1, the first step, is guided here as in the published code",
        ),
    ]
    return tuple(rows)


def paper_table() -> tuple[TableRow, ...]:
    """Both of them in one comparison."""
    return (*main_table(), *sit_b2_ablation())


TABLES: dict[str, Callable[[], tuple[TableRow, ...]]] = {
    "main": main_table,
    "sit_b2_ablation": sit_b2_ablation,
    "paper_table": paper_table,
}
"""Name -> function that builds the rows."""


def _sit_rows() -> list[TableRow]:
    released = (paper.IG_SIT_800_SHA256,)
    plain = _steps(sit_xl2(), STEPS_1400_EPOCHS)
    ode = replace(plain.sampler, method="heun", num_steps=124)
    return [
        TableRow(
            name="sit_xl2-1400",
            published=paper.SIT_XL2,
            scale=1.0,
            experiment=plain,
            protocol=SIT_AUTHORS_PROTOCOL,
            note="SiT's authors also give 8.3 (SDE)",
        ),
        TableRow(
            name="sit_xl2-1400-cfg",
            published=paper.SIT_XL2_CFG,
            scale=1.0,
            experiment=replace(plain, guidance=Guidance(cfg_scale=1.5), sampler=ode),
            protocol=SIT_AUTHORS_PROTOCOL,
        ),
        TableRow(
            name="sit_xl2_ig-80",
            published=paper.SIT_XL2_IG_80,
            experiment=sit_xl2_ig(),
            note=NOT_RECOVERED,
        ),
        TableRow(
            name="sit_xl2_ig-800",
            published=paper.SIT_XL2_IG_800,
            note=NOT_RECOVERED,
            experiment=_steps(sit_xl2_ig(), STEPS_800_EPOCHS),
            checkpoints=released,
        ),
        TableRow(
            name="sit_xl2_ig-800-cfg",
            published=paper.SIT_XL2_IG_800_CFG,
            scale=1.4,
            experiment=_steps(sit_xl2_ig_cfg(), STEPS_800_EPOCHS),
            checkpoints=released,
            note="IG 1.4, CFG 1.35 for t up to 0.7",
        ),
    ]


def _lightningdit_rows() -> list[TableRow]:
    return [
        TableRow(
            name="lightningdit_xl1_ig-60",
            published=paper.LIGHTNINGDIT_IG_60,
            experiment=lightningdit_xl1_ig(),
            protocol=LIGHTNINGDIT_PROTOCOL,
            note=NOT_RECOVERED,
        ),
        TableRow(
            name="lightningdit_xl1_ig-680",
            published=paper.LIGHTNINGDIT_IG_680,
            scale=1.7,
            experiment=_steps(lightningdit_xl1_ig(), STEPS_680_EPOCHS),
            protocol=LIGHTNINGDIT_PROTOCOL,
            note="IG 1.7",
        ),
        TableRow(
            name="lightningdit_xl1_ig-680-cfg",
            published=paper.LIGHTNINGDIT_IG_680_CFG,
            scale=1.4,
            experiment=_steps(lightningdit_xl1_ig_cfg(), STEPS_680_EPOCHS),
            protocol=LIGHTNINGDIT_PROTOCOL,
            note="IG 1.4, CFG 1.45 for t up to 0.81",
        ),
    ]


def _steps(experiment: Experiment, steps: int) -> Experiment:
    return replace(experiment, train=replace(experiment.train, steps=steps))


def _name(row: Published) -> str:
    return f"{row.method}-{row.epochs}{'-cfg' if row.cfg else ''}".replace("/", "").replace(
        " ", "_"
    )
