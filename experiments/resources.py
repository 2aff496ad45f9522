"""Who computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ig_core.config import require


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Who computes: never changes what is reused, and a result at most by rounding."""

    num_workers: int = 2
    """Training workers; 1 trains in a plain task and saves the set-up of a worker group."""
    min_workers: int | None = None
    """Elastic training: goes on with as few workers as this when nodes are lost, and grows to
    num_workers when there is room again. None: always num_workers."""
    cpus_per_worker: int = 1
    """CPU threads of a training worker."""
    use_gpu: bool = False
    """One GPU for each training worker and each sampling task."""
    micro_batch: int | None = None
    """Most images of a batch that a worker holds at once; more are accumulated. None: all.
    Half the batch makes one and two workers agree bit for bit, on CPUs of one kind."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more work, same result."""
    compile_blocks: bool = False
    """Compile the transformer's blocks (torch.compile); results change by rounding."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp (FSDP2): each training worker keeps a part of the state, for models that do not fit."""
    tf32: bool = True
    """On a GPU, round the factors of float32 products to TF32; results change by rounding."""
    save_minutes: float | None = 10.0
    """Most minutes of training that are lost with a worker: what is trained is published as often,
    and the one before it deleted. None: only the checkpoints of the experiment."""
    sample_tasks: int = 2
    """Sampling and evaluation tasks at a time."""
    sample_batch: int = 250
    """Images that a sampling task integrates at once."""
    max_failures: int = 3
    """Lost workers that a training survives before it gives up."""
    wait_minutes: float = 0.0
    """How long to wait for nodes that an autoscaler, or a person, is to bring to the cluster; with
    0, a training that asks for more than is there is refused at once."""
    runner: Literal["ray", "inline"] = "ray"
    """inline: everything in this process, for debuggers; one training worker."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "sample_tasks", "sample_batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            self.micro_batch is None or self.micro_batch >= 1,
            "micro_batch",
            self.micro_batch,
            "None or at least 1",
        )
        require(self.max_failures >= 0, "max_failures", self.max_failures, "at least 0")
        require(
            self.min_workers is None or 1 <= self.min_workers <= self.num_workers,
            "min_workers",
            self.min_workers,
            f"None or 1..num_workers={self.num_workers}",
        )
        require(
            self.save_minutes is None or self.save_minutes > 0,
            "save_minutes",
            self.save_minutes,
            "None or positive",
        )
        require(self.wait_minutes >= 0, "wait_minutes", self.wait_minutes, "at least 0")
        require(
            self.runner == "ray" or self.num_workers == 1,
            "num_workers",
            self.num_workers,
            "1 with the inline runner",
        )

    @property
    def device(self) -> str:
        """Where tensors go."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def fewest_workers(self) -> int:
        """Training workers without which nothing is trained."""
        return self.num_workers if self.min_workers is None else self.min_workers
