"""Our numbers are those of torch-fidelity's own program on the same images.

On the features that its program computed they are the same numbers. Features of our own, computed
in batches of other sizes, differ from those by float32 rounding, which depends on the processor's
kernels: there, numbers differ by what that rounding can do to them.
"""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ig_core.files.torchvision_shim import declare_missing_operators
from ig_core.metrics.digits_net import train_digits_net
from ig_core.metrics.extractors import FEATURE_LAYERS, ImageFeatures, make_image_extractor
from ig_core.metrics.frechet import FeatureStats, frechet_distance
from ig_core.metrics.reference import SPATIAL_WIDTH
from ig_core.metrics.scores import inception_score, kernel_distance, precision_recall
from tests.equipment.inception import untrained_inception

SUBSETS, SUBSET, SPLITS = 20, 10, 3
ROUNDING = 2.0**-24
"""Relative, of one float32 operation."""
FEATURE_ROUNDING = 1e-5
"""Relative to the length of a row: sums of some hundred float32 products, layer upon layer."""


def calculate(folder, name, weights, samples, reference, fid=True, **options):
    """Metrics by torch-fidelity's program, and the features it made them from."""
    declare_missing_operators()
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return self.images[number]

    found = torch_fidelity.calculate_metrics(
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
        cache=True,
        cache_root=str(folder),
        input1_cache_name="samples",
        input2_cache_name="reference",
        verbose=False,
        **({"kid_subset_size": SUBSET} | options),
    )

    def features(which):
        pooled, logits = (
            folder / f"{which}-{name}-features-{layer}.pt" for layer in FEATURE_LAYERS[name]
        )
        # The logits are for the Inception Score, of the samples alone.
        return ImageFeatures(
            torch.load(pooled), torch.load(logits) if logits.exists() else None, None
        )

    return found, features("samples"), features("reference")


def metrics(parts, other, seed=2020, shuffle=True, fid=True, subset=SUBSET):
    """Our metrics from the extractor's outputs, shard by shard, against those of the reference."""
    features, logits = joined(parts)[:2]
    precision, recall = precision_recall(features, other.features)
    score, spread = inception_score(logits, SPLITS, seed if shuffle else None)
    kid = kernel_distance(features, other.features, SUBSETS, subset, seed)
    found = {
        "kernel_inception_distance_mean": kid,
        "inception_score_mean": score,
        "inception_score_std": spread,
        "precision": precision,
        "recall": recall,
    }
    if fid:
        first, *rest = (FeatureStats.from_features(part.features) for part in parts)
        reference = FeatureStats.from_features(other.features)
        found["frechet_inception_distance"] = frechet_distance(sum(rest, start=first), reference)
    return found


def joined(parts):
    """What is computed in shards, in one piece."""
    return ImageFeatures(*map(torch.cat, zip(*(part[:2] for part in parts), strict=True)), None)


def assert_equal(found, expected, fid, tolerances=None):
    """To 1e-6, or as far as rounded features let them be known; FID to `fid`, as it is solved."""
    assert found.keys() <= expected.keys()
    for name, value in found.items():
        relative = fid if name == "frechet_inception_distance" else 1e-6
        tolerance = max(relative * abs(expected[name]), (tolerances or {}).get(name, 0), 1e-9)
        assert value == pytest.approx(expected[name], rel=0, abs=tolerance), name


def assert_same_up_to_rounding(found, whole, other, expected, samples, reference, fid, subset):
    """Compare metrics of features that agree up to float32 rounding.

    Args:
        found: Our metrics of `whole` and `other`.
        whole: Our outputs of the samples, in one piece.
        other: Our outputs of the reference.
        expected: torch-fidelity's metrics of `samples` and `reference`.
        samples: Its outputs of the samples.
        reference: Its outputs of the reference.
        fid: Relative tolerance of FID on identical features.
        subset: Rows of a subset of KID.
    """
    pairs = ((whole.features, samples.features), (other.features, reference.features))
    for ours, theirs in pairs:
        longest = float(theirs.norm(dim=1).max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=FEATURE_ROUNDING * longest)
    longest = float(samples.logits.norm(dim=1).max())
    torch.testing.assert_close(
        whole.logits, samples.logits, rtol=0, atol=FEATURE_ROUNDING * longest
    )
    distance = expected.get("frechet_inception_distance", 0)
    score = _score_tolerance(whole.logits, samples.logits, expected)
    moved = max(
        float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max()) for ours, theirs in pairs
    )
    precision = _undecided(samples.features, reference.features, moved)
    recall = _undecided(reference.features, samples.features, moved)
    tolerances = {
        "kernel_inception_distance_mean": _kid_tolerance(
            torch.cat([samples.features, reference.features]), moved, subset
        ),
        "frechet_inception_distance": fid * distance + _fid_tolerance(pairs, distance),
        "inception_score_mean": score,
        "inception_score_std": score,
        "precision": precision,
        "recall": recall,
    }
    # Else the comparison would say little.
    assert max(precision, recall) <= 0.1
    assert tolerances["kernel_inception_distance_mean"] < (
        0.05 * abs(expected["kernel_inception_distance_mean"])
    )
    assert_equal(found, expected, fid, tolerances)


