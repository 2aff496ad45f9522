"""Feature extractors of torch-fidelity, by name.

Extractors: `inception-v3-compat` (the port of the reference network; give its weights file) and
`digits-cnn`, a classifier of 8x8 digits whose weights the data stage trains.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ig_core.files.extras import extra
from ig_core.files.tensors import read_weights
from ig_core.files.torchvision_shim import declare_missing_operators
from ig_core.metrics.digits_net import DigitsNet

if TYPE_CHECKING:
    from collections.abc import Callable


DIGITS_CNN, INCEPTION = "digits-cnn", "inception-v3-compat"
FEATURE_LAYERS = {DIGITS_CNN: ("64", "logits"), INCEPTION: ("2048", "logits_unbiased")}
"""Extractor name -> (layer of FID, KID, precision and recall; layer of the Inception Score)."""
SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d.branch1x1", 7
"""Layer of sFID: `mixed_6/conv:0` of the 2015 graph, after its batch norm and ReLU.

torch-fidelity's converter of the graph maps `mixed_6/conv/...` to this branch; the graph's node of
the scope's own name is the ReLU. Nash et al. 2021 take its first 7 channels of 17 x 17 places."""


class ImageFeatures(NamedTuple):
    """Outputs of one pass of an extractor, float32 on the CPU."""

    features: Tensor
    """(N, F), for FID, KID, precision and recall."""
    logits: Tensor
    """(N, K), for the Inception Score."""
    spatial: Tensor | None
    """(N, 2023), for sFID: row, column, channel, the last the fastest; None if not asked for."""


def _register_digits() -> None:
    with extra("metrics"):
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if DIGITS_CNN in FEATURE_EXTRACTORS_REGISTRY:
        return

    class DigitsExtractor(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(
            self,
            name: str,
            features_list: list[str],
            feature_extractor_weights_path: str | None = None,
            **_: Any,  # noqa: ANN401
        ) -> None:
            super().__init__(name, features_list)
            if feature_extractor_weights_path is None:
                raise ValueError(f"extractor {DIGITS_CNN!r} needs a weights file, but got None")
            self.net = DigitsNet()
            self.net.load_state_dict(read_weights(feature_extractor_weights_path))

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return FEATURE_LAYERS[DIGITS_CNN]

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return FEATURE_LAYERS[DIGITS_CNN][metric == "isc"]

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(2, 1, 8, 8, dtype=torch.uint8)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
                raise ValueError(
                    f"extractor {DIGITS_CNN!r} takes uint8 (N, 1, 8, 8), but got "
                    f"{images.dtype} {tuple(images.shape)}"
                )
            outputs = dict(zip(FEATURE_LAYERS[DIGITS_CNN], self.net(images), strict=True))
            return tuple(outputs[name] for name in self.features_list)

    register_feature_extractor(DIGITS_CNN, DigitsExtractor)


def make_extractor(
    name: str, weights: str | Path, device: torch.device | str = "cpu"
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Create an extractor of features and logits alone; see `make_image_extractor`."""
    extract = make_image_extractor(name, weights, device)

    def pooled(images: Tensor) -> tuple[Tensor, Tensor]:
        found = extract(images)
        return found.features, found.logits

    return pooled


def make_image_extractor(
    name: str, weights: str | Path, device: torch.device | str = "cpu", *, spatial: bool = False
) -> Callable[[Tensor], ImageFeatures]:
    """Create a torch-fidelity extractor from a weights file.

    Args:
        name: Key of `FEATURE_LAYERS`.
        weights: safetensors file, so that nothing is ever downloaded or unpickled.
        device: Where to run.
        spatial: Give the features of sFID too, from the same pass; Inception has them.

    Returns:
        Function of uint8 images (N, C, H, W). Inception takes images of one channel as grey ones.

    Raises:
        ValueError: If the name is unknown, the weights do not fit it, or it has no spatial
            features.
    """
    if name not in FEATURE_LAYERS:
        raise ValueError(f"extractor must be one of {', '.join(FEATURE_LAYERS)}, but got {name!r}")
    if spatial and name != INCEPTION:
        raise ValueError(f"spatial features need extractor {INCEPTION!r}, but got {name!r}")
    network = _load_network(name, weights).to(device)
    seen: list[Tensor] = []
    if spatial:
        layer = network.get_submodule(SPATIAL_LAYER)
        layer.register_forward_hook(lambda _, __, output: seen.append(output[:, :SPATIAL_CHANNELS]))

    @torch.no_grad()
    def extract(images: Tensor) -> ImageFeatures:
        if name == INCEPTION and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        seen.clear()
        features, logits = network(images.to(device))
        # TensorFlow keeps channels last, and the reference statistics are in its order.
        maps = seen.pop().permute(0, 2, 3, 1).flatten(1).float().cpu() if spatial else None
        return ImageFeatures(features.float().cpu(), logits.float().cpu(), maps)

    return extract


def _load_network(name: str, weights: str | Path) -> nn.Module:
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.utils import create_feature_extractor

    _register_digits()
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity unpickles the file it is given: it gets one that was written right here.
        pickled = Path(folder) / "weights.pth"
        torch.save(read_weights(weights), pickled)
        try:
            return create_feature_extractor(
                name,
                list(FEATURE_LAYERS[name]),
                cuda=False,
                verbose=False,
                feature_extractor_weights_path=str(pickled),
            )
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit extractor {name!r}: {error}") from error
