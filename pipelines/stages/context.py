"""Context of a build: the node, its inputs in the store, and the record of how it was made."""

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
    """Node to build, with the store and the experiment; all that a stage's builder gets."""

    store: Store
    node: Node
    experiment: Experiment

    def input(self, name: str) -> Path:
        """Return the folder of an input artifact, verified."""
        node = self.node.inputs[name]
        return self.store.open(node.ref).path

    def parts(self) -> list[Path]:
        """Return the folders of the inputs `part-00000`, `part-00001`, ..., in order."""
        return [self.input(name) for name in self.node.inputs if name.startswith("part-")]

    @property
    def device(self) -> str:
        """Device of the tensors."""
        return self.experiment.resources.device


def describe(node: Node) -> dict[str, Any]:
    """Describe what an artifact is made from, for its manifest."""
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
    """Return the versions of the packages that results may depend on."""
    versions = {"python": platform.python_version()}
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
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write_experiment(experiment: Experiment, directory: Path) -> None:
    """Store the resolved experiment with an artifact: `igdit run FILE` runs it again."""
    (directory / EXPERIMENT_FILE).write_text(experiment_to_json(experiment), encoding="utf-8")
