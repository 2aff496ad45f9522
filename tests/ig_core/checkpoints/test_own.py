import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ig_core.checkpoints.own import load_checkpoint, load_ema, load_history, save_checkpoint
from ig_core.config import LossConfig, OptimConfig, TrainConfig
from ig_core.images.sets import ImageDataset, ImageSet
from ig_core.training.loop import train
from ig_core.training.state import TrainState

FILES = [
    "state.json",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "history.safetensors",
]
OPTIM = OptimConfig(lr=3e-3, betas=(0.8, 0.95), weight_decay=0.02, warmup_steps=3, ema_decay=0.7)


def trained(config):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 2, 4, 4), generator=generator, dtype=torch.uint8)
    images = ImageSet(torch.arange(8), torch.arange(8) % 4, pixels)
    state = TrainState.new(config, OPTIM, seed=1)
    settings = TrainConfig(steps=3, batch_size=4, checkpoint_every=3)
    list(train(state, ImageDataset(images), LossConfig(), settings))
    return state


@pytest.fixture
def state(tiny_config):
    return trained(tiny_config())


@pytest.fixture
def saved(state, tmp_path):
    save_checkpoint(state, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "features",
    [{}, {"aux_layer": None}, {"rope": True, "rms_norm": True, "swiglu": True, "qk_norm": True}],
    ids=["plain", "without head", "all features"],
)
def test_round_trip_keeps_everything_bit_for_bit(tiny_config, tmp_path, features):
    state = trained(tiny_config(**features))
    save_checkpoint(state, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.model.config == state.model.config
    assert loaded.optim == OPTIM
    assert loaded.step == 3
    assert torch.equal(loaded.history, state.history)
    for ours, theirs in (
        (loaded.model.state_dict(), state.model.state_dict()),
        (loaded.ema, state.ema),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (
        loaded.optimizers[0].state_dict()["state"],
        state.optimizers[0].state_dict()["state"],
    )
    assert ours.keys() == theirs.keys()
    for number, entry in theirs.items():
        assert entry.keys() == ours[number].keys()
        assert all(torch.equal(value, ours[number][key]) for key, value in entry.items())


def test_untrained_state_round_trips(tiny_config, tmp_path):
    state = TrainState.new(tiny_config(), OPTIM, seed=1)
    save_checkpoint(state, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, len(loaded.history)) == (0, 0)
    assert loaded.optimizers[0].state_dict()["state"] == {}


def test_order_of_the_averaged_tensors_is_that_of_the_parameters(saved):
    loaded = load_checkpoint(saved)
    assert list(loaded.ema) == [name for name, _ in loaded.model.named_parameters()]


def test_saving_creates_the_folder_and_changes_no_state(state, tmp_path):
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    save_checkpoint(state, tmp_path / "a" / "b")
    assert all(torch.equal(before[name], v) for name, v in state.model.state_dict().items())
    assert state.step == 3


def test_equal_states_are_equal_files(state, saved, tmp_path):
    again = tmp_path / "again"
    save_checkpoint(load_checkpoint(saved), again)
    for name in FILES:
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_nothing_is_pickled(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    for path in saved.glob("*.safetensors"):
        header_length = int.from_bytes(path.read_bytes()[:8], "little")
        json.loads(path.read_bytes()[8 : 8 + header_length])


def test_header_is_readable_by_a_person(saved, state):
    header = json.loads((saved / "state.json").read_text())
    assert header["step"] == 3
    assert header["model"] == dataclasses.asdict(state.model.config)


def test_averaged_model_is_ready_to_sample(saved, state, inputs):
    model = load_ema(saved)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state.ema[name])
        assert not parameter.requires_grad
    assert not torch.equal(model(*inputs()).final, state.model(*inputs()).final)


def test_position_table_comes_from_the_file(saved):
    tensors = load_file(saved / "ema.safetensors")
    save_file(tensors | {"pos_embed": tensors["pos_embed"] + 1}, saved / "ema.safetensors")
    assert torch.equal(load_ema(saved).pos_embed, tensors["pos_embed"] + 1)


def test_history_can_be_read_alone(saved, state):
    assert torch.equal(load_history(saved), state.history)


def readers_of(name):
    """The loading functions that need the file."""
    readers = {
        "state.json": (load_checkpoint, load_ema),
        "ema.safetensors": (load_checkpoint, load_ema),
        "history.safetensors": (load_checkpoint, load_history),
    }
    return readers.get(name, (load_checkpoint,))


def assert_rejected(folder, name):
    for read in readers_of(name):
        with pytest.raises(ValueError) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_an_error_that_names_it(saved, name):
    (saved / name).unlink()
    assert_rejected(saved, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_an_error_that_names_it(saved, name, kept):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(kept * len(content))])
    assert_rejected(saved, name)


@pytest.mark.parametrize("name", FILES)
def test_file_of_garbage_is_an_error_that_names_it(saved, name):
    (saved / name).write_bytes(b"\x93\xff" * 500)
    assert_rejected(saved, name)


def edit_header(folder, change):
    path = folder / "state.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


def test_other_format_is_an_error_that_names_both(saved):
    edit_header(saved, lambda header: header.update(format="igdit-checkpoint-99"))
    with pytest.raises(ValueError, match=r"must be 'igdit-checkpoint-1', but got '.*-99'"):
        load_checkpoint(saved)
    assert_rejected(saved, "state.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("model"),
        lambda header: header.pop("format"),
        lambda header: header["model"].pop("depth"),
        lambda header: header["model"].update(unknown_field=1),
        lambda header: header["model"].update(depth=0),
    ],
    ids=["no model", "no format", "no depth", "unknown field", "invalid depth"],
)
def test_header_that_describes_no_model_is_an_error_that_names_it(saved, change):
    edit_header(saved, change)
    assert_rejected(saved, "state.json")


