"""Find a network's weights in a checkpoint by their names, whatever wraps them.

Programs wrap a network (`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile,
`_fsdp_wrapped_module.`, ...), keep it as an attribute (`model.`, `ema_model.` of Lightning), or put
its state dict into others (`state_dict`, `ema`). All of these are parts of a dotted name. A part
that a wrapper added is dropped wherever it stands; what then stands before a name that every such
network has (an anchor) is the network's place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ig_core.data.sources.walk import preview

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow", "polyak"}
"""Words in the name of a moving average."""
AS_TRAINED = {"online", "current", "raw"}
"""Words in the name of weights as trained, beside an average: ema-pytorch's and Lightning's."""
OPTIMIZERS = {"opt", "optim", "optimizer", "optimizers"}
"""Words in the name of an optimizer's state, whose averages are of gradients."""
MOMENT_NAME = "exp_avg"
"""Name of such an average in torch's optimizers."""
MAX_SHOWN_NAMES = 8
"""Largest number of names in a message where nothing fits."""
MAX_DEPTH, MAX_ENTRIES = 8, 1_000_000
"""Levels and entries of a file that are looked through."""


class Weights(NamedTuple):
    """The weights of one network."""

    place: str
    """Names of entries and attributes with dots that lead to them; empty for the whole file."""
    averaged: bool | None
    """True for a moving average; None if the names do not tell."""
    tensors: dict[str, Tensor]
    """Tensors by their names within the network."""
    beside: tuple[str, ...]
    """Places of other networks of the kind in the file."""


class _Entry(NamedTuple):
    name: str
    """Name without the parts that wrappers added."""
    shown: str
    """Name in the file."""
    value: Any
    named: bool
    """Every key that leads to it is a string."""


def find_weights(
    held: Any,  # noqa: ANN401
    anchors: Sequence[str],
    where: str,
    kind: str,
    *,
    strict: bool = True,
) -> Weights:
    """Find a network's weights: its moving average where there is one.

    Args:
        held: Contents of a file.
        anchors: Names of tensors that tell a network of this kind; one is enough.
        where: Name of the file in messages.
        kind: Name of the network in messages.
        strict: Refuse weights as trained beside averaged ones that have other names, and entries
            of the network's state dict that are no tensors. Without it these are left out.

    Raises:
        ValueError: If there is no such network, there are several of which none or more than one is
            averaged, or a tensor has two values; the message shows the names that were found.
    """
    if not isinstance(held, Mapping):
        raise ValueError(f"{where} must hold tensors by name, but got {type(held).__name__}")
    entries = list(_entries(held))
    places = sorted(
        {
            place
            for entry in entries
            if isinstance(entry.value, Tensor)
            for place in _places(entry.name, anchors)
            if not OPTIMIZERS & set(_words(place))
        }
    )
    if not places:
        raise ValueError(
            f"{where} holds no weights of a {kind}: no {' or '.join(anchors)} among "
            f"the names found, {_preview_entries(entries) or 'it is empty'}"
        )
    averaged = [place for place in places if _is_averaged(place)]
    chosen = averaged or places
    if len(chosen) > 1:
        raise ValueError(
            f"{where} holds the weights of {len(chosen)} networks, of which one must "
            f"be chosen: {preview([place or 'top level' for place in chosen])}; "
            f"{_advice()}"
        )
    (place,) = chosen
    if strict and not averaged:
        _refuse_strange_averages(entries, place, where, kind)
    inner = [other for other in places if other != place and _within(other, place)]
    tensors = _members(entries, place, inner, where, strict=strict)
    return Weights(place, _is_averaged(place), tensors, tuple(p for p in places if p != place))


def _advice() -> str:
    return "save the weights that are meant alone, as torch.save({'ema': state_dict}, FILE)"


def has_network(held: Any, anchors: Sequence[str]) -> bool:  # noqa: ANN401
    """Check nested mappings for a name that tells a network of a kind."""
    if not isinstance(held, Mapping):
        return False
    return any(place is not None for e in _entries(held) for place in _places(e.name, anchors))


def _preview_entries(entries: Sequence[_Entry]) -> str:
    """List names for a message, those of tensors first."""
    names = [
        entry.shown for entry in sorted(entries, key=lambda e: not isinstance(e.value, Tensor))
    ]
    more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
    return f"{', '.join(names[:MAX_SHOWN_NAMES])}{more}"


