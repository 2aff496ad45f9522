import math
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch import distributed

from ig_core.checkpoints.own import load_checkpoint, save_checkpoint
from ig_core.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from ig_core.loss import ig_loss
from ig_core.training.batches import BatchSource, DataOrder, WorkerShare
from ig_core.training.loop import NonFiniteLossError, train
from ig_core.training.state import HISTORY_COLUMNS, TrainState
from tests.equipment.processes import run_processes

pytestmark = pytest.mark.long

MODEL = ModelConfig(
    depth=3,
    width=16,
    num_heads=2,
    patch_size=2,
    input_size=4,
    in_channels=2,
    num_classes=4,
    aux_layer=2,
)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=4, ema_decay=0.9)
LOSS = LossConfig(aux_weight=0.5, label_dropout=0.2)
TRAIN = TrainConfig(steps=6, batch_size=6, checkpoint_every=3, seed=5)
TEN_STEPS = TrainConfig(steps=10, batch_size=6, checkpoint_every=10, seed=5)


class RandomImages:
    """24 images of noise; rows in `poisoned` are NaN."""

    def __init__(self, poisoned=()):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(24, 2, 4, 4, generator=generator)
        self.x[list(poisoned)] = math.nan
        self.y = torch.arange(24) % 4

    def __len__(self):
        return len(self.y)

    def batch(self, index):
        return self.x[index], self.y[index]


def row_at(position):
    return int(DataOrder(24, TRAIN.seed).rows(torch.tensor([position])))


def config(**changes):
    return TrainConfig(
        **({"steps": 6, "batch_size": 6, "checkpoint_every": 3, "seed": 5} | changes)
    )


def run(state, settings=TRAIN, **kwargs):
    for _ in train(state, RandomImages(), LOSS, settings, **kwargs):
        pass
    return state


def new_state(model=MODEL):
    return TrainState.new(model, OPTIM, TRAIN.seed)


def assert_same(a, b):
    """Equal bit for bit: weights, moving average, optimizer, step and history."""
    assert a.step == b.step
    assert torch.equal(a.history, b.history)
    for name, weight in a.model.state_dict().items():
        assert torch.equal(weight, b.model.state_dict()[name]), name
    for name, weight in a.ema.items():
        assert torch.equal(weight, b.ema[name]), name
    ours, theirs = (state.optimizers[0].state_dict()["state"] for state in (a, b))
    assert ours.keys() == theirs.keys()
    for number, entry in ours.items():
        for moment, value in entry.items():
            assert torch.equal(value, theirs[number][moment]), (number, moment)


def assert_same_everywhere(a, b):
    """Bit for bit in every optimizer, and in the loss scale of fp16."""
    assert_same(a, b)
    assert a.scaler.state_dict() == b.scaler.state_dict()
    for ours, theirs in zip(a.optimizers, b.optimizers, strict=True):
        mine, other = ours.state_dict()["state"], theirs.state_dict()["state"]
        assert mine.keys() == other.keys()
        for number, entry in mine.items():
            assert all(torch.equal(v, other[number][k]) for k, v in entry.items())


def assert_close(a, b):
    """Equal but for float32 sums in another order."""
    torch.testing.assert_close(a.history, b.history, rtol=1e-5, atol=1e-6)
    for name, weight in a.ema.items():
        # Adam divides a gradient by its own size, so rounding of a tiny one moves a weight by up
        # to a few per cent of the rate.
        torch.testing.assert_close(weight, b.ema[name], rtol=0, atol=0.1 * OPTIM.lr)


@contextmanager
def process_group(rank, world_size, address):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{address}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    yield WorkerShare(rank, world_size)
    distributed.destroy_process_group()


def leave():
    """End a worker process: gloo's threads may still be ending, and teardown can abort then."""
    os._exit(0)


