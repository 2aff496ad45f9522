"""Published numbers, with their sources and the protocols by which they were measured.

ImageNet 256 x 256, 50,000 samples. All from the IG paper's system comparison and ablation (arXiv
2512.24176, tables 5, 1 and 3 of its second version), which quotes the other methods from their own
papers. The paper's rows "without CFG" have internal guidance on (its author, issue 2 of the
published code). Numbers that are not known are None.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2512.24176"
IMAGENET_TRAIN = 1_281_167
"""Images of ImageNet's training set, on which all of these models were trained."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a published table."""

    method: str
    """Name of the method in the paper."""
    epochs: int | None
    """Training epochs; None if they are not known."""
    cfg: bool = False
    """True if classifier-free guidance (or autoguidance) was on."""
    fid: float
    """Frechet distance of 50,000 samples with random labels."""
    sfid: float | None = None
    """Frechet distance of spatial features."""
    inception_score: float | None = None
    """Inception Score."""
    precision: float | None = None
    """Precision (k = 3)."""
    recall: float | None = None
    """Recall (k = 3)."""
    balanced_fid: float | None = None
    """FID with 50 samples of each class; None if it was not published."""
    source: str = f"{PAPER}, table 5"
    """Paper and table of the row."""


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """Protocol by which published numbers were measured."""

    num_samples: int = 50_000
    """Number of sampled images."""
    labels: str = "random"
    """Labels of the samples. With 50 of each class FID is about 0.1 lower (RAE, the IG paper)."""
    extractor: str = "ADM's TensorFlow graph of Inception-v3 (2015)"
    """Feature extractor."""
    reference: str = "VIRTUAL_imagenet256_labeled.npz"
    """File with ADM's statistics of the training set."""
    pixels: str = "truncated: uint8 of 255 (x + 1) / 2"
    """Rounding to uint8."""
    noise: str = "a seed for each GPU: the images depend on how many there were"
    """Origin of the sampling noise."""
    cfg_channels: str | None = None
    """Channels of the latent that classifier-free guidance acted on; None if all."""


SIT_PROTOCOL = PublishedProtocol()
"""SiT with IG, REPA (`SiT/generate.py`, guided-diffusion's evaluator)."""
SIT_AUTHORS_PROTOCOL = PublishedProtocol(
    pixels="truncated: uint8 of 127.5 x + 128", cfg_channels="the first three of four channels"
)
"""SiT by its own authors (`sample_ddp.py`, and `forward_with_cfg` in `models.py`)."""
LIGHTNINGDIT_PROTOCOL = PublishedProtocol(pixels="truncated: uint8 of 127.5 x + 128")
"""LightningDiT with IG (its `inference.py`, guided-diffusion's evaluator)."""

IG_SIT_800_SHA256 = "a7f4eb9f417295a14e5063b70020ab3f55b60a4905ccda7b244343deaf9840cd"
"""`SiT-XL-IG-ImageNet256-800EP.pt`, 10,842,729,224 bytes, as the authors published it (the digest
is a third party's)."""


def row(
    method: str,
    epochs: int | None,
    numbers: tuple[float | None, ...],
    *,
    cfg: bool = False,
    balanced: float | None = None,
) -> Published:
    """Return a row of table 5.

    Args:
        method: Name of the method.
        epochs: Training epochs.
        numbers: FID, sFID, Inception Score, precision, recall.
        cfg: Whether classifier-free guidance was on.
        balanced: FID with 50 samples of each class.
    """
    fid, sfid, score, precision, recall = numbers
    if fid is None:
        raise ValueError(f"{method} needs an FID, but got None")
    return Published(
        method=method,
        epochs=epochs,
        cfg=cfg,
        fid=fid,
        sfid=sfid,
        inception_score=score,
        precision=precision,
        recall=recall,
        balanced_fid=balanced,
    )


def ablation(method: str, fid: float, score: float, table: int) -> Published:
    """Return a row of the ablation on SiT-B/2, 80 epochs, without CFG."""
    return Published(
        method=method, epochs=80, fid=fid, inception_score=score, source=f"{PAPER}, table {table}"
    )


