"""Train stage for published checkpoints: read one, and publish it in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ig_core.checkpoints.official import load_official
from ig_core.checkpoints.own import save_weights
from pipelines.common.remedies import explained_settings
from pipelines.store.keys import file_digest

if TYPE_CHECKING:
    from pipelines.stages.context import Context


def build_checkpoint(context: Context, directory: Path) -> None:
    """Publish the weights of the file that the experiment names, for the model it describes.

    The averaged weights are taken where the file has them. Such a checkpoint cannot be trained
    further: it has no optimizer state and no position in the data.

    Raises:
        ValueError: If the file changed since the run began, cannot be read, or does not fit.
    """
    experiment = context.experiment
    path, digest = Path(str(experiment.train.from_checkpoint)), context.node.config["file_sha256"]
    if file_digest(path) != digest:
        raise ValueError(f"train.from_checkpoint {path} changed since the run began")
    with explained_settings():
        model = load_official(path, experiment.model)
    save_weights(model, directory, source={"file": path.name, "sha256": digest})
