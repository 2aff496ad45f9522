"""The reference network of FID with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ig_core.files.torchvision_shim import declare_missing_operators


def untrained_inception(path: Path) -> torch.nn.Module:
    """Random weights of Inception-v3 as torch-fidelity has it, also written as its checkpoint."""
    declare_missing_operators()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    torch.save({}, path)  # it wants to read one
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return network
