import dataclasses
import itertools

import pytest
import torch
from safetensors.torch import load_file

from ig_core.config import ModelConfig
from ig_core.layers import rope_tables, rotate, sincos_table
from ig_core.transformer import DiffusionTransformer

FEATURES = ("rope", "rms_norm", "swiglu", "qk_norm", "adaln_shift")
PUBLISHED_NAMES = {"final_layer_xr": "aux_head", "final_layer": "final_head"}


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def reference(golden):
    """Published SiT+IG network of random weights: tensors, and our model with its state dict."""
    tensors = load_file(golden / "open_sit_forward.safetensors")
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("w."):
            owner, _, rest = name[2:].partition(".")
            owner = PUBLISHED_NAMES.get(owner, owner)
            weights[f"{owner}.{rest}" if rest else owner] = tensor
    model = DiffusionTransformer(
        ModelConfig(
            depth=4,
            width=48,
            num_heads=4,
            patch_size=2,
            input_size=8,
            in_channels=4,
            num_classes=10,
            aux_layer=2,
        )
    )
    model.load_state_dict(weights)
    return model, tensors


@torch.no_grad()
def test_both_heads_match_the_published_network(reference):
    model, tensors = reference
    out = model(tensors["x"], tensors["t"], tensors["y"])
    for ours, theirs in ((out.final, tensors["final"]), (out.aux, tensors["aux"])):
        # Float32 sums in another order through four blocks.
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_position_table_is_the_published_one(reference):
    _, tensors = reference
    # Computed in float64 on both sides, so at most the last float32 bit differs.
    torch.testing.assert_close(sincos_table(48, 4), tensors["w.pos_embed"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("aux_layer", [None, 2])
def test_initialised_model_is_exactly_zero(tiny_config, inputs, aux_layer):
    out = DiffusionTransformer(tiny_config(aux_layer=aux_layer))(*inputs())
    assert out.final.shape == (5, 2, 4, 4)
    assert not out.final.any()
    assert out.aux is None if aux_layer is None else not out.aux.any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_aux_head_reads_the_tokens_after_block_k(tiny_config, random_model, inputs, k):
    model = random_model(depth=4, aux_layer=k)
    later = tuple(f"blocks.{number}." for number in range(k, 4))
    weights = {
        name.replace("aux_head", "final_head"): value
        for name, value in model.state_dict().items()
        if not name.startswith(("final_head", *later))
    }
    truncated = DiffusionTransformer(tiny_config(depth=k, aux_layer=None))
    truncated.load_state_dict(weights)
    assert torch.equal(model(*inputs()).aux, truncated(*inputs()).final)


def test_final_velocity_is_the_final_output_bit_for_bit(random_model, inputs):
    model = random_model()
    assert torch.equal(model.final_velocity(*inputs()), model(*inputs()).final)


def test_final_velocity_runs_every_block_but_not_the_auxiliary_head(random_model, inputs):
    model = random_model()
    aux, final, first = map(count_calls, (model.aux_head, model.final_head, model.blocks[0]))
    model.final_velocity(*inputs())
    assert (len(aux), len(final), len(first)) == (0, 1, 1)
    model(*inputs())
    assert (len(aux), len(final), len(first)) == (1, 2, 2)


def test_final_output_does_not_depend_on_the_auxiliary_head(tiny_config, random_model, inputs):
    model = random_model()
    without = DiffusionTransformer(tiny_config(aux_layer=None))
    without.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("aux_head")}
    )
    assert torch.equal(without(*inputs()).final, model(*inputs()).final)
    assert without(*inputs()).aux is None


def test_weights_are_a_function_of_the_seed(tiny_config):
    models = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(global_seed)
        model = DiffusionTransformer(tiny_config())
        model.initialise(seed)
        models.append(model.state_dict())
    first, second, other = models
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not torch.equal(first["t_embedder.mlp.0.weight"], other["t_embedder.mlp.0.weight"])


@pytest.mark.parametrize("features", [{}, {"rms_norm": True}, {"qk_norm": True}], ids=str)
def test_initialise_forgets_what_the_weights_were(tiny_config, random_model, features):
    fresh = DiffusionTransformer(tiny_config(**features))
    fresh.initialise(3)
    used = random_model(**features)
    used.initialise(3)
    for name, weight in fresh.state_dict().items():
        assert torch.equal(used.state_dict()[name], weight), name


def test_building_a_model_leaves_its_weights_free_of_the_global_generator(tiny_config):
    torch.manual_seed(1)
    first = DiffusionTransformer(tiny_config()).state_dict()
    torch.manual_seed(2)
    second = DiffusionTransformer(tiny_config()).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initial_embeddings_have_the_configured_spread(tiny_config):
    for std in (0.02, 0.5):
        model = DiffusionTransformer(tiny_config(width=128, num_classes=199, embedding_std=std))
        for weight in (model.y_embedder.embedding_table.weight, *model.t_embedder.weights):
            # At least 16,384 draws: 2.5 % is 4.5 standard errors of the deviation.
            assert float(weight.detach().std()) == pytest.approx(std, rel=0.025)


