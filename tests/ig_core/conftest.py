"""Fixtures of the core's tests: one thread, and tiny models whose weights are nowhere zero."""

from pathlib import Path

import pytest
import torch

from ig_core.config import ModelConfig
from ig_core.transformer import DiffusionTransformer

TINY = {
    "depth": 3,
    "width": 16,
    "num_heads": 2,
    "patch_size": 2,
    "input_size": 4,
    "in_channels": 2,
    "num_classes": 4,
    "aux_layer": 2,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden() -> Path:
    return Path(__file__).parent.parent / "golden"


@pytest.fixture
def tiny_config():
    """Factory of a three-block architecture; keyword arguments override its fields."""

    def make(**overrides) -> ModelConfig:
        return ModelConfig(**(TINY | overrides))

    return make


@pytest.fixture
def random_model(tiny_config):
    """Factory of a tiny model with normal weights: an initialised one would return zeros."""

    def make(seed: int = 1, std: float = 0.3, **overrides) -> DiffusionTransformer:
        model = DiffusionTransformer(tiny_config(**overrides))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        return model

    return make


@pytest.fixture
def inputs():
    """Factory of (x, t, y) for the tiny model; the last label is the null label."""

    def make(batch: int = 5, seed: int = 2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, 2, 4, 4, generator=generator)
        t = torch.rand(batch, generator=generator)
        y = torch.arange(batch) % 5
        return x, t, y

    return make
