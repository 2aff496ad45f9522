"""Command lines and names of experiments and studies, derived from their settings."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from experiments import EXPERIMENTS, STUDIES, get_experiment, get_study
from pipelines.graph.graph import Graph
from pipelines.store.file_names import EXPERIMENT_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from experiments import Experiment, Study


MAX_NAME_CHARACTERS = 120
"""Length above which the name of a run only counts the further settings that differ."""
SETTINGS_OF_FILES = {
    "data.path": ("data.content", "data.count", "evaluation.reference-content"),
    "data.codec-path": ("data.codec-sha256", "data.encoder-sha256"),
    "train.from-checkpoint": ("train.checkpoint-sha256",),
    "evaluation.reference": ("evaluation.reference-sha256", "evaluation.reference-content"),
    "evaluation.extractor-weights": ("evaluation.weights-sha256",),
}
"""Setting that names a file -> settings that a run derives from the file."""


def run_words(experiment: Experiment) -> list[str] | None:
    """Return the words after `igdit` that run an experiment; None if it is not in the registry."""
    if experiment.name not in EXPERIMENTS:
        return None
    base = get_experiment(experiment.name)
    if base.ig_scales and not experiment.ig_scales:
        # Scale 1 is always included, and the option needs a value.
        experiment = dataclasses.replace(experiment, ig_scales=(1.0,))
    return ["run", experiment.name, *overrides(base, experiment)]


def study_words(study: Study) -> list[str] | None:
    """Return the words after `igdit` that resume a study; None if it is not in the registry.

    A study that was renamed is found by the name of its experiment.
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


def run_command(experiment: Experiment) -> str:
    """Return the command line that runs an experiment, for a shell.

    An experiment that is not in the registry is run from the file beside its results.
    """
    return command(run_words(experiment) or ["run", EXPERIMENT_FILE])


def study_command(study: Study) -> str:
    """Return the command line that resumes a study; options only if it is in the registry."""
    return command(study_words(study) or ["study", study.name])


def run_name(experiment: Experiment) -> str:
    """Name a run by its experiment and the settings that differ: `digits aux_weight=0.25`.

    Settings that change no result (workers, spellings of the same guidance) are left out. An
    experiment that is not in the registry is named with its key.
    """
    if experiment.name not in EXPERIMENTS:
        return f"{experiment.name} {Graph(experiment).run_key[:8]}"
    base = get_experiment(experiment.name)
    changed = dict(_changes(_comparable(base), _comparable(experiment)))
    for file, derived in SETTINGS_OF_FILES.items():
        if changed.get(file) is not None:
            for setting in derived:
                changed.pop(setting, None)
    shown = [f"{_short(name)}={_brief(value)}" for name, value in changed.items()]
    text = experiment.name
    for number, item in enumerate(shown):
        if len(text) + len(item) > MAX_NAME_CHARACTERS:
            return f"{text} and {len(shown) - number} more"
        text += f" {item}"
    return text


def command(words: list[str]) -> str:
    """Return a command line of igdit for a shell."""
    return shlex.join(["igdit", *words])


def overrides(base: object, value: object) -> list[str]:
    """Return the options that turn one configuration into another of its type."""
    return [word for name, item in _changes(base, value) for word in _option(name, item)]


def _comparable(experiment: Experiment) -> Experiment:
    """Return the experiment in canonical form, with the default resources."""
    base = get_experiment(experiment.name)
    return dataclasses.replace(
        experiment,
        resources=base.resources,
        ig_scales=experiment.scales,
        guidance=experiment.guidance.canonical(),
        sampler=experiment.sampler.canonical(),
        optim=experiment.optim.canonical(),
    )


def _short(name: str) -> str:
    """Return the last part of a setting's name if it is unique."""
    head, _, last = name.rpartition(".")
    return (f"{head}.{last}" if _SETTINGS[last] > 1 else last).replace("-", "_")


def _setting_names() -> Counter[str]:
    """Count the settings of each name, in all parts of an experiment."""
    experiment = get_experiment(next(iter(EXPERIMENTS)))
    parts = (getattr(experiment, field.name) for field in dataclasses.fields(experiment))
    return Counter(
        field.name.replace("_", "-")
        for part in parts
        if dataclasses.is_dataclass(part)
        for field in dataclasses.fields(part)
    )


_SETTINGS = _setting_names()


def _brief(value: object) -> str:
    """Format a value: a file by its name, a digest by its first digits."""
    if isinstance(value, tuple | list):
        return ",".join(map(_brief, value))
    if isinstance(value, str):
        last = PurePath(value).name
        return last[:8] if len(last) == 64 and last.isalnum() else last
    return f"{value:g}" if isinstance(value, float) else str(value)


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