def train_then_meet_nan(rank, world_size, folder):
    """One process: ten steps, then a training whose second step is NaN for the last worker."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "group") as share:
        save_checkpoint(run(new_state(), TEN_STEPS, share=share), folder / f"rank{rank}")
        poisoned = RandomImages([row_at(2 * TEN_STEPS.batch_size - 1)])
        with pytest.raises(NonFiniteLossError) as caught:
            list(train(new_state(), poisoned, LOSS, TEN_STEPS, share))
        (folder / f"error{rank}").write_text(str(caught.value.step))
    leave()


def train_then_resume(rank, world_size, folder):
    """One process: train; then, in a new group, continue from the first checkpoint."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "first-group") as share:
        state = new_state()
        for step in train(state, RandomImages(), LOSS, TRAIN, share):
            if step == 3:
                save_checkpoint(state, folder / f"middle{rank}")
        save_checkpoint(state, folder / f"whole{rank}")
    with process_group(rank, world_size, folder / "second-group") as share:
        resumed = run(load_checkpoint(folder / f"middle{rank}"), share=share)
        save_checkpoint(resumed, folder / f"resumed{rank}")
    leave()


def test_new_state_is_a_function_of_the_seed():
    torch.manual_seed(1)
    first = TrainState.new(MODEL, OPTIM, 5)
    torch.manual_seed(2)
    assert_same(first, TrainState.new(MODEL, OPTIM, 5))
    other = TrainState.new(MODEL, OPTIM, 6)
    assert not torch.equal(other.ema["x_embedder.proj.weight"], first.ema["x_embedder.proj.weight"])


def test_new_average_starts_as_a_copy_of_the_weights():
    state = new_state()
    for name, parameter in state.model.named_parameters():
        assert torch.equal(state.ema[name], parameter)
        assert state.ema[name].data_ptr() != parameter.data_ptr()
        assert not state.ema[name].requires_grad


def test_one_step_is_loss_clipping_adamw_and_average():
    state, reference = new_state(), new_state()
    settings = config(steps=1)
    run(state, settings)
    source = BatchSource(RandomImages(), LOSS, settings.seed, MODEL.null_label)
    terms = ig_loss(reference.model, *source.batch(torch.arange(6), torch.device("cpu")), LOSS)
    terms.total.backward()
    parameters = list(reference.model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(parameters, OPTIM.grad_clip)
    start = {name: p.detach().clone() for name, p in reference.model.named_parameters()}
    first_rate = OPTIM.lr / OPTIM.warmup_steps
    torch.optim.AdamW(parameters, lr=first_rate, betas=OPTIM.betas, weight_decay=0.0).step()
    # A fused optimizer against one tensor at a time; the step itself is 2.5e-4.
    for name, parameter in reference.model.named_parameters():
        torch.testing.assert_close(state.model.get_parameter(name), parameter, rtol=0, atol=1e-8)
        averaged = 0.9 * start[name] + 0.1 * parameter
        torch.testing.assert_close(state.ema[name], averaged, rtol=1e-6, atol=1e-8)
    row = torch.stack([terms.total, terms.final, terms.aux, norm]).detach()
    torch.testing.assert_close(state.history, row[None], rtol=1e-6, atol=0)


def test_gradient_is_clipped_to_the_configured_norm_and_reported_unclipped():
    state = TrainState.new(MODEL, OptimConfig(grad_clip=0.01, betas=(0.75, 0.999)), TRAIN.seed)
    run(state, config(steps=1))
    moments = [entry["exp_avg"].flatten() for entry in state.optimizers[0].state.values()]
    # The first moment after one step is a quarter of the clipped gradient; the clipping divides
    # by the norm plus 1e-6.
    assert float(torch.cat(moments).norm()) == pytest.approx(0.25 * 0.01, rel=1e-5)
    assert float(state.history[0, 3]) > 0.1


def test_training_lowers_both_losses():
    history = run(new_state(), config(steps=60, checkpoint_every=60)).history
    early, late = history[:10].mean(dim=0), history[-10:].mean(dim=0)
    assert late[1] < early[1]
    assert late[2] < early[2]


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("aux_layer", [None, 2])
def test_resumed_training_equals_uninterrupted_bit_for_bit(tmp_path, micro_batch, aux_layer):
    share = WorkerShare(micro_batch=micro_batch)
    model = ModelConfig(**(vars(MODEL) | {"aux_layer": aux_layer}))
    whole = new_state(model)
    for step in train(whole, RandomImages(), LOSS, TRAIN, share):
        if step == 3:
            save_checkpoint(whole, tmp_path)
    resumed = load_checkpoint(tmp_path)
    assert resumed.step == 3
    assert_same(run(resumed, share=share), whole)


def test_longer_training_continues_a_shorter_one_bit_for_bit(tmp_path):
    save_checkpoint(run(new_state(), config(steps=4)), tmp_path)
    longer = config(steps=7)
    assert_same(run(load_checkpoint(tmp_path), longer), run(new_state(), longer))


def test_finished_training_takes_no_further_step(tmp_path):
    state = run(new_state())
    save_checkpoint(state, tmp_path)
    assert list(train(state, RandomImages(), LOSS, TRAIN)) == []
    assert_same(state, load_checkpoint(tmp_path))


def test_global_generator_does_not_matter():
    torch.manual_seed(1)
    first = run(new_state())
    torch.manual_seed(2)
    assert_same(first, run(new_state()))


@pytest.mark.parametrize("seed", [5, 2**63 - 1])
def test_every_valid_seed_trains(seed):
    settings = config(steps=1, seed=seed)
    assert run(TrainState.new(MODEL, OPTIM, seed), settings).step == 1


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6, 100])
def test_accumulated_micro_batches_equal_the_whole_batch(micro_batch):
    assert_close(run(new_state(), share=WorkerShare(micro_batch=micro_batch)), run(new_state()))


