"""SiT on SD-VAE latents of ImageNet 256 x 256, with and without Internal Guidance.

Settings are those of the published training and sampling code (`SiT/train.py`, `SiT/generate.py` of
Internal-Guidance) and of the paper's notes, arXiv 2512.24176: AdamW 1e-4, batch 256, fp16, moving
average 0.9999, uniform t, auxiliary loss weight 0.5 at block 4 (B) or 8 (L, XL), no flips; the SDE
with 250 network evaluations and a float64 state. 80 epochs are 400,000 steps, 800 are 4,000,000:
`--train.steps 4000000` goes on from the shorter training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from experiments.protocols import adm_imagenet256
from experiments.schema import DataConfig, Experiment, Resources
from ig_core.config import (
    Guidance,
    LossConfig,
    OptimConfig,
    SamplerConfig,
    TrainConfig,
    model_config,
)

STEPS_80_EPOCHS, STEPS_800_EPOCHS = 400_000, 4_000_000
"""The paper counts these as 80 and 800 epochs of 5,004 steps of 256 images."""
SD_LATENTS = DataConfig(
    source="latents", codec="sd-vae", channels=4, side=32, num_classes=1000, flip=False
)
"""SD-VAE f8 moments, sampled anew each time, times 0.18215. The folder is `--data.path`."""
EIGHT_GPUS = Resources(num_workers=8, use_gpu=True, sample_tasks=8, sample_batch=125)
"""Eight GPUs with 32 images of a batch each; any other number gives the same results."""

Size = Literal["B", "L", "XL"]

_SCALES: dict[Size, tuple[float, tuple[float, ...]]] = {
    # The scales of the paper's ablation; no more of its grid is known.
    "B": (1.9, (1.0, 1.5, 1.9, 2.3)),
    # The scales of the paper's rows without CFG are not known: a sweep chooses ours.
    "L": (1.4, (1.0, 1.2, 1.4, 1.6, 1.9, 2.3)),
    "XL": (1.4, (1.0, 1.2, 1.4, 1.6, 1.9, 2.3)),
}
"""Size -> internal guidance scale of the FID curve, and the scales compared at the end."""


def sit(size: Size, *, ig: bool) -> Experiment:
    """SiT-SIZE/2 for 80 epochs, with or without the auxiliary head."""
    scale, scales = _SCALES[size] if ig else (1.0, ())
    return Experiment(
        name=f"sit_{size.lower()}2{'_ig' if ig else ''}",
        data=SD_LATENTS,
        model=model_config(f"SiT-{size}/2", **({} if ig else {"aux_layer": None})),
        loss=LossConfig(aux_weight=0.5),
        optim=OptimConfig(lr=1e-4, ema_decay=0.9999, precision="fp16"),
        train=TrainConfig(steps=STEPS_80_EPOCHS, batch_size=256, checkpoint_every=100_000),
        guidance=Guidance(ig_scale=scale),
        ig_scales=scales,
        sampler=SamplerConfig(method="sde", num_steps=250, state_dtype="float64"),
        evaluation=adm_imagenet256(),
        resources=EIGHT_GPUS,
    )


def sit_b2() -> Experiment:
    """SiT-B/2 without auxiliary head. Published: FID 33.02 at 80 epochs."""
    return sit("B", ig=False)


def sit_b2_ig() -> Experiment:
    """SiT-B/2 with the head at block 4. Published: FID 30.60, at scale 1.9 17.38."""
    return sit("B", ig=True)


def sit_b2_ig_interval() -> Experiment:
    """The same training, guided for t in [0.3, 1). Published: FID 16.19 at scale 2.3."""
    base = sit_b2_ig()
    return replace(
        base,
        name="sit_b2_ig_interval",
        guidance=Guidance(ig_scale=2.3, ig_interval=(0.3, 1.0)),
        ig_scales=(1.0, 2.3),
    )


def sit_l2() -> Experiment:
    """SiT-L/2 without auxiliary head. No published number of this size is known."""
    return sit("L", ig=False)


def sit_l2_ig() -> Experiment:
    """SiT-L/2 with the head at block 8. No published number of this size is known."""
    return sit("L", ig=True)


def sit_xl2() -> Experiment:
    """SiT-XL/2 without auxiliary head. Published: FID 8.61 at 1400 epochs."""
    return sit("XL", ig=False)


def sit_xl2_ig() -> Experiment:
    """SiT-XL/2 with the head at block 8. Published: FID 5.31 at 80 epochs, 1.75 at 800."""
    return sit("XL", ig=True)


def sit_xl2_ig_cfg() -> Experiment:
    """The same training under both guidances (`SiT/gen.sh`). Published: FID 1.46 at 800."""
    return replace(
        sit_xl2_ig(),
        name="sit_xl2_ig_cfg",
        guidance=Guidance(ig_scale=1.4, cfg_scale=1.35, cfg_interval=(0.0, 0.7)),
        ig_scales=(1.0, 1.4),
    )
