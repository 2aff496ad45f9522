from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch

from ig_core.config import LossConfig
from ig_core.data import latents as module
from ig_core.data.latents import LatentDataset
from ig_core.data.normalisation import ChannelSums, Normalisation
from ig_core.data.shards import Shard, ShardWriter
from ig_core.training.batches import BatchSource, DrawnDataset

PLAIN = Normalisation.uniform(2, 1.0)


def write(folder, counts=(5, 1, 6), depth=2, mirrored=False, dtype=np.float32, side=3):
    """Shards of random rows; returns paths, rows (N, D, H, W), mirrored rows and labels."""
    generator = np.random.default_rng(0)
    paths, rows, mirrors, labels = [], [], [], []
    for number, count in enumerate(counts):
        shape = (count, depth, side, side)
        if dtype == np.uint8:
            latent, mirror = (generator.integers(0, 256, shape, dtype) for _ in range(2))
        else:
            latent, mirror = (generator.random(shape, dtype) for _ in range(2))
        label = generator.integers(0, 9, count)
        writer = ShardWriter()
        for part in np.array_split(np.arange(count), 2):  # a batch at a time, as encoders do
            if len(part):
                writer.add(part, label[part], latent[part], mirror[part] if mirrored else None)
        paths.append(folder / f"{number}.arrow")
        writer.write(paths[-1])
        for column, values in ((rows, latent), (mirrors, mirror), (labels, label)):
            column.append(values)
    return paths, *(torch.from_numpy(np.concatenate(x)) for x in (rows, mirrors, labels))


def drawn(dataset, index, positions, seed=0):
    rows, labels = dataset.rows(torch.as_tensor(index), torch.as_tensor(positions), seed)
    return dataset.draw(rows, torch.as_tensor(positions), seed), labels


# Shards


def test_rows_lie_in_the_file_and_are_not_copied(tmp_path):
    paths, rows, _, labels = write(tmp_path, (5,))
    shard = Shard(paths[0])
    assert np.array_equal(shard.latent, rows.numpy())
    assert shard.label.tolist() == labels.tolist()
    assert shard.index.tolist() == list(range(5))
    begin = shard.latent.ctypes.data - np.frombuffer(shard.map, np.uint8).ctypes.data
    assert 0 < begin < len(shard.map)
    with paths[0].open("rb") as file:
        file.seek(begin)
        assert file.read(rows[0].nbytes) == rows[0].numpy().tobytes()


def test_other_programs_read_them_with_arrow_alone(tmp_path):
    paths, rows, mirrors, _ = write(tmp_path, (4,), mirrored=True)
    with pa.memory_map(str(paths[0])) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.column_names == ["index", "label", "latent", "mirror"]
        assert table["latent"][3].as_py() == rows[3].numpy().tobytes()
        assert table["mirror"][3].as_py() == mirrors[3].numpy().tobytes()


@pytest.mark.parametrize("content", [b"", b"not Arrow at all", b"ARROW1\0\0" + bytes(100)])
def test_other_files_are_no_shards(tmp_path, content):
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.arrow is not a shard of latents"):
        Shard(tmp_path / "x.arrow")


def test_a_shard_that_is_cut_short_is_none(tmp_path):
    paths, *_ = write(tmp_path, (5,))
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a shard of latents"):
        Shard(paths[0])


def test_an_empty_shard_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        ShardWriter().write(tmp_path / "x.arrow")


def test_rows_wait_on_disk_and_leave_nothing_there(tmp_path):
    tracemalloc.start()
    writer, piece = ShardWriter(tmp_path), np.ones((16, 8, 16, 16), np.float32)
    for start in range(0, 1024, 16):
        writer.add(range(start, start + 16), [0] * 16, piece, piece[..., ::-1])
    writer.write(tmp_path / "x.arrow")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * piece.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]
    assert len(Shard(tmp_path / "x.arrow")) == 1024


def test_rows_of_one_shard_are_alike():
    writer, rows = ShardWriter(), np.zeros((2, 4, 3, 3), np.float32)
    writer.add([0, 1], [0, 0], rows)
    for latent, mirror in ((rows[:, :2], None), (rows.astype(np.uint8), None), (rows, rows)):
        with pytest.raises(ValueError, match="must be alike"):
            writer.add([2, 3], [0, 0], latent, mirror)


# The data set


def test_any_rows_in_any_order_from_all_shards(tmp_path):
    paths, rows, _, labels = write(tmp_path)
    dataset = LatentDataset(paths, PLAIN)
    assert isinstance(dataset, DrawnDataset)
    assert len(dataset) == 12
    index = torch.tensor([11, 0, 5, 4, 6, 0, 10])
    x, y = drawn(dataset, index, range(7))
    assert torch.equal(x, rows[index])
    assert torch.equal(y, labels[index])
    assert x.dtype == torch.float32


def test_moments_are_sampled_by_address(tmp_path):
    paths, rows, *_ = write(tmp_path, depth=4)
    scaled = Normalisation((1.0, -2.0), (0.5, 3.0))
    dataset = LatentDataset(paths, scaled)
    index, positions = torch.tensor([3, 3, 9]), torch.tensor([7, 8, 9])
    x, _ = drawn(dataset, index, positions)
    assert not torch.equal(x[0], x[1])
    assert torch.equal(drawn(dataset, index[1:], positions[1:])[0], x[1:])
    assert not torch.equal(drawn(dataset, index, positions, seed=1)[0], x)
    many = drawn(dataset, torch.full((4000,), 3), torch.arange(4000))[0].double()
    mean, std = (part[0] for part in rows[3:4].double().chunk(2, dim=1))
    factor, shift = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (scaled.factor, scaled.shift)
    )
    assert ((many.mean(dim=0) - (mean - shift) * factor).abs() / (std * factor)).max() < 0.09
    torch.testing.assert_close(many.std(dim=0), std * factor, rtol=0.06, atol=0)


