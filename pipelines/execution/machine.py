"""Capacity of this machine: cores, and experiments that fit at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipelines.common.settings import ray_address

if TYPE_CHECKING:
    from experiments import Resources


def room_here(resources: Resources) -> int:
    """Return how many experiments this machine has cores and GPUs for, at least 1."""
    if resources.runner == "inline":
        return 1
    room = cores_here() // (resources.fewest_workers * resources.cpus_per_worker)
    if resources.use_gpu:
        import torch

        # One GPU is left for sampling, or there would be no FID before a training ends.
        room = min(room, (torch.cuda.device_count() - 1) // resources.fewest_workers)
    return max(1, room)


def cores_here() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_cores(resources: Resources) -> None:
    """Check that this machine has cores for the training workers, unless a cluster is used.

    The resources of a cluster are compared when it is joined.

    Raises:
        ValueError: If this machine has fewer cores.
    """
    wanted, cores = resources.fewest_workers * resources.cpus_per_worker, cores_here()
    if resources.runner == "inline" or ray_address() or wanted <= cores:
        return
    option = f"num-workers {cores // resources.cpus_per_worker}"
    if resources.cpus_per_worker > cores:
        option = f"cpus-per-worker {cores}"
    raise ValueError(
        f"resources ask for {wanted} CPUs to train on (num_workers={resources.fewest_workers}, "
        f"cpus_per_worker={resources.cpus_per_worker}), but this machine has {cores}: "
        f"--resources.{option} gives the same results, or RAY_ADDRESS joins a cluster"
    )
