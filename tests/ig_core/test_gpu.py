"""What needs a CUDA device: `pytest -m gpu` on a machine that has one, or several."""

import os

import pytest
import torch
from torch import distributed

from ig_core.checkpoints.own import load_checkpoint, pack_checkpoint, save_checkpoint
from ig_core.config import OptimConfig
from ig_core.precision import set_tf32
from ig_core.training.batches import BatchSource, WorkerShare
from ig_core.training.process_group import join_group, serve_store
from ig_core.training.sharding import shard
from ig_core.training.state import TrainState
from tests.ig_core.training.test_loop import LOSS, MODEL, TRAIN, RandomImages, config, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE, BACKEND = "cuda", "nccl"
BF16 = OptimConfig(lr=1e-3, warmup_steps=4, ema_decay=0.9, precision="bf16")
FLOAT32 = OptimConfig(lr=1e-3, warmup_steps=4, ema_decay=0.9)


@pytest.fixture(autouse=True)
def _exact_products():
    """Products of float32 as they are; each test says if it wants TF32."""
    set_tf32(enabled=False)


def started(optim, device=DEVICE):
    return TrainState.new(MODEL, optim, TRAIN.seed, device)


def assert_near(a, b, *, rtol, weights):
    """Equal losses to `rtol`; averaged weights to a part of the learning rate."""
    torch.testing.assert_close(a.history, b.history, rtol=rtol, atol=rtol)
    for name, weight in a.ema.items():
        torch.testing.assert_close(
            weight.cpu(), b.ema[name].cpu(), rtol=0, atol=weights * a.optim.lr
        )


def test_a_batch_is_the_same_as_on_the_cpu():
    source = BatchSource(RandomImages(), LOSS, TRAIN.seed, MODEL.null_label)
    ours = source.batch(torch.arange(24), torch.device(DEVICE))
    theirs = source.batch(torch.arange(24), torch.device("cpu"))
    for here, there in zip(ours, theirs, strict=True):
        assert here.device.type == DEVICE
        torch.testing.assert_close(here.cpu(), there, rtol=1e-5, atol=1e-5)


def test_training_is_that_on_the_cpu():
    assert_near(run(started(FLOAT32)), run(started(FLOAT32, "cpu")), rtol=1e-3, weights=0.2)


@pytest.mark.parametrize("steps", [1, 6])
def test_compiled_blocks_in_bf16_train_as_eager_ones(steps):
    eager, compiled = started(BF16), started(BF16)
    compiled.model.compile_blocks()
    for state in (eager, compiled):
        run(state, config(steps=steps, checkpoint_every=steps))
    assert_near(compiled, eager, rtol=3e-2, weights=0.5)


def test_a_checkpoint_of_a_gpu_is_continued_there_and_on_the_cpu(tmp_path):
    save_checkpoint(run(started(FLOAT32), config(steps=3)), tmp_path)
    whole = run(started(FLOAT32))
    for device in (DEVICE, "cpu"):
        assert_near(run(load_checkpoint(tmp_path, device)), whole, rtol=1e-3, weights=0.2)


def test_tf32_rounds_products_only_where_it_is_on():
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    exact = a.double() @ b.double()
    errors = []
    for enabled in (False, True):
        set_tf32(enabled=enabled)
        errors.append(float((a @ b - exact).abs().max()))
    assert errors[0] < 1e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors[1] > 3 * errors[0]


def train_on_gpus(rank, world_size, folder, address, *, sharded):
    """One process for each GPU."""
    torch.set_num_threads(1)
    if rank == 0:
        host, port = serve_store("127.0.0.1", world_size)
        (folder / "address.tmp").write_text(f"{host} {port}")
        (folder / "address.tmp").rename(address)
    while not address.exists():
        pass
    host, port = address.read_text().split()
    device = torch.device(DEVICE, rank) if DEVICE == "cuda" else torch.device(DEVICE)
    if DEVICE == "cuda":
        torch.cuda.set_device(device)
        set_tf32(enabled=False)
    join_group((host, int(port)), rank, world_size, BACKEND, 120)
    total = torch.ones(1, device=device)
    distributed.all_reduce(total)
    assert int(total) == world_size
    state = started(FLOAT32, "cpu" if sharded else device)
    if sharded:
        shard(state, device)
    run(state, share=WorkerShare(rank, world_size))
    packed = pack_checkpoint(state, keep=rank == 0)
    if rank == 0:
        packed.write(folder / "state")
    distributed.barrier()
    os._exit(0)


def _spawned(rank, world_size, folder, sharded):
    train_on_gpus(rank, world_size, folder, folder / "address", sharded=sharded)


def assert_trains_as_one(world_size, folder, *, sharded):
    torch.multiprocessing.spawn(_spawned, (world_size, folder, sharded), nprocs=world_size)
    state = load_checkpoint(folder / "state")
    assert_near(state, run(started(FLOAT32)), rtol=1e-3, weights=0.2)


@pytest.mark.parametrize("sharded", [False, True])
def test_one_worker_of_a_group_trains_as_no_group(tmp_path, sharded):
    assert_trains_as_one(1, tmp_path, sharded=sharded)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_worker_on_each_gpu_trains_as_one(tmp_path, sharded):
    assert_trains_as_one(min(torch.cuda.device_count(), 6), tmp_path, sharded=sharded)
