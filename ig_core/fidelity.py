"""torch-fidelity: feature extractors by name, and its metrics on features.

Extractors: `inception-v3-compat` (the port of the reference network; give its weights file) and
`digits-cnn`, a classifier of 8x8 digits whose weights the data stage trains.
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ig_core.extras import extra
from ig_core.torchvision_shim import declare_missing_operators

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS_CNN, INCEPTION = "digits-cnn", "inception-v3-compat"
FEATURE_LAYERS = {DIGITS_CNN: ("64", "logits"), INCEPTION: ("2048", "logits_unbiased")}
"""Extractor name -> (layer of FID, KID, precision and recall; layer of the Inception Score)."""
SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d.branch1x1", 7
"""Where sFID looks: the layer is `mixed_6/conv:0` of the 2015 graph, after its batch norm and ReLU.

torch-fidelity's converter of the graph maps `mixed_6/conv/...` to this branch; the graph's node of
the scope's own name is the ReLU. Nash et al. 2021 take its first 7 channels of 17 x 17 places."""
SEED = 2020
"""torch-fidelity's default seed: with it our numbers are its numbers."""


class ImageFeatures(NamedTuple):
    """What one pass of an extractor gives, float32 on the CPU."""

    features: Tensor
    """(N, F), for FID, KID, precision and recall."""
    logits: Tensor
    """(N, K), for the Inception Score."""
    spatial: Tensor | None
    """(N, 2023), for sFID: row, column, channel, the last the fastest; None if not asked for."""


class DigitsNet(nn.Module):
    """Classifier of images (N, 1, 8, 8) with 64 features before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.GELU(),
        )
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 1, 8, 8) to features (N, 64) and logits (N, 10)."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.classify(features)


def train_digits_net(images: Tensor, labels: Tensor, seed: int, epochs: int) -> DigitsNet:
    """Train the classifier; a function of its arguments on CPUs of one kind, to rounding on others.

    (One thread, and a fixed order of batches.)

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
    except pickle.UnpicklingError as error:  # torch's advice is to run what the file holds
        raise ValueError(
            f"{path} is not a weights file: neither safetensors nor a torch "
            f"checkpoint of tensors alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a weights file: {error}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} is not a weights file: it must hold tensors by name")
    return {name: value.contiguous() for name, value in tensors.items()}


def make_extractor(
    name: str, weights: str | Path, device: torch.device | str = "cpu"
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`make_image_extractor` for features and logits alone."""
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
        ValueError: unknown name, weights that do not fit it, or no spatial features to give.
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
        torch.save(load_file(weights), pickled)
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


def inception_score(logits: Tensor, splits: int, seed: int | None = SEED) -> tuple[float, float]:
    """Inception Score of logits (N, K): mean and standard deviation over splits.

    Args:
        logits: Rows are images.
        splits: Equal parts.
        seed: Shuffles the rows, as torch-fidelity does; None keeps their order, as the ADM
            evaluator does, whose 10 parts of 50,000 images suffer where these are sorted by class.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_isc import isc_features_to_metric

    shuffle = seed is not None
    result = isc_features_to_metric(logits, splits, shuffle=shuffle, rng_seed=seed)
    return result["inception_score_mean"], result["inception_score_std"]


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int, size: int, seed: int = SEED
) -> float:
    """KID of features (N, F) against the reference (M, F): mean over random subsets.

    The kernel is torch-fidelity's default (x.y / F + 1)^3 (Binkowski et al. 2018), in float32.

    Args:
        features: Rows are images.
        reference: Rows are images.
        subsets: How many subsets of each; torch-fidelity's default is 100.
        size: Rows of a subset, at most all there are; torch-fidelity's default is 1000.
        seed: Draws the subsets.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(features), len(reference))
    result = kid_features_to_metric(
        features, reference, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return result["kernel_inception_distance_mean"]


def precision_recall(
    features: Tensor, reference: Tensor, neighbours: int = 3, batch: int = 2500
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    Precision is the share of features (N, F) that lie in the reference's manifold, recall the share
    of the reference (M, F) in that of the features. torch-fidelity takes the samples first too; the
    ADM evaluator takes the reference first.

    Args:
        features: Rows are images.
        reference: Rows are images.
        neighbours: A ball reaches to this neighbour.
        batch: Rows at a time; changes the distances by float32 rounding at most.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_prc import prc_features_to_metric

    result = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=batch,
        save_cpu_ram=True,
        verbose=False,
    )
    return result["precision"], result["recall"]