@pytest.mark.parametrize("key", ["step", "optim"])
def test_header_without_training_state_is_an_error_that_names_it(saved, key):
    edit_header(saved, lambda header: header.pop(key))
    with pytest.raises(ValueError, match=r"state\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", ["[]", "null", "7"])
def test_header_that_is_no_object_is_an_error_that_names_it(saved, content):
    (saved / "state.json").write_text(content)
    assert_rejected(saved, "state.json")


TENSORS = [
    ("model.safetensors", "blocks.0.mlp.fc1.weight"),
    ("ema.safetensors", "blocks.0.mlp.fc1.weight"),
    ("optimizer.safetensors", "blocks.0.mlp.fc1.weight/exp_avg"),
    ("history.safetensors", "history"),
]


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(("name", "tensor"), TENSORS)
def test_missing_tensor_is_an_error_that_names_the_file(saved, name, tensor):
    edit_tensors(saved / name, lambda tensors: tensors.pop(tensor))
    assert_rejected(saved, name)


@pytest.mark.parametrize(("name", "tensor"), TENSORS)
def test_tensor_of_another_shape_is_an_error_that_names_the_file(saved, name, tensor):
    edit_tensors(saved / name, lambda tensors: tensors.update({tensor: torch.zeros(3, 5)}))
    assert_rejected(saved, name)


@pytest.mark.parametrize(("name", "tensor"), TENSORS[:3])
def test_unknown_tensor_is_an_error_that_names_the_file(saved, name, tensor):
    edit_tensors(saved / name, lambda tensors: tensors.update({"stranger/x": torch.zeros(3)}))
    assert_rejected(saved, name)


def test_checkpoint_of_another_architecture_is_an_error(saved):
    edit_header(saved, lambda header: header["model"].update(width=32))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_checkpoint(saved)


def test_another_optimizers_moments_do_not_fit(tiny_config, tmp_path):
    state = trained(tiny_config())
    save_checkpoint(state, tmp_path)
    header = json.loads((tmp_path / "state.json").read_text())
    header["optim"]["optimizer"] = "muon"
    (tmp_path / "state.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"optimizer\.safetensors does not fit .*exp_avg"):
        load_checkpoint(tmp_path)


def test_a_header_from_before_there_was_a_choice_is_read(saved, state):
    """Options that came later stand at their default."""
    header = json.loads((saved / "state.json").read_text())
    del header["loss_scaler"], header["optim"]["optimizer"], header["optim"]["precision"]
    del header["optim"]["momentum"]
    (saved / "state.json").write_text(json.dumps(header))
    assert load_checkpoint(saved).optim == state.optim


@pytest.mark.parametrize("damage", [{"scale": 1.0}, {}, [], None, {"scale": 0.0}, {"scale": "big"}])
def test_a_damaged_loss_scale_is_named(tiny_config, tmp_path, damage):
    config = dataclasses.replace(OPTIM, precision="fp16")
    save_checkpoint(TrainState.new(tiny_config(), config, seed=1), tmp_path)
    header = json.loads((tmp_path / "state.json").read_text())
    whole = header["loss_scaler"] if isinstance(damage, dict) and "scale" in damage else {}
    header["loss_scaler"] = damage if damage == {"scale": 1.0} or not whole else whole | damage
    (tmp_path / "state.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"state\.json is no checkpoint header"):
        load_checkpoint(tmp_path)
