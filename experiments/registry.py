"""Experiments by name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from experiments.digits import digits
from experiments.digits_study import digits_study

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.schema import Experiment
    from experiments.study import Study

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {"digits": digits}
"""Name -> function that builds the experiment. Add yours here."""

STUDIES: dict[str, Callable[[], Study]] = {"digits": digits_study}
"""Name -> function that builds the study. Add yours here."""


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


def get_study(name: str) -> Study:
    """Build the named study.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"study must be one of {', '.join(STUDIES)}, but got {name!r}{hint}")
    return STUDIES[name]()