def test_two_workers_equal_one_and_agree_on_errors(tmp_path):
    run_processes(train_then_meet_nan, 2, tmp_path)
    first, second = (load_checkpoint(tmp_path / f"rank{rank}") for rank in range(2))
    assert_same(first, second)
    assert_close(first, run(new_state(), TEN_STEPS))
    assert [(tmp_path / f"error{rank}").read_text() for rank in range(2)] == ["2", "2"]


def test_three_resumed_workers_equal_uninterrupted_ones_bit_for_bit(tmp_path):
    run_processes(train_then_resume, 3, tmp_path)
    whole = load_checkpoint(tmp_path / "whole0")
    for name in ("whole1", "whole2", "resumed0", "resumed1", "resumed2"):
        assert_same(load_checkpoint(tmp_path / name), whole)
    assert_close(whole, run(new_state()))


@pytest.mark.parametrize("flush_every", [1, 2, 25])
def test_history_is_complete_at_flushes_and_checkpoints(flush_every):
    state = new_state()
    for step in train(state, RandomImages(), LOSS, TRAIN, flush_every=flush_every):
        assert state.step == step
        if step % flush_every == 0 or step in TRAIN.checkpoint_steps:
            assert state.history.shape == (step, len(HISTORY_COLUMNS))
    assert_same(state, run(new_state()))


def test_every_step_is_yielded_once():
    assert list(train(new_state(), RandomImages(), LOSS, TRAIN)) == [1, 2, 3, 4, 5, 6]


def test_history_columns_are_the_terms_of_the_loss():
    history = run(new_state()).history
    total, final, aux, norm = (history[:, number] for number in range(4))
    assert HISTORY_COLUMNS == ("total", "final", "aux", "grad_norm")
    # Float32 rounding of one sum.
    torch.testing.assert_close(total, final + 0.5 * aux, rtol=1e-6, atol=0)
    assert bool((norm > 0).all())


def test_model_without_auxiliary_head_trains_with_zero_aux_history():
    history = run(new_state(ModelConfig(**(vars(MODEL) | {"aux_layer": None})))).history
    assert not history[:, 2].any()
    assert torch.equal(history[:, 0], history[:, 1])


