"""Registry of experiments and studies by name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from experiments.digits import digits, digits_study
from experiments.lightningdit import lightningdit_xl1, lightningdit_xl1_ig, lightningdit_xl1_ig_cfg
from experiments.sit import (
    sit_b2,
    sit_b2_ig,
    sit_b2_ig_interval,
    sit_l2,
    sit_l2_ig,
    sit_xl2,
    sit_xl2_ig,
    sit_xl2_ig_cfg,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.schema import Experiment
    from experiments.study import Study

T = TypeVar("T")

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "digits": digits,
    **{
        make.__name__: make
        for make in (
            sit_b2,
            sit_b2_ig,
            sit_b2_ig_interval,
            sit_l2,
            sit_l2_ig,
            sit_xl2,
            sit_xl2_ig,
            sit_xl2_ig_cfg,
            lightningdit_xl1,
            lightningdit_xl1_ig,
            lightningdit_xl1_ig_cfg,
        )
    },
}
"""Name -> function that builds the experiment. Add yours here."""

STUDIES: dict[str, Callable[[], Study]] = {"digits": digits_study}
"""Name -> function that builds the study. Add yours here."""


def get_experiment(name: str) -> Experiment:
    """Build the experiment of a name.

    Raises:
        ValueError: If there is no experiment of that name.
    """
    return _build(EXPERIMENTS, name, "experiment", ", or a file ending in .json")


def get_study(name: str) -> Study:
    """Build the study of a name.

    Raises:
        ValueError: If there is no study of that name.
    """
    return _build(STUDIES, name, "study")


def _build(table: dict[str, Callable[[], T]], name: str, noun: str, otherwise: str = "") -> T:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{noun} must be one of {', '.join(table)}{otherwise}, but got {name!r}{hint}"
        )
    return table[name]()
