"""Build artifacts in a worker: the frame around every stage."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from experiments import experiment_from_json
from pipelines.common.memory import explaining_memory
from pipelines.common.redaction import load_secrets
from pipelines.stages.context import Context, describe, write_experiment
from pipelines.stages.jobs import Work
from pipelines.stages.training.worker import train_worker
from pipelines.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipelines.stages.jobs import Job


def build(job: Job) -> None:
    """Build and publish artifacts whose inputs are published."""
    import torch

    from ig_core.precision import set_tf32
    from pipelines.stages.data import build_data, build_extractor
    from pipelines.stages.encode import build_latents, build_listing
    from pipelines.stages.evaluate import build_evaluation, build_features
    from pipelines.stages.reference import build_reference
    from pipelines.stages.sample import build_images, build_sample
    from pipelines.stages.training.imported import build_checkpoint

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
    store, experiment = open_store(job.store, in_use=True), experiment_from_json(job.experiment)
    contexts = [Context(store, node, experiment) for node in job.nodes]
    torch.set_num_threads(1)
    set_tf32(enabled=experiment.resources.tf32)
    kind = job.nodes[0].kind
    memory = explaining_memory(kind, experiment.resources)
    with store.using(), memory, ExitStack() as publishing:
        directories = []
        for node in job.nodes:
            store.log("execute", node.ref, stage=node.stage)
            publication = store.publish(node.ref, describe(node), shares=len(job.nodes))
            directory = publishing.enter_context(publication)
            write_experiment(experiment, directory)
            directories.append(directory)
        if kind == "images":
            build_images(contexts, directories)
        else:
            builders[kind](contexts[0], directories[0])


WORK = Work(build=build, train=train_worker)
"""Functions of the stages that runners execute."""