@pytest.mark.parametrize("poison_step", [1, 2, 3, 4])
def test_nan_is_raised_with_its_step_before_a_checkpoint_step_is_yielded(poison_step):
    poisoned = RandomImages([row_at((poison_step - 1) * 6)])
    seen = []
    with pytest.raises(NonFiniteLossError, match=f"step {poison_step} is not finite") as caught:
        seen.extend(train(new_state(), poisoned, LOSS, TRAIN))
    assert caught.value.step == poison_step
    checkpoint = 3 * -(-poison_step // 3)
    assert seen == [] or checkpoint not in seen


def test_infinite_loss_is_not_finite():
    images = RandomImages()
    images.x *= 1e30
    with pytest.raises(NonFiniteLossError, match="step 1 is not finite"):
        list(train(new_state(), images, LOSS, config(steps=1)))


def test_step_of_a_nan_after_resuming_counts_from_the_start(tmp_path):
    save_checkpoint(run(new_state(), config(steps=3)), tmp_path)
    with pytest.raises(NonFiniteLossError) as caught:
        list(train(load_checkpoint(tmp_path), RandomImages([row_at(4 * 6)]), LOSS, TRAIN))
    assert caught.value.step == 5


def test_more_workers_than_images_are_an_error():
    with pytest.raises(
        ValueError, match=r"batch_size must be at least the number of workers \(7\).* got 6"
    ):
        next(train(new_state(), RandomImages(), LOSS, TRAIN, WorkerShare(0, 7)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("micro_batch", [None, 1, 4])
def test_workers_share_every_position_of_the_batch_in_order(world_size, micro_batch):
    shares = [WorkerShare(rank, world_size, micro_batch) for rank in range(world_size)]
    parts = [share.positions(3, 12) for share in shares]
    assert torch.cat([p for part in parts for p in part]).tolist() == list(range(36, 48))
    assert len({len(part) for part in parts}) == 1
    assert all(len(p) <= (micro_batch or 12) for part in parts for p in part)
    assert all(len(part[0]) for part in parts)
    sizes = [sum(map(len, part)) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_uneven_parts_are_the_first_workers():
    assert [len(WorkerShare(rank, 3).positions(0, 128)[0]) for rank in range(3)] == [43, 43, 42]


def train_unevenly(rank, world_size, folder):
    """One process: images that do not divide, in micro-batches one of which is empty."""
    torch.set_num_threads(1)
    with process_group(rank, world_size, folder / "group") as share:
        for micro_batch in (None, 1):
            each = WorkerShare(share.rank, world_size, micro_batch)
            state = run(new_state(), config(batch_size=5, checkpoint_every=6), share=each)
            save_checkpoint(state, folder / f"micro{micro_batch}-{rank}")
    leave()


@pytest.mark.parametrize("world_size", [2, 3])
def test_uneven_parts_weigh_as_many_images_as_they_have(tmp_path, world_size):
    run_processes(train_unevenly, world_size, tmp_path)
    alone = run(new_state(), config(batch_size=5, checkpoint_every=6))
    for name in (f"micro{m}-{rank}" for m in (None, 1) for rank in range(world_size)):
        assert_close(load_checkpoint(tmp_path / name), alone)


def test_a_function_of_the_step_says_when_losses_are_gathered():
    state = new_state()
    steps = train(
        state,
        RandomImages(),
        LOSS,
        config(steps=5, checkpoint_every=5),
        flush_every=lambda step: step in (2, 3),
    )
    seen = [(step, len(state.history)) for step in steps]
    assert seen == [(1, 0), (2, 2), (3, 3), (4, 3), (5, 5)]


@pytest.mark.parametrize("length", [1, 2, 7, 24])
def test_order_visits_each_row_once_an_epoch(length):
    rows = DataOrder(length, 5).rows(torch.arange(4 * length)).view(4, length)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(length).expand(4, length))


def test_order_differs_between_epochs_and_seeds():
    first, second = DataOrder(24, 5).rows(torch.arange(48)).view(2, 24)
    assert not torch.equal(first, second)
    assert not torch.equal(first, DataOrder(24, 6).rows(torch.arange(24)))


def test_order_does_not_depend_on_what_was_asked_before():
    expected = DataOrder(7, 5).rows(torch.arange(70))
    order = DataOrder(7, 5)
    for positions in (torch.arange(60, 70), torch.arange(3), torch.arange(5, 40)):
        assert torch.equal(order.rows(positions), expected[positions])
    shuffled = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order.rows(shuffled), expected[shuffled])


def test_order_is_a_fair_shuffle():
    first = torch.stack([DataOrder(6, seed).rows(torch.tensor([0])) for seed in range(600)])
    counts = first.flatten().bincount(minlength=6)
    # 100 expected; 4.5 standard deviations of a binomial count.
    assert bool(((counts - 100).abs() < 4.5 * math.sqrt(600 * 5 / 36)).all())


@pytest.fixture
def source():
    """Factory of a batch source over the random images."""

    def make(seed=5, **changes):
        loss = LossConfig(**({"label_dropout": 0.2} | changes))
        return BatchSource(RandomImages(), loss, seed, MODEL.null_label)

    return make


@pytest.mark.parametrize("distribution", ["uniform", "lognormal", "logit_normal"])
def test_batch_is_a_function_of_the_positions(source, distribution):
    device = torch.device("cpu")
    whole = source(time_distribution=distribution).batch(torch.arange(60), device)
    parts = source(time_distribution=distribution)
    batches = [parts.batch(chunk, device) for chunk in torch.arange(60).split(7)]
    for ours, theirs in zip(whole, map(torch.cat, zip(*batches, strict=True)), strict=True):
        assert torch.equal(ours, theirs)


def test_batch_holds_the_rows_of_the_order_and_their_labels(source):
    batch = source(label_dropout=0.0).batch(torch.arange(10, 40), torch.device("cpu"))
    rows = DataOrder(24, 5).rows(torch.arange(10, 40))
    assert torch.equal(batch.x, RandomImages().x[rows])
    assert torch.equal(batch.y, RandomImages().y[rows])


def test_a_row_gets_other_noise_and_time_in_every_epoch(source):
    positions = torch.arange(48)
    batch = source().batch(positions, torch.device("cpu"))
    assert len(batch.t.unique()) == 48
    assert len(batch.noise.flatten(1).unique(dim=0)) == 48


def test_labels_are_dropped_to_the_null_class_of_the_model_at_the_given_rate(source):
    positions = torch.arange(20_000)
    y = source(label_dropout=0.1).batch(positions, torch.device("cpu")).y
    assert set(y.tolist()) == {0, 1, 2, 3, 4}
    # Four standard errors of a share of 0.1.
    assert float((y == 4).float().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))


def test_time_noise_and_dropout_are_independent(source):
    batch = source(label_dropout=0.5).batch(torch.arange(20_000), torch.device("cpu"))
    dropped = (batch.y == 4).float()
    columns = torch.stack([batch.t, dropped, *batch.noise.flatten(1).T])
    correlations = torch.corrcoef(columns) - torch.eye(len(columns))
    # 561 pairs of 20,000 values: 5 standard errors bound their maximum.
    assert float(correlations.abs().max()) < 5 / math.sqrt(20_000)


def test_seed_changes_order_time_noise_and_dropout(source):
    positions, device = torch.arange(24), torch.device("cpu")
    for ours, theirs in zip(
        source(seed=5).batch(positions, device),
        source(seed=6).batch(positions, device),
        strict=True,
    ):
        assert not torch.equal(ours, theirs)


VARIANTS = {
    "muon": (OptimConfig(optimizer="muon", lr=2e-3, weight_decay=0.01), LOSS),
    "muon bf16": (OptimConfig(optimizer="muon", precision="bf16"), LOSS),
    "bf16": (OptimConfig(lr=1e-3, precision="bf16"), LOSS),
    "fp16": (OptimConfig(lr=1e-3, precision="fp16"), LOSS),
    "target guidance": (OptimConfig(lr=1e-2, ema_decay=0.5), LossConfig(target_guidance=0.5)),
}
"""What else a training step can be."""


def continued(folder, optim, loss, model=MODEL):
    """Six steps at once, and three steps, a checkpoint, and three more."""
    whole, state = (TrainState.new(model, optim, TRAIN.seed) for _ in range(2))
    list(train(whole, RandomImages(), loss, TRAIN))
    for step in train(state, RandomImages(), loss, TRAIN):
        if step == 3:
            save_checkpoint(state, folder)
            break
    state = load_checkpoint(folder)
    list(train(state, RandomImages(), loss, TRAIN))
    return whole, state


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_step_resumes_bit_for_bit_and_is_none_other(variant, tmp_path):
    optim, loss = VARIANTS[variant]
    whole, state = continued(tmp_path, optim, loss)
    assert_same_everywhere(whole, state)
    plain = TrainState.new(MODEL, replace(optim, precision="float32", optimizer="adamw"), 5)
    list(train(plain, RandomImages(), LOSS, TRAIN))
    assert not torch.equal(plain.history, whole.history)


def test_low_precision_training_follows_float32():
    histories = {}
    for precision in ("float32", "bf16", "fp16"):
        state = TrainState.new(MODEL, OptimConfig(lr=1e-3, precision=precision), TRAIN.seed)
        histories[precision] = run(state, config(steps=20, checkpoint_every=20)).history
        assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    for precision in ("bf16", "fp16"):
        # 8 and 11 bits of mantissa, in the blocks alone.
        torch.testing.assert_close(
            histories[precision][:, :3], histories["float32"][:, :3], rtol=2e-2, atol=1e-2
        )


def test_the_reported_gradient_norm_is_that_of_the_unscaled_loss():
    norms = {}
    for precision in ("float32", "fp16"):
        state = TrainState.new(MODEL, OptimConfig(lr=1e-3, precision=precision), TRAIN.seed)
        norms[precision] = run(state, config(steps=3)).history[:, 3]
    torch.testing.assert_close(norms["fp16"], norms["float32"], rtol=2e-2, atol=0)


def test_fp16_skips_a_step_that_overflows_and_halves_the_scale():
    state = TrainState.new(MODEL, OptimConfig(lr=1e-3, precision="fp16"), TRAIN.seed)
    run(state, config(steps=2, checkpoint_every=2))
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**40})
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    run(state, config(steps=3))
    assert all(torch.equal(before[name], p) for name, p in state.model.named_parameters())
    assert state.scaler.get_scale() == 2.0**39
    assert state.history[2, :3].isfinite().all()
    assert state.history[2, 3].isnan()


