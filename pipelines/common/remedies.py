"""Options of `igdit` that mend a wrong setting, which `ig_core` only states."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ig_core.config import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FIELDS = {
    "aux_layer": "model.aux_layer",
    "num_heads": "model.num_heads",
    "path": "data.path",
    "labels": "data.classes",
    "num_classes": "data.num_classes",
    "codec": "data.codec",
    "channels": "data.channels",
    "side": "data.side",
    "flip": "data.flip",
    "judged": "data.check_statistics",
}
"""Setting of `ig_core` -> field of an experiment."""
ADVICE = {
    ("aux_layer", "None"): ", or an experiment without _ig, such as sit_b2",
    ("aux_layer", ""): " LAYER, or an experiment with _ig, such as sit_b2_ig",
    ("judged", "off"): " takes them as they are",
}
"""(Setting, value that mends it) -> words after the option."""


def option(field: str) -> str:
    """Return the option of the command line that sets a field."""
    return f"--{field.replace('_', '-')}"


def explained(error: Exception, fields: Mapping[str, str] = FIELDS) -> str:
    """Return the message of an error, with the options that mend it."""
    if not isinstance(error, SettingError):
        return str(error)
    remedies = [_remedy(name, value, fields) for name, value in error.settings.items()]
    return f"{error} ({', '.join(remedies)})"


def _remedy(name: str, value: str, fields: Mapping[str, str]) -> str:
    advice = ADVICE.get((name, value), "")
    if value == "off":  # a switch
        part, _, switch = fields[name].rpartition(".")
        return f"{option(f'{part}.no_{switch}')}{advice}"
    return f"{option(fields[name])}{f' {value}' if value else ''}{advice}"


@contextmanager
def explained_settings(where: str = "", **fields: str) -> Iterator[None]:
    """Raise a SettingError as a ValueError whose message names the options that mend it.

    Args:
        where: Begins the message.
        fields: Fields of the experiment for settings that are not those of `FIELDS`.
    """
    try:
        yield
    except SettingError as error:
        raise ValueError(f"{where}{explained(error, FIELDS | fields)}") from error
