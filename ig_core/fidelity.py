"""torch-fidelity: feature extractors by name, and its metrics on features.

Extractors: `inception-v3-compat` (the port of the reference network; give its weights file) and
`digits-cnn`, a classifier of 8x8 digits whose weights the data stage trains.
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ig_core.torchvision_shim import declare_missing_operators

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS_CNN, INCEPTION = "digits-cnn", "inception-v3-compat"
FEATURE_LAYERS = {DIGITS_CNN: ("64", "logits"), INCEPTION: ("2048", "logits_unbiased")}
"""Extractor name -> (layer of FID, KID, precision and recall; layer of the Inception Score)."""


class DigitsNet(nn.Module):
    """Classifier of images (N, 1, 8, 8) with 64 features before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(256, 64), nn.GELU(),
        )  # fmt: skip
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 1, 8, 8) to features (N, 64) and logits (N, 10)."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.classify(features)


def train_digits_net(images: Tensor, labels: Tensor, seed: int, epochs: int) -> DigitsNet:
    """Train the classifier; a function of its arguments (one thread, fixed order of batches).

    Args:
        images: uint8 (N, 1, 8, 8).
        labels: (N,) int64.
        seed: Seed of weights and order.
        epochs: Passes over the data.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = DigitsNet()
            optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
            for _ in range(epochs):
                for rows in torch.randperm(len(images)).split(64):
                    loss = F.cross_entropy(net(images[rows])[1], labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return net.eval().requires_grad_(False)


def _register_digits() -> None:
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
                raise ValueError(f"extractor {DIGITS_CNN!r} takes uint8 (N, 1, 8, 8), but got "
                                 f"{images.dtype} {tuple(images.shape)}")  # fmt: skip
            outputs = dict(zip(FEATURE_LAYERS[DIGITS_CNN], self.net(images), strict=True))
            return tuple(outputs[name] for name in self.features_list)

    register_feature_extractor(DIGITS_CNN, DigitsExtractor)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file, safetensors or a torch checkpoint of tensors; runs nothing in it.

    Raises:
        ValueError: the file is neither, or holds more than tensors.
    """
    try:
        try:
            return load_file(path)
        except SafetensorError:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a weights file: {error}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} is not a weights file: it must hold tensors by name")
    return {name: value.contiguous() for name, value in tensors.items()}


def make_extractor(
    name: str, weights: str | Path, device: torch.device | str = "cpu"
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Create a torch-fidelity extractor from a weights file.

    Args:
        name: Key of `FEATURE_LAYERS`.
        weights: safetensors file, so that nothing is ever downloaded or unpickled.
        device: Where to run.

    Returns:
        Function of uint8 images (N, C, H, W) that gives features (N, F) and logits (N, K), float32
        on the CPU. Inception takes images of one channel as grey ones.

    Raises:
        ValueError: unknown name, or weights that do not fit it.
    """
    if name not in FEATURE_LAYERS:
        raise ValueError(f"extractor must be one of {', '.join(FEATURE_LAYERS)}, but got {name!r}")
    declare_missing_operators()
    from torch_fidelity.utils import create_feature_extractor

    _register_digits()
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity unpickles the file it is given: it gets one that was written right here.
        pickled = Path(folder) / "weights.pth"
        torch.save(load_file(weights), pickled)
        try:
            network = create_feature_extractor(
                name, list(FEATURE_LAYERS[name]), cuda=False, verbose=False,
                feature_extractor_weights_path=str(pickled),
            ).to(device)  # fmt: skip
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit extractor {name!r}: {error}") from error

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        if name == INCEPTION and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features, logits = network(images.to(device))
        return features.float().cpu(), logits.float().cpu()

    return extract


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """Inception Score of logits (N, K): mean and standard deviation over splits."""
    declare_missing_operators()
    from torch_fidelity.metric_isc import isc_features_to_metric

    result = isc_features_to_metric(logits, splits=splits)
    return result["inception_score_mean"], result["inception_score_std"]


def kernel_distance(features: Tensor, reference: Tensor, subsets: int, size: int) -> float:
    """KID of features (N, F) against the reference (M, F): mean over random subsets."""
    declare_missing_operators()
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(features), len(reference))
    result = kid_features_to_metric(features, reference, kid_subsets=subsets,
                                    kid_subset_size=size, verbose=False)  # fmt: skip
    return result["kernel_inception_distance_mean"]


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall, k = 3 (Kynkaanniemi et al. 2019)."""
    declare_missing_operators()
    from torch_fidelity.metric_prc import prc_features_to_metric

    result = prc_features_to_metric(features, reference, prc_batch_size=2500, save_cpu_ram=True,
                                    verbose=False)  # fmt: skip
    return result["precision"], result["recall"]
