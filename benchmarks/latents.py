"""Reading latents: mapped Arrow shards against one .npy file an image, and safetensors by item.

The two others are re-creations of the habits of published data loaders, written here: a file of its
own for every image, opened by `np.load`; and shards of 10,000 rows of safetensors, of which the
file is opened anew for every item. "Memory" is a gather of the same rows from one array in RAM: no
reader can be faster. All readers return equal batches, which is asserted first. Everything lies in
the system's cache: what is compared is the work, not the disk.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.timing import CLOCKS, Timer, print_table
from ig_core.data.latents import LatentDataset
from ig_core.data.normalisation import Normalisation
from ig_core.data.shards import ShardWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD, BATCH = 10_000, 256


class Size(NamedTuple):
    """A set of latents."""

    name: str
    rows: int
    side: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: moments of four channels, float32."""
        return 8 * self.side**2 * 4


def rows_of(size: Size, start: int, stop: int) -> NDArray[np.float32]:
    """Rows whose first number is their index; the rest repeats."""
    rows = np.random.default_rng(0).random((stop - start, 8, size.side, size.side), np.float32)
    rows[:, 0, 0, 0] = np.arange(start, stop)
    return rows


class Safetensors:
    """Shards of which the file is opened for every item."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def batch(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Rows (B, 8, H, W)."""
        rows = []
        for item in index.tolist():
            with safe_open(self.paths[item // SHARD], framework="pt", device="cpu") as file:
                part = slice(item % SHARD, item % SHARD + 1)
                file.get_slice("labels")[part]
                rows.append(file.get_slice("latents")[part])
        return torch.cat(rows)


class Files:
    """A file for each of the first rows."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def batch(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Rows (B, 8, H, W)."""
        return torch.stack([torch.from_numpy(np.load(self.paths[i])) for i in index.tolist()])


def write(size: Size, folder: Path, files: int) -> tuple[list[Path], list[Path], list[Path]]:
    """Write a set in the three formats; of .npy files only the first `files` rows."""
    arrow, tensors, single = [], [], []
    for start in range(0, size.rows, SHARD):
        stop = min(start + SHARD, size.rows)
        rows, labels = rows_of(size, start, stop), np.arange(start, stop) % 1000
        writer = ShardWriter()
        writer.add(range(start, stop), labels, rows)
        arrow.append(folder / f"{start:08d}.arrow")
        writer.write(arrow[-1])
        tensors.append(folder / f"{start:08d}.safetensors")
        save_file({"latents": rows, "labels": labels}, tensors[-1])
        for number in range(start, min(stop, files)):
            path = folder / f"{number // 1000:05d}" / f"img-mean-std-{number:08d}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, rows[number - start])
            single.append(path)
    return arrow, tensors, single


def memory() -> dict[str, float]:
    """MiB of this process: its own, and of mapped files."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    return {name: int(found[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measure_opening(size: Size, arrow: list[Path], normalisation: Normalisation) -> None:
    """Time from nothing to the first batch."""
    seconds, first = [], []
    for _ in range(5):
        gc.collect()
        begun = time.perf_counter()
        dataset = LatentDataset(arrow, normalisation)
        seconds.append(time.perf_counter() - begun)
        index = torch.randint(len(dataset), (BATCH,))
        dataset.rows(index, index, 0)
        first.append(time.perf_counter() - begun)
        del dataset
    print(
        f"{size.name}: {size.rows:,} rows, {size.rows * size.row_bytes / 1e9:.2f} GB in "
        f"{len(arrow)} shards; opened in {np.median(seconds):.3f} s, first batch after "
        f"{np.median(first):.3f} s"
    )


def measure_memory(size: Size, arrow: list[Path], normalisation: Normalisation) -> None:
    """Memory of the process over an epoch in random order."""
    dataset = LatentDataset(arrow, normalisation)
    batches = torch.randperm(len(dataset)).split(BATCH)
    quarter, most = -(-len(batches) // 4), 0.0
    print(f"most memory in each quarter of an epoch of {len(batches):,} batches (own + mapped):")
    begun = time.perf_counter()
    for number, index in enumerate(batches, start=1):
        dataset.rows(index, index, 0)
        now = memory()
        most = max(most, now["RssFile"])
        if number % quarter == 0 or number == len(batches):
            print(f"  {now['RssAnon']:,.0f} + {most:,.0f} MiB")
            most = 0.0
    rate = size.rows * size.row_bytes / (time.perf_counter() - begun)
    print(f"  {rate / 1e9:.2f} GB/s, the reading of these numbers included")


def measure_batches(
    size: Size, written: tuple[list[Path], list[Path], list[Path]], options: argparse.Namespace
) -> None:
    """Random batches, each reader in turn on the same rows."""
    arrow, tensors, single = written
    dataset = LatentDataset(arrow, Normalisation.uniform(4, 1.0))
    whole = np.concatenate([shard.latent for shard in dataset.shards])
    readers = {
        "safetensors, opened by item": Safetensors(tensors),
        "one .npy an image": Files(single),
    }
    generator = np.random.default_rng(1)
    variants = {}
    for name, most in (
        ("mapped Arrow shards", size.rows),
        *((n, size.rows) for n in readers),
        ("memory", size.rows),
    ):
        reader, limit = readers.get(name), len(single) if name.startswith("one") else most
        index = [generator.integers(0, limit, BATCH) for _ in range(options.batches)]

        def run(name: str = name, reader: object = reader, index: list = index) -> torch.Tensor:
            for each in index:
                if name == "memory":
                    found = torch.from_numpy(whole[each])
                elif reader is None:
                    found = dataset.rows(torch.from_numpy(each), torch.from_numpy(each), 0)[0]
                else:
                    found = reader.batch(each)  # type: ignore[attr-defined]
            assert np.array_equal(found.numpy(), whole[each])
            return found

        variants[name] = run
    timer = Timer(torch.device("cpu"), options.budget, CLOCKS[options.clock])
    found = timer.interleave(variants, options.rounds)
    volume = options.batches * BATCH
    print_table(
        ["reader", "rows/s", "GB/s", "time over ours"],
        [
            [
                name,
                f"{volume / t.seconds:,.0f}",
                f"{volume * size.row_bytes / t.seconds / 1e9:.3f}",
                str(t),
            ]
            for name, t in found.items()
        ],
    )


def main() -> None:
    """Measure as many rows as ImageNet has, tiny, and fewer of real size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_281_167, help="rows of the large set")
    parser.add_argument("--files", type=int, default=20_000, help="rows that are .npy files too")
    parser.add_argument("--batches", type=int, default=20, help="batches of 256 in a measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a table")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--folder", type=Path, help="where to write 5 GB; default: temporary")
    options = parser.parse_args()
    torch.set_num_threads(1)
    normalisation = Normalisation.uniform(4, 1.0)
    sizes = (
        Size("tiny latents (8, 4, 4)", options.rows, 4),
        Size("latents of real size (8, 32, 32)", min(60_000, options.rows), 32),
    )
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            written = write(size, Path(name), min(options.files, size.rows))
            measure_opening(size, written[0], normalisation)
            measure_memory(size, written[0], normalisation)
            measure_batches(size, written, options)


if __name__ == "__main__":
    main()