def test_flips_are_drawn_by_address_and_take_the_mirrored_latent(tmp_path):
    paths, rows, mirrors, _ = write(tmp_path, mirrored=True)
    dataset = LatentDataset(paths, PLAIN, flip=True)
    index, positions = torch.arange(200) % 12, torch.arange(200)
    x, _ = drawn(dataset, index, positions)
    turned = torch.tensor([torch.equal(x[i], mirrors[index[i]]) for i in range(200)])
    expected = torch.where(turned[:, None, None, None], mirrors[index], rows[index])
    assert torch.equal(x, expected)
    assert 70 < turned.sum() < 130
    assert torch.equal(drawn(dataset, index[50:], positions[50:])[0], x[50:])
    assert torch.equal(drawn(LatentDataset(paths, PLAIN), index, positions)[0], rows[index])


def test_pixels_are_scaled_and_mirrored_when_they_are_read(tmp_path):
    paths, rows, *_ = write(tmp_path, dtype=np.uint8)
    dataset = LatentDataset(paths, PLAIN, flip=True)
    x, _ = drawn(dataset, torch.arange(12), torch.arange(12))
    pixels = rows.float() / 127.5 - 1
    turned = [torch.equal(x[i], pixels[i].flip(-1)) for i in range(12)]
    assert all(t or torch.equal(x[i], pixels[i]) for i, t in enumerate(turned))
    assert 0 < sum(turned) < 12


def test_what_does_not_fit_together_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    paths, *_ = write(tmp_path)
    others, *_ = write(tmp_path / "a", (2,), depth=4)
    with pytest.raises(ValueError, match="holds float32"):
        LatentDataset([*paths, *others], PLAIN)
    with pytest.raises(ValueError, match="flip must be off"):
        LatentDataset(paths, PLAIN, flip=True)
    with pytest.raises(ValueError, match="must hold 3 or 6 channels, but holds 2"):
        LatentDataset(paths, Normalisation.uniform(3, 1.0))


def test_pages_that_are_given_back_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAPPED_BYTES_LIMIT", -(2**40))  # after every batch
    monkeypatch.setattr(module, "READAHEAD_BYTES", 1)
    paths, rows, mirrors, _ = write(tmp_path, mirrored=True, side=64)
    dataset = LatentDataset(paths, PLAIN, flip=True)
    for first in (0, 6, 0):
        index = torch.arange(first, first + 6)
        x, _ = drawn(dataset, index, index)
        for row, here in zip(x, index.tolist(), strict=True):
            assert torch.equal(row, rows[here]) or torch.equal(row, mirrors[here])


# Training


def test_batches_do_not_depend_on_who_asks(tmp_path):
    paths, *_ = write(tmp_path, depth=4, mirrored=True)
    dataset = LatentDataset(paths, PLAIN, flip=True)
    source = BatchSource(dataset, LossConfig(), 3, null_label=9)
    device = torch.device("cpu")
    whole = source.batch(torch.arange(8, 24), device)
    parts = [source.batch(p, device) for p in torch.arange(8, 24).split(5)]
    for name, value in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
    again = BatchSource(LatentDataset(paths, PLAIN, flip=True), LossConfig(), 3, null_label=9)
    assert torch.equal(again.batch(torch.arange(8, 24), device).x, whole.x)


def test_posterior_noise_is_not_that_of_the_loss(tmp_path):
    writer = ShardWriter()
    rows = np.concatenate([np.zeros((4, 2, 8, 8)), np.ones((4, 2, 8, 8))], axis=1)
    writer.add(range(4), [0] * 4, rows.astype(np.float32))
    writer.write(tmp_path / "x.arrow")
    source = BatchSource(LatentDataset([tmp_path / "x.arrow"], PLAIN), LossConfig(), 0, 9)
    batch = source.batch(torch.arange(4), torch.device("cpu"))
    both = torch.stack([batch.x.flatten(), batch.noise.flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.15


# Statistics and normalisation


def test_sums_of_parts_are_sums_of_the_whole():
    rows = torch.randn(20, 6, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    whole = ChannelSums.of(rows, 6)
    merged = ChannelSums.of(rows[:7], 6) + ChannelSums.of(rows[7:], 6)
    for sums in (whole, merged):
        torch.testing.assert_close(sums.mean, rows.double().mean(dim=(0, 2, 3)))
        torch.testing.assert_close(sums.std, rows.double().std(dim=(0, 2, 3), correction=0))


def test_sums_of_moments_are_those_of_what_is_drawn():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(50, 2, 8, 8, generator=generator), torch.rand(50, 2, 8, 8)
    sums = ChannelSums.of(torch.cat([mean, std], dim=1), 2)
    samples = mean + std * torch.randn(40, *mean.shape, generator=generator)
    torch.testing.assert_close(sums.std.float(), samples.std(dim=(0, 1, 3, 4)), rtol=0.01, atol=0)


def test_normalisation_is_undone_for_the_decoder():
    normalisation = Normalisation((1.0, -2.0), (0.5, 3.0))
    z = torch.randn(3, 2, 4, 4)
    assert torch.equal(
        normalisation.apply(torch.ones(1, 2, 1, 1)).flatten(), torch.tensor([0.0, 9.0])
    )
    torch.testing.assert_close(normalisation.invert(normalisation.apply(z)), z)
