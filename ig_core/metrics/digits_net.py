"""Feature extractor for digits: a small network that the pipeline trains itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """Map uint8 images (N, 1, 8, 8) to features (N, 64) and logits (N, 10)."""
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