def _entries(held: Mapping[Any, Any]) -> Iterator[_Entry]:
    """List the contents of nested mappings and lists by dotted names; a plain list is one entry.

    Raises:
        ValueError: If there are more than `MAX_ENTRIES` entries.
    """
    waiting: list[tuple[tuple[str, ...], Any, bool]] = [((), held, True)]
    count = 0
    while waiting:
        path, value, named = waiting.pop()
        items = _items(value)
        if items is None or (path and len(path) >= MAX_DEPTH):
            shown = ".".join(path)
            parts = [part for part in shown.split(".") if not _is_wrapper(part)]
            yield _Entry(".".join(parts) or shown, shown, value, named)
            continue
        count += len(items)
        if count > MAX_ENTRIES:
            raise ValueError(
                f"a checkpoint must hold at most {MAX_ENTRIES:,} entries, but these "
                f"have no end below {'.'.join(path)}"
            )
        waiting += reversed(
            [((*path, str(key)), each, named and isinstance(key, str)) for key, each in items]
        )


def _items(value: Any) -> list[tuple[Any, Any]] | None:  # noqa: ANN401
    """Return keys and values of a mapping, or of a list of tensors or containers; else None."""
    if isinstance(value, Mapping):
        return list(value.items()) or None
    nested = isinstance(value, list | tuple) and any(
        isinstance(each, Tensor | Mapping | list | tuple) for each in value
    )
    return list(enumerate(value)) if nested else None


def _is_wrapper(part: str) -> bool:
    """Check a part of a name for an attribute of a wrapper: a network's own never begins so."""
    return part == "module" or part.startswith("_")


def _places(name: str, anchors: Sequence[str]) -> Iterator[str]:
    for anchor in anchors:
        if name == anchor or name.endswith(f".{anchor}"):
            yield name[: -len(anchor)].rstrip(".")


def _within(name: str, place: str) -> bool:
    return not place or name == place or name.startswith(f"{place}.")


def _words(name: str) -> list[str]:
    """Split a name into words in lower case, `modelEMA_0.9999` too."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.findall(r"[a-z]+", spaced.lower().replace(MOMENT_NAME, ""))


def _is_averaged(place: str) -> bool | None:
    """Tell a moving average by its place: the innermost word that says so decides."""
    for word in reversed(_words(place)):
        if word in AVERAGED:
            return True
        if word in AS_TRAINED:
            return False
    return False if place == "model" else None


def _refuse_strange_averages(entries: Sequence[_Entry], place: str, where: str, kind: str) -> None:
    """Raise ValueError if averaged weights lie in the file that nobody found by their names."""
    found = [
        entry.shown
        for entry in entries
        if isinstance(entry.value, Tensor)
        and entry.value.dim() > 0
        and _is_averaged(entry.name)
        and not OPTIMIZERS & set(_words(entry.name))
    ]
    if found:
        raise ValueError(
            f"{where} holds averaged weights whose names are not those of a {kind} "
            f"({preview(found)}), and those as trained ({place or 'top level'}) are not "
            f"taken for them: {_advice()}"
        )


def _members(
    entries: Sequence[_Entry], place: str, inner: Sequence[str], where: str, *, strict: bool
) -> dict[str, Tensor]:
    """Collect tensors at a place by their names there, without networks that lie within it.

    Raises:
        ValueError: If a tensor has two values; or, if `strict`, something is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    strange = []
    for entry in entries:
        if not _within(entry.name, place) or any(_within(entry.name, each) for each in inner):
            continue
        name = entry.name.removeprefix(place).removeprefix(".")
        if entry.named and "." not in name and _is_scalar(entry.value):
            continue  # counters beside the weights: n_averaged, num_updates, epoch
        if not entry.named or not isinstance(entry.value, Tensor):
            strange.append(entry.shown)
        elif name in tensors:
            raise ValueError(
                f"{where} must hold each tensor once, under its published name, but "
                f"got {entry.shown} too"
            )
        else:
            tensors[name] = entry.value
    if strange and strict:
        raise ValueError(
            f"{where} must hold tensors of finite numbers by name, but these are "
            f"none: {', '.join(strange[:5])}"
        )
    return tensors


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0
    return value is None or isinstance(value, bool | int | float | str)