OTHER_METHODS = (
    row("ADM", 400, (10.94, 6.02, 101.0, 0.69, 0.63)),
    row("ADM", 400, (3.94, 6.14, 215.8, 0.83, 0.53), cfg=True),
    row("DiT-XL/2", 1400, (9.62, 6.85, 121.5, 0.67, 0.67)),
    row("DiT-XL/2", 1400, (2.27, 4.60, 278.2, 0.83, 0.57), cfg=True),
    row("MaskDiT", 1600, (5.69, 10.34, 177.9, 0.74, 0.60)),
    row("MaskDiT", 1600, (2.28, 5.67, 276.6, 0.80, 0.61), cfg=True),
    row("TREAD", 740, (1.69, 4.73, 292.7, 0.81, 0.63), cfg=True),
    row("MDTv2", 1080, (1.58, 4.52, 314.7, 0.79, 0.65), cfg=True),
    row("REPA", 80, (7.90, 5.06, 122.6, 0.70, 0.65)),
    row("REPA", 800, (5.90, 5.69, 157.8, 0.70, 0.69), balanced=5.78),
    row("REPA", 800, (1.42, 4.70, 305.7, 0.80, 0.65), cfg=True, balanced=1.29),
    row("REPA-E", 80, (3.46, 4.17, 159.8, 0.77, 0.63)),
    row("REPA-E", 80, (1.67, 4.12, 266.3, 0.80, 0.63), cfg=True),
    row("REPA-E", 800, (1.83, None, 217.3, None, None), balanced=1.70),
    row("REPA-E", 800, (1.26, 4.11, 314.9, 0.79, 0.66), cfg=True, balanced=1.15),
    row("REG", 80, (3.40, None, 184.1, None, None)),
    row("REG", 80, (1.86, 4.49, 321.4, 0.76, 0.63), cfg=True),
    row("REG", 480, (2.20, 4.67, 219.1, 0.77, 0.66)),
    row("REG", 480, (1.40, 4.24, 296.9, 0.77, 0.66), cfg=True),
    row("LightningDiT-XL/1", 64, (5.14, 4.22, 130.2, 0.76, 0.62)),
    row("LightningDiT-XL/1", 64, (2.11, 4.16, 252.3, 0.81, 0.58), cfg=True),
    row("LightningDiT-XL/1", 800, (2.17, 4.36, 205.6, 0.77, 0.65), balanced=2.11),
    row("LightningDiT-XL/1", 800, (1.35, 4.15, 295.3, 0.79, 0.65), cfg=True, balanced=1.28),
    row("RAE DiT-DH", 800, (1.60, 5.40, 242.7, 0.79, 0.65), balanced=1.51),
    row("RAE DiT-DH", 800, (1.28, 4.72, 262.9, 0.78, 0.67), cfg=True, balanced=1.13),
)
"""Rows of methods that no experiment here trains, LightningDiT's own recipe with batch 1024 among
them."""

SIT_XL2 = row("SiT-XL/2", 1400, (8.61, 6.32, 131.7, 0.68, 0.67))
SIT_XL2_CFG = row("SiT-XL/2", 1400, (2.06, 4.50, 270.3, 0.82, 0.59), cfg=True)
SIT_XL2_IG_80 = row("SiT-XL/2 + IG", 80, (5.31, 5.68, 147.7, 0.80, 0.56))
SIT_XL2_IG_800 = row("SiT-XL/2 + IG", 800, (1.75, 4.98, 228.6, 0.80, 0.62))
SIT_XL2_IG_800_CFG = row("SiT-XL/2 + IG", 800, (1.46, 4.79, 265.7, 0.80, 0.64), cfg=True)
LIGHTNINGDIT_IG_60 = row("LightningDiT-XL/1 + IG", 60, (2.42, 3.81, 173.7, 0.79, 0.62))
LIGHTNINGDIT_IG_680 = row(
    "LightningDiT-XL/1 + IG", 680, (1.34, 3.94, 229.3, 0.78, 0.65), balanced=1.24
)
LIGHTNINGDIT_IG_680_CFG = row(
    "LightningDiT-XL/1 + IG", 680, (1.19, 4.11, 269.0, 0.79, 0.66), cfg=True, balanced=1.07
)

SIT_B2 = ablation("SiT-B/2", 33.02, 43.71, 1)
SIT_B2_AUX = {
    2: ablation("+ head at block 2", 30.45, 47.97, 1),
    4: ablation("+ head at block 4", 30.60, 47.70, 1),
    8: ablation("+ head at block 8", 38.05, 37.97, 1),
}
"""Block of the auxiliary head -> numbers without guidance."""
SIT_B2_IG_15 = ablation("+ IG 1.5", 19.02, 65.06, 3)
SIT_B2_IG_19 = ablation("+ IG 1.9", 17.38, 69.12, 3)
SIT_B2_IG_23_INTERVAL = ablation("+ IG 2.3 in [0.3, 1)", 16.19, 72.95, 3)
