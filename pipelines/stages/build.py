"""Build one artifact in a worker: the frame around every stage."""

from __future__ import annotations

import functools
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from experiments import Experiment, experiment_from_json, experiment_to_json
from pipelines.graph import VERSIONS, Node
from pipelines.memory import explaining_memory
from pipelines.revision import code_commit
from pipelines.secrets import load_secrets
from pipelines.stores import make_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipelines.artifacts import Store

EXPERIMENT_FILE = "experiment.json"


@dataclass(frozen=True)
class Job:
    """All that a worker needs to build artifacts; travels by pickle."""

    store: str
    nodes: tuple[Node, ...]
    """One artifact; or several shards of images, of the same samples under other guidances."""
    experiment: str
    """The resolved experiment, as JSON."""


@dataclass(frozen=True)
class Context:
    """What a stage sees of the world."""

    store: Store
    node: Node
    experiment: Experiment

    def input(self, name: str) -> Path:
        """Folder of a verified input artifact."""
        node = self.node.inputs[name]
        return self.store.open(node.kind, node.key).path

    def parts(self) -> list[Path]:
        """Folders of the inputs that are parts of a whole, in order."""
        return [self.input(name) for name in self.node.inputs if name.startswith("part-")]

    @property
    def device(self) -> str:
        """Where tensors go."""
        return self.experiment.resources.device


@functools.cache
def open_store(uri: str) -> Store:
    """One store a process, so that files are checked once."""
    return make_store(uri, known=True)


def describe(node: Node) -> dict[str, Any]:
    """The part of the manifest that says what an artifact was made from."""
    return {
        "stage": node.stage,
        "version": VERSIONS[node.kind],
        "config": node.config,
        "inputs": {name: f"{source.kind}/{source.key}" for name, source in node.inputs.items()},
        "host": platform.node(),
        "packages": package_versions(),
        "commit": code_commit(),
    }


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of what results may depend on."""
    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "numpy",
        "torch-fidelity",
        "scikit-learn",
        "diffusers",
        "pillow",
        "igdit",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_experiment(experiment: Experiment, directory: Path) -> None:
    """Store the resolved experiment with an artifact: `igdit run FILE` runs it again."""
    (directory / EXPERIMENT_FILE).write_text(experiment_to_json(experiment), encoding="utf-8")


def build(job: Job) -> None:
    """Build and publish artifacts whose inputs are published."""
    import torch

    from ig_core.precision import set_tf32
    from pipelines.stages.data import build_data, build_extractor
    from pipelines.stages.encode import build_latents, build_listing
    from pipelines.stages.evaluate import build_evaluation, build_features
    from pipelines.stages.imported import build_checkpoint
    from pipelines.stages.reference import build_reference
    from pipelines.stages.sample import build_images, build_sample

    builders: dict[str, Callable[[Context, Path], None]] = {
        "listing": build_listing,
        "latents": build_latents,
        "data": build_data,
        "extractor": build_extractor,
        "reference": build_reference,
        "checkpoint": build_checkpoint,
        "sample": build_sample,
        "features": build_features,
        "evaluate": build_evaluation,
    }
    load_secrets()
    store, experiment = open_store(job.store), experiment_from_json(job.experiment)
    contexts = [Context(store, node, experiment) for node in job.nodes]
    torch.set_num_threads(1)
    set_tf32(enabled=experiment.resources.tf32)
    kind = job.nodes[0].kind
    memory = explaining_memory(kind, experiment.resources)
    with store.using(), memory, ExitStack() as publishing:
        directories = []
        for node in job.nodes:
            store.log("execute", node.kind, node.key, stage=node.stage)
            publication = store.publish(node.kind, node.key, describe(node), shares=len(job.nodes))
            directory = publishing.enter_context(publication)
            write_experiment(experiment, directory)
            directories.append(directory)
        if kind == "images":
            build_images(contexts, directories)
        else:
            builders[kind](contexts[0], directories[0])
