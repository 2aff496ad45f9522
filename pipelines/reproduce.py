"""From a resolved experiment or study back to the command line that gives it."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from experiments import EXPERIMENTS, STUDIES, get_experiment, get_study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from experiments import Experiment, Study


def run_words(experiment: Experiment) -> list[str] | None:
    """Words after `igdit` that run the experiment; None if it has no name in the registry."""
    if experiment.name not in EXPERIMENTS:
        return None
    return ["run", experiment.name, *overrides(get_experiment(experiment.name), experiment)]


def study_words(study: Study) -> list[str] | None:
    """Words after `igdit` that go on with the study; None if no study of the registry is like it.

    A study that was renamed is looked for by the name of its experiment.
    """
    for name in (study.name, study.experiment.name):
        if name in STUDIES:
            base = get_study(name)
            experiment = dataclasses.replace(
                study.experiment, name=base.experiment.name, resources=base.experiment.resources
            )
            same = dataclasses.replace(study, experiment=experiment)
            return ["study", name, *overrides(base, same)]
    return None


def command(words: list[str]) -> str:
    """A line for a shell."""
    return shlex.join(["igdit", *words])


def overrides(base: object, value: object) -> list[str]:
    """Options that turn one configuration into another of its type."""
    return [word for name, item in _changes(base, value) for word in _option(name, item)]


def _changes(base: Any, value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    for field in dataclasses.fields(value):
        old, new = getattr(base, field.name), getattr(value, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(new):
            yield from _changes(old, new, f"{name}.")
        elif old != new:
            yield name, new


def _option(name: str, value: Any) -> list[str]:  # noqa: ANN401
    if isinstance(value, bool):
        head, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, tuple | list):
        return [f"--{name}", *(str(item) for item in value)]
    return [f"--{name}", str(value)]
