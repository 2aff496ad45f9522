"""Our numbers are those of torch-fidelity's own program on the same images."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ig_core.fidelity import (
    inception_score,
    kernel_distance,
    make_image_extractor,
    precision_recall,
    train_digits_net,
)
from ig_core.metrics import FeatureStats, frechet_distance
from ig_core.reference import SPATIAL_WIDTH
from ig_core.torchvision_shim import declare_missing_operators
from tests.inception import untrained_inception

SUBSETS, SUBSET, SPLITS = 20, 10, 3


def calculate(name, weights, samples, reference, fid=True, **options):
    declare_missing_operators()
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return self.images[number]

    return torch_fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(reference),
        feature_extractor=name,
        feature_extractor_weights_path=str(weights),
        isc=True,
        fid=fid,
        kid=True,
        prc=True,
        isc_splits=SPLITS,
        kid_subsets=SUBSETS,
        batch_size=8,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        **({"kid_subset_size": SUBSET} | options),
    )


def metrics(parts, other, seed=2020, shuffle=True, fid=True, subset=SUBSET):
    """Our metrics from the extractor's outputs, shard by shard, against those of the reference."""
    features = torch.cat([part.features for part in parts])
    logits = torch.cat([part.logits for part in parts])
    precision, recall = precision_recall(features, other.features)
    score, spread = inception_score(logits, SPLITS, seed if shuffle else None)
    kid = kernel_distance(features, other.features, SUBSETS, subset, seed)
    found = {"kernel_inception_distance_mean": kid, "inception_score_mean": score,
             "inception_score_std": spread, "precision": precision, "recall": recall}  # fmt: skip
    if fid:
        first, *rest = (FeatureStats.from_features(part.features) for part in parts)
        reference = FeatureStats.from_features(other.features)
        found["frechet_inception_distance"] = frechet_distance(sum(rest, start=first), reference)
    return found


def measure(extract, samples, reference, shards, seed=2020, shuffle=True):
    """Our metrics of samples whose features are computed, and counted, in shards."""
    parts = [extract(part) for part in samples.tensor_split(shards)]
    return metrics(parts, extract(reference), seed, shuffle)


def assert_equal(found, expected, fid):
    assert found.keys() <= expected.keys()
    for name, value in found.items():
        # Batches of another size, and torch-fidelity's means, are rounded in float32.
        tolerance = fid if name == "frechet_inception_distance" else 1e-6
        assert value == pytest.approx(expected[name], rel=tolerance, abs=1e-9), name


def digits(count, seed, brightness):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(60, (count, 1, 8, 8), generator=generator)
    stripe = (torch.arange(8) < torch.arange(count)[:, None] % 8)[:, None, None, :] * brightness
    return (noise + stripe).to(torch.uint8)


