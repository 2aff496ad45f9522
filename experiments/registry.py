"""Experiments by name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from experiments.digits import digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.schema import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {"digits": digits}
"""Name -> function that builds the experiment. Add yours here."""


def get_experiment(name: str) -> Experiment:
    """Build the named experiment.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, or a file ending "
                         f"in .json, but got {name!r}{hint}")  # fmt: skip
    return EXPERIMENTS[name]()