def test_fp16_that_overflows_at_any_scale_is_an_error():
    state = TrainState.new(MODEL, OptimConfig(lr=1e-3, precision="fp16"), TRAIN.seed)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**-11})
    state.model.blocks[1].mlp.fc1.weight.register_hook(lambda g: g.fill_(math.inf))
    with pytest.raises(NonFiniteLossError) as caught:
        run(state, config(steps=3))
    assert caught.value.step == 1


def test_nan_is_an_error_in_fp16_too():
    state = TrainState.new(MODEL, OptimConfig(lr=1e-3, precision="fp16"), TRAIN.seed)
    with pytest.raises(NonFiniteLossError) as caught:
        list(train(state, RandomImages([row_at(8)]), LOSS, TRAIN))
    assert caught.value.step == 2


def test_target_guidance_reads_the_moving_average():
    optim = OptimConfig(lr=1e-2, ema_decay=0.5)
    loss = LossConfig(target_guidance=0.5)
    state = TrainState.new(MODEL, optim, TRAIN.seed)
    list(train(state, RandomImages(), loss, config(steps=3)))
    source = BatchSource(RandomImages(), loss, TRAIN.seed, MODEL.num_classes)
    batch = source.batch(torch.arange(18, 24), torch.device("cpu"))
    averaged = TrainState.new(MODEL, optim, TRAIN.seed).model
    averaged.load_state_dict(state.ema, strict=False)
    expected = ig_loss(state.model, *batch, loss, averaged)
    list(train(state, RandomImages(), loss, config(steps=4)))
    assert float(state.history[3, 1]) == pytest.approx(float(expected.final.detach()), rel=1e-6)
    assert float(expected.final.detach()) != pytest.approx(
        float(ig_loss(state.model, *batch, LossConfig()).final.detach()), rel=1e-3
    )


