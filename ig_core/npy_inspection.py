"""What a cache of latents of SiT, REPA and IG is: a .npy of moments for each image."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ig_core.latent_checks import moment_problems, value_problems
from ig_core.latent_facts import LOOKED_AT, NAMES, SCALES, CacheFacts, label_problems, measure, some
from ig_core.latents import ChannelSums

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def inspect_npy(folder: Path) -> CacheFacts:
    """Say what a folder with `dataset.json` and .npy files is.

    Raises:
        ValueError: its list cannot be read, or there are no files.
    """
    listed, problems = _listing(folder / "dataset.json")
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*.npy")}
    if not there:
        raise ValueError(f"{folder} has a dataset.json, but no .npy file")
    problems += some(sorted(listed.keys() - there), "listed in dataset.json, not there")
    problems += some(sorted(there - listed.keys()), "without a label in dataset.json")
    read, more = _read(folder, _spread(sorted(there & listed.keys())))
    shapes = Counter(array.shape for array in read)
    shape = shapes.most_common(1)[0][0] if shapes else ()
    alike = [array for array in read if array.shape == shape]
    problems += more + _form_problems(alike, shape, shapes)
    labels, sums = Counter(listed[name] for name in there & listed.keys()), None
    fine = alike and len(shape) == 3 and shape[0] == 8 and alike[0].dtype.kind == "f"
    if fine and all(np.isfinite(array).all() for array in alike):
        moments = torch.from_numpy(np.stack(alike).astype(np.float32))
        sums = ChannelSums.of(moments, 4)
        problems += moment_problems(moments[:, 4:]) or value_problems("sd-vae", sums)
    return CacheFacts(
        format="SiT, REPA and IG: a .npy for each image",
        codec=NAMES["sd-vae"] if shape[:1] == (8,) else "not known",
        scale=f"{SCALES['sd-vae']} after sampling",
        content="moments: mean and standard deviation of the posterior, to be sampled each time",
        flips="none: images are learnt as they are, as SiT and IG do",
        statistics="none needed",
        shape=shape,
        labels=labels,
        files=len(there),
        measured=measure(sums),
        problems=problems + label_problems(labels),
    )


def _listing(path: Path) -> tuple[dict[str, int], list[str]]:
    """File -> label, and what is wrong with the list."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["labels"]
        listed = {str(name): int(label) for name, label in entries}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} must hold {{\"labels\": [[file, label], ...]}}, but reading it "
                         f"gave {type(error).__name__}: {error}") from error  # fmt: skip
    twice = len(entries) - len(listed)
    return listed, [f"{twice} files are listed twice in dataset.json"] if twice else []


def _read(folder: Path, names: Iterable[str]) -> tuple[list[NDArray[Any]], list[str]]:
    """Arrays of files, and one line on all that cannot be read."""
    read, broken = [], []
    for name in names:
        try:
            array = np.load(folder / name, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            broken.append((name, error))
            continue
        read.append(array[0] if array.ndim == 4 and len(array) == 1 else array)
    if not broken:
        return read, []
    line = some([name for name, _ in broken], "of those looked at cannot be read")[0]
    return read, [f"{line} ({str(broken[0][1]).splitlines()[0]})"]


def _form_problems(
    read: Sequence[NDArray[Any]], shape: tuple[int, ...], shapes: Counter[tuple[int, ...]]
) -> list[str]:
    problems = []
    if not read:
        return []
    if len(shapes) > 1:
        problems.append(f"files differ in shape: {', '.join(map(str, shapes))}")
    if len(shape) != 3 or shape[0] != 8 or shape[1] != shape[2]:
        problems.append(f"files should be (8, side, side): 4 channels of mean and 4 of standard "
                        f"deviation, but are {shape}")  # fmt: skip
        return problems
    if any(a.dtype != np.float32 for a in read):
        problems.append(f"values should be float32, but are {read[0].dtype}")
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in read):
        problems.append("some values are NaN or infinite")
    return problems


def _spread(names: Sequence[str]) -> list[str]:
    step = max(1, len(names) // LOOKED_AT)
    return list(names[::step][:LOOKED_AT])