def _fid_tolerance(pairs, distance):
    """FID is the square of a metric, W, so |W' - W| is at most what the rows were moved by.

    (By Gelbrich's theorem two Gaussians are no further apart than any rows with their moments.)
    """
    moved = sum(
        float((ours.double() - theirs.double()).square().sum().div(len(ours) - 1).sqrt())
        for ours, theirs in pairs
    )
    return 2 * math.sqrt(distance) * moved + moved**2


def _kid_tolerance(rows, moved, subset):
    """KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) with k = s^3, s = x.y / F + 1.

    It is small, and the four means are not. Each is at most K = (1 + q)^3 with q = max |x|^2 / F.
    Rows moved by r of their length move s by 2 r q. The product of F terms is rounded by 4 sqrt(F)
    units (Higham and Mary 2019), s by one, its cube by two more, the sums over a subset's rows and
    columns by its size each; and two programs round.
    """
    width = rows.shape[1]
    q = float(rows.square().sum(1).max()) / width
    of_s = 2 * moved * q + 2 * ROUNDING * (4 * math.sqrt(width) * q + 1 + q)
    return 4 * (3 * (1 + q) ** 2 * of_s + 2 * (2 + 2 * subset) * ROUNDING * (1 + q) ** 3)


def _score_tolerance(ours, theirs, expected):
    """Logits moved by d change each p by 2 d p, and E_p|log(p / q)| is at most KL(p|q) + 2 / e."""
    moved = float((ours - theirs).abs().max())
    score = expected["inception_score_mean"] + SPLITS * expected["inception_score_std"]
    return 2.1 * moved * score * (math.log(score) + 2 / math.e)


def _undecided(points, centres, moved, neighbours=3):
    """Share of the points for which rounding may decide whether they lie in the centres' manifold.

    Squared distances, |x|^2 + |y|^2 - 2 x.y in float32, are compared. With rows no longer than L
    that are moved by r of their length, each is known to 8 r L^2 and the rounding of its products.
    """
    points, centres = points.double(), centres.double()
    longest = max(float(rows.square().sum(1).max()) for rows in (points, centres))
    known_to = longest * (8 * moved + 16 * math.sqrt(points.shape[1]) * ROUNDING)
    radii = torch.cdist(centres, centres).square().kthvalue(neighbours + 1, dim=0).values
    inside = (radii[:, None] - torch.cdist(centres, points).square()).max(dim=0).values
    return float((inside.abs() <= 2 * known_to).double().mean())


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


@pytest.mark.parametrize(
    ("count", "tolerance"), [(300, 1e-6), (40, 1e-4)], ids=["full rank", "deficient"]
)
def test_digits(tmp_path, digits_weights, digits_extractor, count, tolerance):
    samples, reference = digits(count, 1, 120), digits(count - 7, 2, 150)
    expected, theirs, others = calculate(tmp_path, "digits-cnn", digits_weights, samples, reference)
    assert 0 < expected["precision"] <= 1
    assert_equal(metrics([theirs], others), expected, tolerance)
    other = digits_extractor(reference)
    for shards in (1, 4):
        parts = [digits_extractor(part) for part in samples.tensor_split(shards)]
        assert_same_up_to_rounding(
            metrics(parts, other), joined(parts), other, expected, theirs, others, tolerance, SUBSET
        )


@pytest.mark.parametrize("options", [{"rng_seed": 7}, {"samples_shuffle": False}])
def test_other_seeds_and_orders(tmp_path, digits_weights, options):
    samples, reference = digits(200, 1, 120), digits(200, 2, 150)
    expected, theirs, others = calculate(
        tmp_path, "digits-cnn", digits_weights, samples, reference, **options
    )
    found = metrics(
        [theirs], others, options.get("rng_seed", 2020), options.get("samples_shuffle", True)
    )
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
def test_inception_in_one_piece_and_in_shards(tmp_path, inception_files, inception, fid):
    samples, reference = scenes(8, 1, 120), scenes(6, 2, 200)
    whole, *shards, other = map(inception, (samples, *samples.tensor_split(4), reference))
    expected, theirs, others = calculate(
        tmp_path,
        "inception-v3-compat",
        inception_files[0],
        samples,
        reference,
        fid,
        kid_subset_size=5,
    )
    # 14 images of 2048 features: the covariances are rank-deficient.
    assert_equal(metrics([theirs], others, fid=fid, subset=5), expected, 1e-4)
    for parts in ([whole], shards):
        found = metrics(parts, other, fid=fid, subset=5)
        assert_same_up_to_rounding(found, joined(parts), other, expected, theirs, others, 1e-4, 5)


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
    monkeypatch.setattr(
        FeatureExtractorInceptionV3,
        "forward",
        lambda self, x: (passes.append(len(x)), original(self, x))[1],
    )
    extract = make_image_extractor("inception-v3-compat", inception_files[1], spatial=True)
    found = extract(scenes(1, 3, 200))
    assert passes == [1]
    assert [part.shape for part in found] == [(1, 2048), (1, 1008), (1, SPATIAL_WIDTH)]


def test_spatial_features_of_digits_are_an_error(digits_weights):
    with pytest.raises(ValueError, match="spatial features need extractor 'inception-v3-compat'"):
        make_image_extractor("digits-cnn", digits_weights, spatial=True)


def test_no_spatial_features_unless_asked_for(digits_extractor):
    assert digits_extractor(digits(2, 1, 120)).spatial is None