def test_activation_checkpointing_trains_the_same_bits():
    plain, recomputed = new_state(), new_state()
    recomputed.model.activation_checkpointing = True
    assert_same(run(plain), run(recomputed))


def test_warm_up_reaches_every_optimizer():
    rates = []
    optim = OptimConfig(optimizer="muon", lr=1e-2, warmup_steps=4)
    state = TrainState.new(MODEL, optim, TRAIN.seed)
    for _ in train(state, RandomImages(), LOSS, config(steps=5)):
        groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
        rates.append({round(g["lr"] / g.get("lr_factor", 1.0), 9) for g in groups})
    assert rates == [{0.0025}, {0.005}, {0.0075}, {0.01}, {0.01}]


def test_muons_momentum_is_the_configured_one():
    ends = []
    for momentum in (0.95, 0.5):
        optim = OptimConfig(optimizer="muon", momentum=momentum)
        state = TrainState.new(MODEL, optim, TRAIN.seed)
        ends.append(run(state, config(steps=3)).model.blocks[0].attn.qkv.weight)
    assert not torch.equal(*ends)


def test_the_loss_scale_grows_on_after_a_checkpoint(tmp_path):
    """Steps since the last overflow are part of the state."""
    optim = OptimConfig(lr=1e-3, precision="fp16")
    whole, state = (TrainState.new(MODEL, optim, TRAIN.seed) for _ in range(2))
    for each in (whole, state):
        each.scaler.set_growth_interval(4)
    run(whole)
    for step in train(state, RandomImages(), LOSS, TRAIN):
        if step == 3:
            save_checkpoint(state, tmp_path)
            break
    resumed = run(load_checkpoint(tmp_path))
    assert whole.scaler.get_scale() == 2 * 2.0**16
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
