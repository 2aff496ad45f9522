"""From a resolved experiment or study back to the command line that gives it, and to a name."""

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

NAME_LENGTH = 120
"""Characters after which the name of a run says only how many settings more differ."""
FILES = {
    "data.path": ("data.content", "data.count", "evaluation.reference-content"),
    "data.codec-path": ("data.codec-sha256", "data.encoder-sha256"),
    "train.from-checkpoint": ("train.checkpoint-sha256",),
    "evaluation.reference": ("evaluation.reference-sha256", "evaluation.reference-content"),
    "evaluation.extractor-weights": ("evaluation.weights-sha256",),
}
"""Setting that names a file -> settings that a run fills in by looking at it."""


def run_words(experiment: Experiment) -> list[str] | None:
    """Words after `igdit` that run the experiment; None if it has no name in the registry."""
    if experiment.name not in EXPERIMENTS:
        return None
    base = get_experiment(experiment.name)
    if base.ig_scales and not experiment.ig_scales:
        # The same, since 1 is always among them; an option wants a value.
        experiment = dataclasses.replace(experiment, ig_scales=(1.0,))
    return ["run", experiment.name, *overrides(base, experiment)]


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


def run_command(experiment: Experiment) -> str:
    """Return the command line that runs an experiment, for a shell.

    An experiment that is not in the registry is run from its file, which lies with its results.
    """
    return command(run_words(experiment) or ["run", EXPERIMENT_FILE])


def study_command(study: Study) -> str:
    """Return the command line that goes on with a study; of an unknown one only its name."""
    return command(study_words(study) or ["study", study.name])


def run_name(experiment: Experiment) -> str:
    """Name a run by what differs from the experiment of its name: `digits aux_weight=0.25`.

    Settings that change no result (workers, spellings of the same guidance) make no difference. Of
    an experiment that is not in the registry it is not known what differs: its key tells it apart.
    """
    if experiment.name not in EXPERIMENTS:
        return f"{experiment.name} {Graph(experiment).run_key[:8]}"
    base = get_experiment(experiment.name)
    changed = dict(_changes(_comparable(base), _comparable(experiment)))
    for file, found in FILES.items():
        if changed.get(file) is not None:
            for setting in found:
                changed.pop(setting, None)
    shown = [f"{_short(name)}={_brief(value)}" for name, value in changed.items()]
    text = experiment.name
    for number, item in enumerate(shown):
        if len(text) + len(item) > NAME_LENGTH:
            return f"{text} and {len(shown) - number} more"
        text += f" {item}"
    return text


def _comparable(experiment: Experiment) -> Experiment:
    """The same experiment, written in the one way that all of its spellings share."""
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
    """The last part of a setting's name if that is enough to know it by."""
    head, _, last = name.rpartition(".")
    return (f"{head}.{last}" if _SETTINGS[last] > 1 else last).replace("-", "_")


def _setting_names() -> Counter[str]:
    """How often each name is that of a setting, in all parts of an experiment."""
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
    if isinstance(value, tuple | list):
        return ",".join(map(_brief, value))
    if isinstance(value, str):  # of a file its name, of a digest its first digits
        last = PurePath(value).name
        return last[:8] if len(last) == 64 and last.isalnum() else last
    return f"{value:g}" if isinstance(value, float) else str(value)


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