def test_modulations_and_heads_start_at_zero_and_other_matrices_do_not(tiny_config):
    model = DiffusionTransformer(tiny_config())
    for name, parameter in model.named_parameters():
        head = name.startswith(("final_head", "aux_head"))
        zero = head or "adaLN" in name or name.endswith("bias")
        assert bool(parameter.any()) != zero, name


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=5)))
def test_every_feature_combination_is_differentiable(tiny_config, random_model, inputs, switches):
    model = random_model(**dict(zip(FEATURES, switches, strict=True)))
    out = model(*inputs())
    assert out.final.shape == out.aux.shape == (5, 2, 4, 4)
    (out.final.square().sum() + out.aux.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("feature", ["rope", "rms_norm", "qk_norm"])
def test_feature_changes_the_function_of_equal_weights(tiny_config, random_model, inputs, feature):
    plain = random_model()
    changed = DiffusionTransformer(tiny_config(**{feature: True}))
    changed.load_state_dict(plain.state_dict(), strict=False)
    difference = plain(*inputs()).final - changed(*inputs()).final
    assert float(difference.detach().abs().max()) > 0.01


@pytest.mark.parametrize("field", ["x", "t", "y"])
def test_samples_depend_on_their_own_inputs_only(random_model, inputs, field):
    model = random_model()
    x, t, y = inputs()
    changed = {"x": x.clone(), "t": t.clone(), "y": y.clone()}
    changed[field][2] = changed[field][2] + 1 if field == "y" else changed[field][2] / 2
    before, after = model(x, t, y), model(**changed)
    others = [0, 1, 3, 4]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[others], new[others])
        assert not torch.allclose(old[2], new[2])


def test_null_label_is_the_row_after_the_last_class(random_model, inputs):
    model = random_model()
    x, t, _ = inputs()
    assert model.config.null_label == 4
    model(x, t, torch.full((5,), 4))
    with pytest.raises(IndexError):
        model(x, t, torch.full((5,), 5))


def test_patches_are_row_major_with_channels_innermost(random_model, inputs):
    model = random_model(in_channels=2)
    with torch.no_grad():
        model.final_head.linear.weight.zero_()
        model.final_head.linear.bias.copy_(torch.arange(8.0))
    image = model(*inputs()).final[0]
    tile = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 3.0], [5.0, 7.0]]])
    assert torch.equal(image, tile.repeat(1, 2, 2))


def test_output_patch_lies_where_its_token_was_read(random_model, inputs):
    model = random_model()
    with torch.no_grad():
        for block in model.blocks:
            block.adaLN_modulation["1"].weight.zero_()
            block.adaLN_modulation["1"].bias.zero_()
    x, t, y = inputs()
    moved = x.clone()
    moved[:, :, 2:, :2] += 1
    difference = (model(moved, t, y).final - model(x, t, y).final).abs().amax(dim=(0, 1))
    assert bool((difference[2:, :2] > 0).all())
    difference[2:, :2] = 0
    assert not difference.any()


def test_rotary_products_depend_on_relative_position_only():
    grid = 4
    tables = rope_tables(8, grid)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator).expand(2, 1, 1, grid**2, 8)
    products = (rotate(q, tables) @ rotate(k, tables).transpose(2, 3)).view(grid, grid, grid, grid)
    # Float32 rounding of products of size one.
    torch.testing.assert_close(products[:-1, :, :-1], products[1:, :, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(products[:, :-1, :, :-1], products[:, 1:, :, 1:], rtol=0, atol=1e-5)


def test_rotation_preserves_length_and_leaves_the_first_token():
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x, rope_tables(8, 4))
    torch.testing.assert_close(rotated.norm(dim=3), x.norm(dim=3))
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])


def test_time_scale_stretches_time(tiny_config, random_model, inputs):
    x, t, y = inputs()
    plain, scaled = random_model(), random_model(time_scale=1000.0)
    torch.testing.assert_close(scaled(x, t, y).final, plain(x, 1000 * t, y).final)


def test_rotary_tables_are_not_stored_and_positions_are(tiny_config):
    names = DiffusionTransformer(tiny_config(rope=True)).state_dict()
    assert "pos_embed" in names
    assert not [name for name in names if "rope" in name]


def test_model_keeps_its_configuration(tiny_config):
    config = tiny_config()
    assert dataclasses.asdict(DiffusionTransformer(config).config) == dataclasses.asdict(config)
