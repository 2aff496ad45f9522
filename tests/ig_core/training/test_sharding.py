"""FSDP2 over gloo on two processes: the same training, the same files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from ig_core.checkpoints.own import load_checkpoint, pack_checkpoint, save_checkpoint
from ig_core.checkpoints.sharded import load_sharded
from ig_core.config import LossConfig, OptimConfig
from ig_core.training.batches import WorkerShare
from ig_core.training.loop import train
from ig_core.training.parts import is_sharded, local
from ig_core.training.sharding import shard
from ig_core.training.state import TrainState
from tests.equipment.processes import run_processes
from tests.ig_core.training.test_loop import (
    LOSS,
    MODEL,
    OPTIM,
    TRAIN,
    RandomImages,
    assert_close,
    assert_same,
    config,
    leave,
    new_state,
    process_group,
    run,
)

pytestmark = pytest.mark.long

UNEVEN = config(batch_size=5, checkpoint_every=6)
CLIPPED = replace(OPTIM, grad_clip=0.05, precision="bf16")


def write(state, folder, rank):
    """All give their parts, one writes."""
    packed = pack_checkpoint(state, keep=rank == 0)
    if rank == 0:
        packed.write(folder)
    else:
        assert not any(packed.tensors.values())


def train_sharded(rank, world_size, folder):
    """One process: several trainings whose state is in parts."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "group") as share:
        state = new_state()
        shard(state)
        for step in train(state, RandomImages(), LOSS, TRAIN, share):
            if step == 3:
                write(state, folder / "middle", rank)
        write(state, folder / "whole", rank)
        kept = sum(local(p).numel() for p in state.model.parameters())
        assert kept < 0.6 * sum(p.numel() for p in state.model.parameters())

        resumed = load_checkpoint(folder / "middle")
        shard(resumed)
        write(run(resumed, share=share), folder / "resumed", rank)

        in_parts = load_sharded(folder / "middle")
        write(in_parts, folder / "middle-again", rank)
        write(run(in_parts, share=share), folder / "resumed-in-parts", rank)

        untrained = new_state()
        if rank == 0:
            save_checkpoint(untrained, folder / "untrained")
        distributed.barrier()
        write(run(load_sharded(folder / "untrained"), share=share), folder / "from-0", rank)

        from_plain = load_checkpoint(folder / "plain")
        shard(from_plain)
        write(run(from_plain, share=share), folder / "from-plain", rank)

        uneven = new_state()
        uneven.model.activation_checkpointing = True
        shard(uneven)
        write(run(uneven, UNEVEN, share=WorkerShare(rank, world_size, 1)), folder / "uneven", rank)

        clipped = TrainState.new(MODEL, CLIPPED, TRAIN.seed)
        shard(clipped)
        write(run(clipped, share=share), folder / "clipped", rank)
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of `train_sharded`."""
    folder = tmp_path_factory.mktemp("sharded")
    save_checkpoint(run(new_state(), config(steps=3)), folder / "plain")
    run_processes(train_sharded, 2, folder)
    return folder


def test_sharded_training_equals_the_plain_one(folder):
    assert_close(load_checkpoint(folder / "whole"), run(new_state()))


def test_sharded_and_resumed_equals_uninterrupted_bit_for_bit(folder):
    assert_same(load_checkpoint(folder / "resumed"), load_checkpoint(folder / "whole"))


def test_a_state_that_is_read_in_parts_is_that_of_the_files(folder):
    names = [path.name for path in sorted((folder / "middle").iterdir())]
    assert len(names) == 5
    for name in names:
        again = (folder / "middle-again" / name).read_bytes()
        assert again == (folder / "middle" / name).read_bytes(), name
    assert_same(load_checkpoint(folder / "resumed-in-parts"), load_checkpoint(folder / "whole"))


def test_an_untrained_state_is_read_in_parts(folder):
    assert_same(load_checkpoint(folder / "from-0"), load_checkpoint(folder / "whole"))


def refuse(rank, world_size, folder):
    """One process: checkpoints that cannot be read in parts."""
    with process_group(rank, world_size, folder / "group"):
        for optim, message in (
            (OptimConfig(optimizer="muon"), "whole matrices"),
            (OptimConfig(precision="fp16"), "overflow"),
        ):
            state = TrainState.new(MODEL, optim, TRAIN.seed)
            save_checkpoint(state, folder / message)
            with pytest.raises(ValueError, match=message):
                load_sharded(folder / message)
        for name in ("model", "ema", "optimizer", "history"):
            save_checkpoint(run(new_state(), config(steps=1)), folder / name)
            (folder / name / f"{name}.safetensors").write_bytes(b"garbage")
            with pytest.raises(ValueError, match=rf"{name}\.safetensors cannot be read"):
                load_sharded(folder / name)
        save_checkpoint(run(new_state(replace(MODEL, depth=4)), config(steps=1)), folder / "deeper")
        (folder / "deeper" / "ema.safetensors").write_bytes(
            (folder / "model" / "ema.safetensors").read_bytes()
        )
        with pytest.raises(ValueError, match=r"ema\.safetensors does not fit the model"):
            load_sharded(folder / "deeper")
    leave()


def test_what_cannot_be_read_in_parts_is_refused(tmp_path):
    run_processes(refuse, 1, tmp_path)


def memory(name):
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def load_a_part(rank, world_size, folder):
    """One process: how much memory reading its part took at most."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "group"):
        load_sharded(folder / "small")  # what is imported on the way
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        state = load_sharded(folder / "large")
        (folder / f"peak-{rank}").write_text(str(memory("VmHWM") - before))
        assert is_sharded(state.model)
    leave()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_worker_ever_holds_the_whole_of_a_checkpoint(tmp_path):
    save_checkpoint(new_state(), tmp_path / "small")
    large = new_state(replace(MODEL, depth=6, width=512, num_heads=8))
    for parameter in large.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    large.optimizers[0].step()
    large.step = 1
    save_checkpoint(large, tmp_path / "large")
    size = sum(path.stat().st_size for path in (tmp_path / "large").iterdir())
    assert size > 300e6
    run_processes(load_a_part, 2, tmp_path)
    for rank in range(2):
        # Half of it, and one tensor.
        assert int((tmp_path / f"peak-{rank}").read_text()) < 0.65 * size


