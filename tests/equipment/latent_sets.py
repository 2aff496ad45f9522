"""Small training sets in every format, and codecs with random weights."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from ig_core.files.torchvision_shim import declare_missing_operators
from tests.equipment.ldm_autoencoder import LdmAutoencoder

CLASSES = ("n01", "n02", "n03")
SIDE = 40


def pictures(count: int = 7, seed: int = 0) -> list[tuple[int, bytes]]:
    """(label, PNG) of random coloured images, in the order of their labels."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        size = (SIDE + 5 * (number % 3), SIDE + 7 * (number % 2))
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
        found.append((number * len(CLASSES) // count, stream.getvalue()))
    return found


def write_folder(root, images):
    for number, (label, data) in enumerate(images):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(data)
    return root


def write_parquet(root, images):
    """Two files of Hugging Face's layout, with small row groups."""
    root.mkdir(parents=True)
    half = len(images) // 2
    for number, part in enumerate((images[:half], images[half:])):
        table = pa.table(
            {
                "image": [{"bytes": data, "path": f"{i}.png"} for i, (_, data) in enumerate(part)],
                "label": [label for label, _ in part],
            }
        )
        pq.write_table(table, root / f"train-{number:05d}-of-00002.parquet", row_group_size=2)
    return root


def write_tars(root, images):
    root.mkdir(parents=True)
    half = len(images) // 2
    for number, part in enumerate((images[:half], images[half:])):
        with tarfile.open(root / f"set-{number:04d}.tar", "w") as archive:
            for place, (label, data) in enumerate(part):
                for suffix, content in (("cls", str(label).encode()), ("png", data)):
                    info = tarfile.TarInfo(f"sample{place:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


def write_zip(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{number // 3:05d}/img{number:08d}.png" for number in range(len(images))]
    labels = [[name, label] for name, (label, _) in zip(names, images, strict=True)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, (_, data) in zip(names, images, strict=True):
            archive.writestr(name, data)
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


IMAGE_FORMATS = {
    "folder": write_folder,
    "parquet": write_parquet,
    "tar": write_tars,
    "zip": lambda root, images: write_zip(root / "set.zip", images),
}


def sd_moments(count, side=4, spread=5.5, seed=0):
    """Moments (N, 8, side, side) float32 with the spread of SD-VAE's means."""
    generator = np.random.default_rng(seed)
    means = spread * generator.normal(size=(count, 4, side, side))
    return np.concatenate([means, generator.random(means.shape)], axis=1).astype(np.float32)


def write_npy(root, moments, labels):
    """As SiT and REPA prepare them: moments (N, 2C, H, W), labels (N,)."""
    names = [f"{number // 3:05d}/img-mean-std-{number:08d}.npy" for number in range(len(labels))]
    for name, row in zip(names, moments, strict=True):
        path = root / "vae-sd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, row)
    pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
    (root / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return root


def write_safetensors(root, latents, flipped, labels, statistics=True, size=4):
    """As LightningDiT prepares them."""
    root.mkdir(parents=True)
    for number, start in enumerate(range(0, len(labels), size)):
        part = slice(start, start + size)
        rows = {"latents": latents[part], "latents_flip": flipped[part], "labels": labels[part]}
        save_file(
            {k: v.contiguous() for k, v in rows.items()},
            root / f"latents_rank00_shard{number:03d}.safetensors",
        )
    if statistics:
        found = {
            "mean": latents.mean(dim=(0, 2, 3), keepdim=True),
            "std": latents.std(dim=(0, 2, 3), keepdim=True),
        }
        torch.save(found, root / "latents_stats.pt")
    return root


def autoencoder_class():
    """Diffusers' AutoencoderKL, also on a CPU-only torch."""
    declare_missing_operators()
    from diffusers import AutoencoderKL

    return AutoencoderKL


def make_sd_vae(folder, seed: int = 0, scale: float = 0.18215):
    """A folder of diffusers' AutoencoderKL: the real architecture, narrow, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = autoencoder_class()(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=scale,
        )
    network.save_pretrained(folder)
    return folder


def make_va_vae(path, seed: int = 0):
    """A checkpoint of the VA-VAE's architecture, narrow; returns path and the network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LdmAutoencoder(width=32, multipliers=(1, 1, 1, 1, 2), channels=32)
    passengers = {"loss.logvar": torch.zeros(()), "linear_proj.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": {**network.state_dict(), **passengers}}, path)
    return path, network
