"""Training: the state, the loop, batches, optimizers, and sharding over workers."""

from ig_core.training.loop import train
from ig_core.training.state import TrainState

__all__ = ["TrainState", "train"]
