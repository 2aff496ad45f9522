"""How long a training stands still for a state to be published: copied, or written as well.

    python -m benchmarks.publishing [--model SiT-B/2] [--store FOLDER or s3://BUCKET/PREFIX]

A state with both moments of Adam is published again and again. `stands still` is until the training
goes on (the state is copied), `published` until the artifact is in the store with all its digests.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from statistics import median

import torch

from experiments import get_experiment
from ig_core.config import model_config
from ig_core.training.state import TrainState
from pipelines.graph.graph import Graph
from pipelines.stages.training.publisher import Publisher
from pipelines.stages.training.start import Team
from pipelines.store.open import open_store


def state_of(model: str, device: str) -> TrainState:
    """A state after one step, whose gradients were zeros: all moments are there."""
    state = TrainState.new(model_config(model), get_experiment("sit_b2").optim, 0, device)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return state


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="SiT-B/2")
    parser.add_argument("--store", help="default: a folder that is deleted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(chosen.store or folder)
        store.prepare()
        state = state_of(chosen.model, chosen.device)
        experiment = dataclasses.replace(get_experiment("digits"), name="publishing")
        publisher = Publisher(
            store, Graph(experiment), "benchmark", (), None, Team(0, 1, chosen.device)
        )
        publisher.begin(None)
        copied, published = [], []
        with publisher:
            for step in range(1, chosen.rounds + 1):
                state.step, begun = step, time.perf_counter()
                publisher.publish(state)
                copied.append(time.perf_counter() - begun)
                publisher.settle()
                published.append(time.perf_counter() - begun)
        artifact = store.list("resume")[-1]
        ratios = sorted(c / p for c, p in zip(copied, published, strict=True))
        print(
            f"{chosen.model}, {artifact.size / 2**30:.2f} GiB, "
            f"{'bucket' if '://' in store.uri else 'folder'}"
        )
        print(
            f"stands still {median(copied):.2f} s, published {median(published):.2f} s, "
            f"ratio {median(ratios):.3f} ({ratios[0]:.3f} .. {ratios[-1]:.3f})"
        )
        store.delete(artifact)


if __name__ == "__main__":
    main()
