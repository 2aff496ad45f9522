"""Context of a build: the node, the store, scratch space, and what is recorded."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from experiments import Experiment, experiment_to_json
from pipelines.common.revision import code_commit
from pipelines.graph.node import VERSIONS, Node
from pipelines.store.file_names import EXPERIMENT_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.store.base import Store


@dataclass(frozen=True)
class Context:
    """What a stage sees of the world."""

    store: Store
    node: Node
    experiment: Experiment

    def input(self, name: str) -> Path:
        """Folder of a verified input artifact."""
        node = self.node.inputs[name]
        return self.store.open(node.ref).path

    def parts(self) -> list[Path]:
        """Folders of the inputs that are parts of a whole, in order."""
        return [self.input(name) for name in self.node.inputs if name.startswith("part-")]

    @property
    def device(self) -> str:
        """Where tensors go."""
        return self.experiment.resources.device


def describe(node: Node) -> dict[str, Any]:
    """The part of the manifest that says what an artifact was made from."""
    return {
        "stage": node.stage,
        "version": VERSIONS[node.kind],
        "config": node.config,
        "inputs": {name: str(source.ref) for name, source in node.inputs.items()},
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
