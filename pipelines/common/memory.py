"""Out-of-memory errors of any library, and the options that save memory."""

from __future__ import annotations

import errno
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.common.errors import MemoryExhaustedError
from pipelines.common.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from experiments import Resources

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "running low on memory",
    "ALLOC_FAILED",
)
"""Parts of messages of torch's allocators, CUDA's libraries, the kernel and Ray."""
FEWER_TASKS = "--resources.sample-tasks (tasks at a time)"
MAX_MESSAGE_CHARACTERS = 200


def ran_out_of_memory(error: BaseException | None) -> BaseException | None:
    """Return the out-of-memory error among an error and its causes; None if there is none."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return error
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(each.lower() in text for each in PHRASES):
            return error
        error = error.__cause__
    return None


def explanation(error: BaseException, doing: str, remedy: str) -> str:
    """Return one line that says where memory ran out, in what work, and what saves memory."""
    lines = [line for line in redact(error).splitlines() if line.strip()]
    said = next(
        (line for line in lines if any(each.lower() in line.lower() for each in PHRASES)),
        lines[0] if lines else type(error).__name__,
    )
    reason = said.strip()[:MAX_MESSAGE_CHARACTERS]
    return (
        f"memory ran out on {platform.node()} {doing}: {reason}. Published artifacts stay; to use "
        f"less memory: {remedy}"
    )


@contextmanager
def explaining_memory(kind: str, resources: Resources) -> Iterator[None]:
    """Replace an out-of-memory error of the block by one that names the options that mend it.

    Args:
        kind: Kind of the artifact that is built.
        resources: Resources of the experiment.

    Raises:
        MemoryExhaustedError: If memory runs out in the block.
    """
    try:
        yield
    except MemoryExhaustedError:
        raise
    except Exception as error:
        cause = ran_out_of_memory(error)
        if cause is None:
            raise
        doing = "in training" if kind == "checkpoint" else f"while {kind} were made"
        raise MemoryExhaustedError(explanation(cause, doing, _remedy(kind, resources))) from error


def _remedy(kind: str, resources: Resources) -> str:
    if kind == "checkpoint":
        held = "all of its part" if resources.micro_batch is None else f"{resources.micro_batch}"
        return (
            f"--resources.micro-batch (images of a batch that a worker holds at once, now "
            f"{held}), --resources.activation-checkpointing, --resources.sharding fsdp, or "
            f"{FEWER_TASKS}, now {resources.sample_tasks}; results stay the same but for "
            f"rounding"
        )
    if kind in ("images", "features", "reference"):
        return (
            f"--resources.sample-batch (images at once, now {resources.sample_batch}) or "
            f"{FEWER_TASKS}, now {resources.sample_tasks}; results stay the same"
        )
    return f"{FEWER_TASKS}, now {resources.sample_tasks}; results stay the same"