@pytest.fixture(scope="module")
def digits_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    images = digits(160, 0, 150)
    save_file(train_digits_net(images, torch.arange(160) % 8, 1, epochs=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def digits_extractor(digits_weights):
    return make_image_extractor("digits-cnn", digits_weights)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(
    ("count", "tolerance"), [(300, 1e-6), (40, 1e-4)], ids=["full rank", "deficient"]
)
def test_digits(digits_weights, digits_extractor, shards, count, tolerance):
    samples, reference = digits(count, 1, 120), digits(count - 7, 2, 150)
    expected = calculate("digits-cnn", digits_weights, samples, reference)
    found = measure(digits_extractor, samples, reference, shards)
    assert 0 < found["precision"] <= 1
    assert_equal(found, expected, tolerance)


def test_other_seeds_and_orders(digits_weights, digits_extractor):
    samples, reference = digits(200, 1, 120), digits(200, 2, 150)
    for options in ({"rng_seed": 7}, {"samples_shuffle": False}):
        expected = calculate("digits-cnn", digits_weights, samples, reference, **options)
        found = measure(digits_extractor, samples, reference, 1, options.get("rng_seed", 2020),
                        options.get("samples_shuffle", True))  # fmt: skip
        assert_equal(found, expected, 1e-6)


def scenes(count, seed, contrast):
    """Coarse colour patterns (N, 3, 12, 12), each with a tone of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator) * contrast
    tone = torch.rand(count, 3, 1, 1, generator=generator) * (255 - contrast)
    return (F.interpolate(coarse, 12) + tone).to(torch.uint8)


@pytest.fixture(scope="module")
def inception_files(tmp_path_factory):
    """Random weights of the reference network, as its own checkpoint and as safetensors."""
    folder = tmp_path_factory.mktemp("inception")
    net = untrained_inception(folder / "inception.pth")
    generator = torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if name.endswith("conv.weight"):
            value.mul_(6**0.5)  # keeps the size of activations from layer to layer
        elif name.endswith(("bn.bias", "running_mean")):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    torch.save(net.state_dict(), folder / "inception.pth")
    tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, folder / "inception.safetensors")
    return folder / "inception.pth", folder / "inception.safetensors"


@pytest.fixture(scope="module")
def inception(inception_files):
    return make_image_extractor("inception-v3-compat", inception_files[1], spatial=True)


@pytest.mark.parametrize(
    "fid",
    [
        False,
        # Five eigen-decompositions of 2048 x 2048 matrices, one of them not symmetric.
        pytest.param(True, marks=pytest.mark.slow),
    ],
)
def test_inception_in_one_piece_and_in_shards(inception_files, inception, fid):
    samples, reference = scenes(8, 1, 120), scenes(6, 2, 200)
    whole, *shards, other = map(inception, (samples, *samples.tensor_split(4), reference))
    expected = calculate("inception-v3-compat", inception_files[0], samples, reference, fid,
                         kid_subset_size=5)  # fmt: skip
    # 14 images of 2048 features: the covariances are rank-deficient.
    for parts in ([whole], shards):
        assert_equal(metrics(parts, other, fid=fid, subset=5), expected, 1e-4)


def test_spatial_features_are_the_first_channels_of_the_layer_channels_last(inception_files):
    declare_missing_operators()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["768"], feature_extractor_weights_path=str(inception_files[0])
    )
    inputs = []
    net.Mixed_6d.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    images = scenes(2, 3, 200)
    with torch.no_grad():
        net(images)
        found = make_image_extractor("inception-v3-compat", inception_files[1], spatial=True)(
            images
        )
    (x,), branch = inputs, net.Mixed_6d.branch1x1
    assert x.shape == (2, 768, 17, 17)
    assert found.spatial.shape == (2, SPATIAL_WIDTH)
    assert found.spatial.dtype == torch.float32
    # A 1x1 convolution, the batch norm with stored statistics (eps 1e-3), and the ReLU.
    y = torch.einsum("oc,nchw->nohw", branch.conv.weight[:7, :, 0, 0], x)
    scale = branch.bn.weight[:7] / (branch.bn.running_var[:7] + 1e-3).sqrt()
    offset = branch.bn.bias[:7] - branch.bn.running_mean[:7] * scale
    y = (y * scale[:, None, None] + offset[:, None, None]).clamp_min(0)
    assert 0.05 < float((y == 0).float().mean()) < 0.95
    for row, column, channel in (
        (0, 0, 0),
        (0, 0, 6),
        (0, 1, 0),
        (1, 0, 0),
        (16, 16, 6),
        (5, 9, 3),
    ):
        place = (row * 17 + column) * 7 + channel
        # Sums of 768 float32 products in another order.
        torch.testing.assert_close(
            found.spatial[:, place], y[:, channel, row, column], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(
        found.spatial, y.permute(0, 2, 3, 1).flatten(1), rtol=1e-4, atol=1e-5
    )


def test_all_features_come_from_one_pass(inception_files, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    passes, original = [], FeatureExtractorInceptionV3.forward
    monkeypatch.setattr(FeatureExtractorInceptionV3, "forward",
                        lambda self, x: (passes.append(len(x)), original(self, x))[1])  # fmt: skip
    extract = make_image_extractor("inception-v3-compat", inception_files[1], spatial=True)
    found = extract(scenes(1, 3, 200))
    assert passes == [1]
    assert [part.shape for part in found] == [(1, 2048), (1, 1008), (1, SPATIAL_WIDTH)]


def test_spatial_features_of_digits_are_an_error(digits_weights):
    with pytest.raises(ValueError, match="spatial features need extractor 'inception-v3-compat'"):
        make_image_extractor("digits-cnn", digits_weights, spatial=True)


def test_no_spatial_features_unless_asked_for(digits_extractor):
    assert digits_extractor(digits(2, 1, 120)).spatial is None
