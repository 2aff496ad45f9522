"""What is learnt: the data, the codec of its latents, and how many of them a shard holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ig_core.config import require

CODEC_FACTOR = {"none": 1, "sd-vae": 8, "va-vae": 16}
"""Codec -> pixels along one side of a latent's cell."""
CODEC_CHANNELS = {"none": 3, "sd-vae": 4, "va-vae": 32}
"""Codec -> channels of what the model learns."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learnt."""

    source: Literal["digits", "latents", "images"] = "digits"
    """digits: the 1,797 handwritten 8x8 digits that ship with scikit-learn. images: a class folder,
    Parquet files, WebDataset tars or an ADM zip. latents: those of SiT and REPA (.npy), or those of
    LightningDiT (safetensors)."""
    path: str | None = None
    """images and latents: the folder, the file, or a pattern in the last part of the name
    (`train-*.parquet`, `set-{000..099}.tar`)."""
    classes: str | None = None
    """A JSON file {folder or file: label} that labels them, wherever it lies. None: what lies with
    the data does, else the order of the class folders."""
    content: str | None = None
    """Identity of what lies there; a run fills it in, and an experiment that has it takes no
    other."""
    count: int | None = None
    """Images or latents that lie there; a run fills it in."""
    codec: Literal["none", "sd-vae", "va-vae"] = "none"
    """What makes latents of images and images of samples. none: the model learns pixels."""
    codec_path: str | None = None
    """Weights of the codec: a folder of diffusers' AutoencoderKL (sd-vae), or a file (va-vae)."""
    codec_sha256: str | None = None
    """SHA-256 of these; a run fills it in, and an experiment that has it takes no others."""
    encoder_sha256: str | None = None
    """SHA-256 of the part of these that encodes; a run fills it in. What is made of images depends
    on nothing else of the codec."""
    channels: int = 1
    """Channels of what the model learns."""
    side: int = 8
    """Its rows and columns."""
    num_classes: int = 10
    """Classes of the labels."""
    flip: bool = False
    """Mirror every other image at random. Of latents both must be there: the latent of a mirrored
    image is not the mirrored latent."""
    resolution: int = 256
    """Side of the images in pixels: they are cropped to the centre as ADM does, samples are decoded
    to it."""
    shard_size: int = 10_000
    """Images or latents that one task encodes; what an interrupted encoder loses at most."""
    max_broken: int = 100
    """Images that may be unreadable, of more than 8 bits, or CMYK; they are named. With more than
    these the run ends."""
    check_statistics: bool = True
    """Refuse latents whose values are not what their codec gives, or their statistics say."""

    def __post_init__(self) -> None:
        for name in ("channels", "side", "num_classes", "resolution", "shard_size"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.max_broken >= 0, "data.max_broken", self.max_broken, "at least 0")
        if self.source == "digits":
            self._check_digits()
            return
        require(
            self.source == "images" or self.codec != "none",
            "data.codec",
            self.codec,
            "sd-vae or va-vae with data.source=latents",
        )
        factor, channels = CODEC_FACTOR[self.codec], CODEC_CHANNELS[self.codec]
        require(
            self.channels == channels,
            "data.channels",
            self.channels,
            f"{channels} with data.codec={self.codec}",
        )
        require(
            self.resolution == self.side * factor,
            "data.resolution",
            self.resolution,
            f"{self.side * factor}: data.side={self.side} times {factor} of {self.codec}",
        )

    @property
    def image_side(self) -> int:
        """Side in pixels of the images that are learnt, and of samples."""
        return self.side if self.source == "digits" else self.resolution

    def _check_digits(self) -> None:
        """Raise ValueError for what digits do not have."""
        for name, value in (
            ("path", None),
            ("classes", None),
            ("codec", "none"),
            ("codec_path", None),
            ("channels", 1),
            ("side", 8),
            ("num_classes", 10),
            ("flip", False),
        ):
            require(
                getattr(self, name) == value,
                f"data.{name}",
                getattr(self, name),
                f"{value} with data.source=digits",
            )