def test_checkpoints_load_into_either_mode(folder):
    plain = run(new_state())
    assert_close(load_checkpoint(folder / "from-plain"), plain)
    assert_close(run(load_checkpoint(folder / "middle")), plain)


def test_files_do_not_tell_that_the_state_was_sharded(folder):
    plain = run(load_checkpoint(folder / "plain"))
    save_checkpoint(plain, folder / "again")
    names = [path.name for path in sorted((folder / "again").iterdir())]
    assert names == [path.name for path in sorted((folder / "from-plain").iterdir())]
    for path in map((folder / "again").joinpath, names):
        assert path.stat().st_size == (folder / "from-plain" / path.name).stat().st_size


def test_workers_with_fewer_micro_batches_do_not_keep_the_others_waiting(folder):
    assert_close(load_checkpoint(folder / "uneven"), run(new_state(), UNEVEN))


def test_the_norm_that_is_clipped_is_that_of_the_whole_gradient(folder):
    plain = run(TrainState.new(MODEL, CLIPPED, TRAIN.seed))
    history = load_checkpoint(folder / "clipped").history
    assert bool((history[:, 3] > 0.1).all())
    # bf16 rounds what another order of sums changes.
    torch.testing.assert_close(history, plain.history, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"optimizer": "muon"}, "whole matrices"), ({"precision": "fp16"}, "overflow")],
)
def test_what_cannot_be_right_in_parts_is_refused(changes, message):
    state = TrainState.new(MODEL, OptimConfig(**changes), TRAIN.seed)
    with pytest.raises(ValueError, match=message):
        shard(state)
    assert not is_sharded(state.model)


def guide_the_target(rank, world_size, folder):
    """One process: the averaged weights are asked for, but are in parts."""
    with process_group(rank, world_size, folder / "group"):
        state = new_state()
        shard(state)
        with pytest.raises(ValueError, match="target_guidance must be 0"):
            next(train(state, RandomImages(), LossConfig(target_guidance=0.5), TRAIN))
    leave()


def test_guidance_of_the_target_is_refused(tmp_path):
    run_processes(guide_the_target, 1, tmp_path)


def train_compiled(rank, world_size, folder):
    """One process: compiled blocks, sharded."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "group") as share:
        state = new_state()
        state.model.compile_blocks()
        shard(state)
        write(run(state, share=share), folder / "compiled", rank)
    leave()


@pytest.mark.slow
def test_compiled_blocks_can_be_sharded(tmp_path):
    run_processes(train_compiled, 2, tmp_path)
    assert_close(load_checkpoint(tmp_path / "compiled"), run(new_state()))
