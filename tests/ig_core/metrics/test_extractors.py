from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ig_core.files.tensors import read_weights
from ig_core.files.torchvision_shim import declare_missing_operators
from ig_core.metrics.digits_net import DigitsNet, train_digits_net
from ig_core.metrics.extractors import FEATURE_LAYERS, make_extractor
from ig_core.metrics.frechet import FeatureStats, frechet_distance
from ig_core.metrics.scores import inception_score, kernel_distance, precision_recall
from tests.equipment.inception import untrained_inception


def digits(count, seed):
    """Images whose brightness and stripes depend on their label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(120, (count, 1, 8, 8), generator=generator)
    stripe = (torch.arange(8) < labels[:, None] % 8 + 1)[:, None, None, :] * 100
    return (noise + stripe + 3 * labels[:, None, None, None]).to(torch.uint8), labels


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    save_file(train_digits_net(*digits(256, 0), seed=1, epochs=2).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extract(weights):
    return make_extractor("digits-cnn", weights)


def parameters(net):
    return torch.cat([parameter.flatten() for parameter in net.parameters()])


def test_training_the_classifier_is_a_function_of_its_arguments():
    images, labels = digits(96, 0)
    torch.manual_seed(1)
    first = train_digits_net(images, labels, seed=3, epochs=2)
    torch.manual_seed(2)
    second = train_digits_net(images, labels, seed=3, epochs=2)
    assert torch.equal(parameters(first), parameters(second))
    other = train_digits_net(images, labels, seed=4, epochs=2)
    assert not torch.equal(parameters(first), parameters(other))


def test_training_the_classifier_leaves_no_trace_in_the_process():
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    net = train_digits_net(*digits(64, 0), seed=3, epochs=1)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_thread_count_comes_back_when_training_fails():
    torch.set_num_threads(2)
    images, labels = digits(64, 0)
    with pytest.raises(IndexError):
        train_digits_net(images, labels + 100, seed=3, epochs=1)
    assert torch.get_num_threads() == 2


def test_classifier_learns_its_training_set():
    images, labels = digits(256, 0)
    net = train_digits_net(images, labels, seed=1, epochs=30)
    assert float((net(images)[1].argmax(dim=1) == labels).float().mean()) > 0.9


def test_extractor_returns_the_network_outputs(weights, extract):
    net = DigitsNet()
    net.load_state_dict(load_file(weights))
    images, _ = digits(20, 5)
    features, logits = extract(images)
    assert (features.shape, logits.shape) == ((20, 64), (20, 10))
    assert features.dtype == logits.dtype == torch.float32
    with torch.no_grad():
        expected = net(images)
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])


def test_features_do_not_depend_on_the_batch(extract):
    images, _ = digits(50, 5)
    parts = [extract(part)[0] for part in images.split(7)]
    # Matrix products of another height may sum in another order: float32 rounding.
    torch.testing.assert_close(torch.cat(parts), extract(images)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (torch.zeros(2, 1, 8, 8), r"torch.float32 \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"torch.uint8 \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"torch.uint8 \(2, 1, 16, 16\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"torch.uint8 \(2, 8, 8\)"),
    ],
    ids=["dtype", "channels", "size", "dimensions"],
)
def test_images_of_another_kind_are_an_error(extract, images, shown):
    with pytest.raises(ValueError, match=rf"takes uint8 \(N, 1, 8, 8\), but got {shown}"):
        extract(images)


def test_unknown_extractor_lists_the_known_ones(weights):
    with pytest.raises(ValueError, match="one of digits-cnn, inception-v3-compat, but got 'vgg'"):
        make_extractor("vgg", weights)


def test_extractor_can_be_made_twice(weights, extract):
    images, _ = digits(4, 5)
    again = make_extractor("digits-cnn", str(weights))
    assert torch.equal(again(images)[0], extract(images)[0])


@pytest.fixture(scope="module")
def pair():
    return digits(300, 10)[0], digits(260, 11)[0] // 2 + 20


@pytest.fixture(scope="module")
def by_torch_fidelity(weights, extract, pair):
    """torch-fidelity's own program on the same images, after `extract` registered the extractor."""
    declare_missing_operators()
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return self.images[number]

    samples, reference = pair
    return torch_fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(reference),
        feature_extractor="digits-cnn",
        feature_extractor_weights_path=str(weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=20,
        kid_subset_size=100,
        batch_size=50,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )


@pytest.fixture(scope="module")
def outputs(extract, pair):
    return [extract(images) for images in pair]


# The two programs batch differently (float32 features) and torch-fidelity averages in float32.
CLOSE = {"rel": 1e-6, "abs": 1e-9}


def test_fid_equals_torch_fidelity(outputs, by_torch_fidelity):
    samples, reference = (FeatureStats.from_features(features) for features, _ in outputs)
    expected = by_torch_fidelity["frechet_inception_distance"]
    assert frechet_distance(samples, reference) == pytest.approx(expected, **CLOSE)


def test_kernel_distance_equals_torch_fidelity(outputs, by_torch_fidelity):
    (samples, _), (reference, _) = outputs
    expected = by_torch_fidelity["kernel_inception_distance_mean"]
    found = kernel_distance(samples, reference, subsets=20, size=100)
    assert found == pytest.approx(expected, **CLOSE)


def test_precision_and_recall_equal_torch_fidelity(outputs, by_torch_fidelity):
    (samples, _), (reference, _) = outputs
    expected = (by_torch_fidelity["precision"], by_torch_fidelity["recall"])
    assert precision_recall(samples, reference) == pytest.approx(expected, **CLOSE)


def test_inception_score_equals_torch_fidelity(outputs, by_torch_fidelity):
    (_, logits), _ = outputs
    expected = (
        by_torch_fidelity["inception_score_mean"],
        by_torch_fidelity["inception_score_std"],
    )
    assert inception_score(logits, splits=10) == pytest.approx(expected, **CLOSE)


def test_inception_score_matches_the_stored_reference(golden):
    tensors = load_file(golden / "open_metrics.safetensors")
    mean, spread = inception_score(tensors["is.probs"].log(), splits=1)
    # Probabilities stored in float32.
    assert mean == pytest.approx(float(tensors["is.value_1_split"]), rel=1e-6)
    assert spread == 0


def test_inception_score_of_certain_and_uniform_predictions_is_its_bounds():
    certain = 100 * torch.eye(10).repeat(5, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(50, 10), splits=1)[0] == pytest.approx(1, rel=1e-6)


def test_precision_and_recall_take_the_samples_first():
    reference = torch.arange(40.0)[:, None].expand(40, 4)
    samples = reference[:10] + 0.01
    precision, recall = precision_recall(samples, reference)
    assert precision == 1
    # Balls of radius 3 around the samples reach the first 13 of 40 reference points.
    assert recall == pytest.approx(13 / 40)


def test_kernel_distance_uses_no_more_rows_than_there_are(outputs):
    (samples, _), (reference, _) = outputs
    found = kernel_distance(samples[:40], reference, subsets=5, size=1000)
    assert found == kernel_distance(samples[:40], reference, subsets=5, size=40)


def test_kernel_distance_of_equal_distributions_is_near_zero_and_of_shifted_ones_is_not():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, 8, generator=generator)
    near, far = (kernel_distance(a, other, subsets=10, size=100) for other in (b, b + 1))
    assert abs(near) < 0.1 < 0.5 < far


def test_every_extractor_names_its_feature_and_logit_layer():
    assert FEATURE_LAYERS["digits-cnn"] == ("64", "logits")
    assert FEATURE_LAYERS["inception-v3-compat"] == ("2048", "logits_unbiased")


def test_declaring_operators_twice_is_harmless():
    declare_missing_operators()
    declare_missing_operators()
    import torch_fidelity

    assert torch_fidelity.calculate_metrics


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    untrained_inception(path)
    return path


def test_inception_runs_from_a_weights_file_and_takes_grey_images(inception_weights, tmp_path):
    safe = tmp_path / "inception.safetensors"
    save_file(read_weights(inception_weights), safe)
    extract = make_extractor("inception-v3-compat", safe)
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    features, logits = extract(grey)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert torch.equal(extract(grey.expand(-1, 3, -1, -1))[0], features)


def test_weights_that_do_not_fit_are_named(inception_weights, tmp_path):
    safe = tmp_path / "weights.safetensors"
    save_file({"some.other.layer": torch.zeros(2)}, safe)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit extractor 'inception"):
        make_extractor("inception-v3-compat", safe)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "weights.pth"
    torch.save({"weight": Trap()}, path)
    with pytest.raises(ValueError, match="is not a weights file"):
        read_weights(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04N."])
def test_what_is_no_weights_file_is_said_to_be_none(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth is not a weights file"):
        read_weights(path)
