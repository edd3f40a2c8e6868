"""Distances against closed forms, and their behaviour on Fashion-MNIST; the Inception FID."""

import hashlib
import json
import pickle
import shutil
import sys
import urllib.error

import numpy as np
import pytest
import torch
from exact import one_line
from torch import nn

from iflow_lib import data
from iflow_lib.data import load, register_dataset
from iflow_lib.metrics import (
    FashionFeatures,
    Support,
    embed,
    fashion_reference,
    features,
    frechet_distance,
    inception,
    inception_fid,
    kernel_distance,
    off_support,
    real_floor,
    real_pairs,
    sliced_w2,
    w2,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- optimal transport


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_w2_of_a_translation_is_its_length(far):
    x = draw(200, 2) + far
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert w2(x, x + shift) == pytest.approx(5, abs=1e-6)
    assert w2(x, x) == pytest.approx(0, abs=1e-6)
    assert w2(x, x[torch.randperm(200)] + shift) == pytest.approx(5, abs=1e-6)  # whatever the order


def test_w2_in_one_dimension_is_the_distance_of_sorted_points():
    x, y = draw(200, 1), 0.5 + 2 * draw(200, 1, seed=1)
    sorted_distance = (x.sort(0)[0] - y.sort(0)[0]).square().mean().sqrt()
    assert w2(x, y) == pytest.approx(float(sorted_distance), rel=1e-9)
    # quantiles of N(0, 1) and N(1, 3^2): W2^2 = (1 - 0)^2 + (3 - 1)^2
    levels = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    z = torch.distributions.Normal(0.0, 1.0).icdf(levels)[:, None]
    assert w2(z, 1 + 3 * z) == pytest.approx(5**0.5, rel=3e-3)


def test_w2_of_different_counts_and_ranks():
    # half of the mass at (0, 0) must go to (1, 1): cost 2 times 1/2
    assert w2(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]])) == pytest.approx(1)
    images = draw(20, 1, 4, 4)
    assert w2(images, images + 1) == pytest.approx(4)  # 16 pixels, each moved by 1
    assert w2(images.float(), images.flatten(1).float() + 1) == pytest.approx(4, rel=1e-6)


def test_w2_without_pot(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError) as error:
        w2(torch.zeros(2, 2), torch.zeros(2, 2))
    assert "pip install 'iflow-lib[notebooks]', or pip install POT" in one_line(error)


def test_sliced_w2_of_a_translation():
    # E (u . v)^2 = |v|^2 / d for u uniform on the sphere: |v| = 6, d = 4
    x = draw(50, 4)
    assert sliced_w2(x, x + 3, n_projections=4000) == pytest.approx(3, rel=0.03)
    first = sliced_w2(x, 2 * x, n_projections=10, seed=1)
    assert sliced_w2(x, 2 * x, n_projections=10, seed=1) == first
    assert sliced_w2(x, 2 * x, n_projections=10, seed=2) != first


@pytest.mark.parametrize(
    "x, y, word",
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), "2 dimensions and y has 3"),
        (torch.zeros(3), torch.zeros(3), "shape (3,)"),
        (torch.zeros(3, 2), torch.zeros(0, 2), "y of shape (0, 2) is empty"),
        (torch.zeros(3, 2).long(), torch.zeros(3, 2), "int64"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, 2), "6 NaN"),
    ],
)
@pytest.mark.parametrize("metric", [w2, sliced_w2])
def test_transport_refuses(metric, x, y, word):
    with pytest.raises(ValueError) as error:
        metric(x, y)
    assert word in one_line(error)


# ---- features


@pytest.mark.parametrize("which, least", [("first", 0.9), ("second", 0.88)])
def test_classifier_is_as_accurate_as_its_card_says(which, least):
    stem = features.CLASSIFIERS[which][0]
    card = json.loads((features.ASSETS / f"{stem}.json").read_text())
    test = load("fashion_mnist", n=1000, split="test")
    model = FashionFeatures(which=which)
    assert not model.training and sum(p.numel() for p in model.parameters()) == card["parameters"]
    accuracy = (model.logits(test.x).argmax(1) == test.labels).double().mean().item()
    assert card["accuracy_vendored_test_2000"] > least and accuracy == pytest.approx(
        card["accuracy_vendored_test_2000"], abs=0.02
    )


@pytest.mark.parametrize("which, most", [("first", 0.15), ("second", 0.2)])
def test_features_are_standardised_and_of_full_rank(which, most):
    reference = fashion_reference(which=which)
    assert reference.shape == (2000, 64) and reference.dtype == torch.float64
    assert reference.mean(0).abs().max() < most and (reference.std(0) - 1).abs().max() < 0.15
    assert torch.linalg.matrix_rank(torch.cov(reference.T)) == 64
    images = load("fashion_mnist", split="test").x[:50]
    again = embed(images, features.shipped_classifier(which), batch_size=7)
    torch.testing.assert_close(again, reference[:50], atol=1e-4, rtol=0)


def test_the_two_classifiers_see_different_things():
    """Neither set of features is a linear function of the other: each leaves a good part of the other open."""
    first, second = (fashion_reference(which=which) for which in features.CLASSIFIERS)
    for x, y in ((first, second), (second, first)):
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        left = y - x @ torch.linalg.lstsq(x, y).solution
        assert 0.1 < (left.var(0) / y.var(0)).mean() < 0.9
    with pytest.raises(ValueError) as error:
        FashionFeatures(which="third")
    assert "expected one of first, second" in one_line(error)
    with pytest.raises(ValueError) as error:
        fashion_reference(which="third")
    assert "expected one of first, second" in one_line(error)


@pytest.mark.parametrize("which", features.CLASSIFIERS)
def test_features_of_all_test_images(tmp_path, monkeypatch, which):
    """Those of the 2,000 vendored ones are among them, up to float16; a changed file is refused."""
    everything, part = fashion_reference(10_000, which), fashion_reference(which=which)
    assert everything.shape == (10_000, 64) and everything.dtype == torch.float64
    assert torch.cdist(part[:200], everything).amin(1).max() < 0.02
    assert frechet_distance(part, everything) < 0.5
    with pytest.raises(ValueError) as error:
        fashion_reference(500)
    assert "500 were asked for" in one_line(error)
    name = features.CLASSIFIERS[which][1]
    content = bytearray((features.ASSETS / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(features, "ASSETS", tmp_path)
    with pytest.raises(ValueError) as error:
        features.all_test_features.__wrapped__(which)
    assert f"{name} is damaged" in one_line(error)


def test_values_outside_the_range_are_clamped_not_rounded():
    x = load("fashion_mnist", n=4).x
    assert torch.equal(embed(x.where(x < 1, 5.0)), embed(x))
    assert not torch.equal(embed(x * 0.999), embed(x))  # less than one of 256 levels still counts


def test_damaged_or_missing_classifier(tmp_path, monkeypatch):
    good = features.ASSETS
    monkeypatch.setattr(features, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        FashionFeatures()
    assert "classifier.json is missing" in one_line(error)
    for name in ("classifier.json", "classifier.safetensors"):
        shutil.copy(good / name, tmp_path)
    FashionFeatures()
    weights = tmp_path / "classifier.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError) as error:
        FashionFeatures()
    assert "classifier.safetensors is damaged" in one_line(error)
    (tmp_path / "classifier.json").write_text("{}")
    with pytest.raises(ValueError) as error:
        FashionFeatures()
    assert "classifier.json is damaged" in one_line(error)


def test_own_feature_module_is_used_and_left_in_its_mode():
    class Mean(nn.Module):
        def forward(self, x):
            assert not self.training and x.dtype == torch.float32
            return x.flatten(2).mean(2)

    module = Mean()
    x = draw(300, 3, 4, 4)
    expected = x.float().mean((2, 3)).double()
    assert torch.allclose(embed(x, module), expected) and module.training
    assert frechet_distance(x + 1, x, features=module) == pytest.approx(
        3, rel=1e-5
    )  # three means moved by 1


# ---- Frechet and kernel distance


def test_frechet_distance_of_gaussians():
    x = draw(100, 3)
    x = (x - x.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(x.T))
    ).T  # mean 0, covariance 1
    scale, shift = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, -2.0, 0.0])
    # commuting covariances: |shift|^2 + sum (scale - 1)^2
    assert frechet_distance(x * scale + shift, x) == pytest.approx(5 + 17, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    # a rotation does not commute: compare with the formula by an independent matrix root
    y = draw(100, 3, seed=1) @ draw(3, 3, seed=2)
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    from scipy.linalg import sqrtm

    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(
        a + b - 2 * sqrtm(a @ b).real
    )
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    x, y = draw(40, 3), draw(40, 3, seed=1) + 0.5

    def kernel(a, b):
        return (a @ b.T / 3 + 1) ** 3

    off = ~torch.eye(40, dtype=torch.bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    assert kernel_distance(x, y, subset_size=40, subsets=2) == pytest.approx(
        float(expected), rel=1e-9
    )


def test_kernel_distance_is_deterministic_and_leaves_the_generator_alone():
    x, y = draw(100, 5), draw(100, 5, seed=1)
    torch.manual_seed(3)
    first = kernel_distance(x, y, subset_size=20, seed=1)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(4)
    assert kernel_distance(x, y, subset_size=20, seed=1) == first
    assert kernel_distance(x, y, subset_size=20, seed=2) != first


def test_image_distances_rise_with_noise_from_their_floor():
    reference, x = fashion_reference(), load("fashion_mnist", n=500).x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = [embed(x + level * noise) for level in (0, 0.1, 0.3, 1)]
    frechet = [frechet_distance(f, reference) for f in found]
    kernel = [kernel_distance(f, reference, subset_size=500, subsets=2) for f in found]
    for values in (frechet, kernel):
        assert values == sorted(values) and values[1] > 4 * abs(values[0])
    floor = real_floor(frechet_distance, real_pairs("fashion_mnist", 500), pairs=4)
    assert 0.1 < floor.mean < 1 and frechet[0] < floor.mean + 6 * floor.std and floor.pairs == 4
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-6)
    assert abs(kernel[0]) < 0.01


@pytest.mark.parametrize(
    "call, word",
    [
        (
            lambda: frechet_distance(torch.zeros(64, 64), torch.zeros(99, 64)),
            "more than 64 samples",
        ),
        (
            lambda: frechet_distance(torch.zeros(99, 3), torch.zeros(99, 4)),
            "3 features and y has 4",
        ),
        (
            lambda: frechet_distance(torch.zeros(9, 3, 32, 32), torch.zeros(9, 3, 32, 32)),
            "(n, 1, 28, 28)",
        ),
        (
            lambda: frechet_distance(torch.full((99, 3), float("inf")), torch.zeros(99, 3)),
            "297 NaN or infinite",
        ),
        (
            lambda: frechet_distance(
                torch.zeros(9, 1, 28, 28, dtype=torch.uint8), torch.zeros(9, 3)
            ),
            "uint8",
        ),
        (
            lambda: kernel_distance(torch.zeros(9, 3), torch.zeros(8, 3), subset_size=9),
            "samples, 8; got 9",
        ),
        (lambda: kernel_distance(torch.zeros(9, 3), torch.zeros(1, 3)), "number of samples, 1"),
        (
            lambda: kernel_distance(torch.zeros(9, 3), torch.zeros(9, 3), subsets=0),
            "subsets must be",
        ),
        (lambda: sliced_w2(torch.zeros(9, 3), torch.zeros(9, 3), n_projections=0), "n_projections"),
        (lambda: embed(torch.zeros(4, 1, 8, 8), nn.Flatten(0)), "expected (n, d)"),
        (lambda: real_floor(w2, real_pairs("spiral"), pairs=1), "at least 2 pairs"),
        (lambda: real_pairs("digits"), "fashion_mnist"),
        (lambda: real_pairs("digits"), "no pairs for 'digits'; expected one of eight_gaussians"),
        (lambda: real_pairs("mnist"), "unknown data set 'mnist'"),
        (lambda: real_pairs("spiral", 2.5), "n must be a whole number"),
        (lambda: w2([[0.0, 1.0]], {"x": 1}), "y is a dict"),
        (lambda: real_pairs("fashion_mnist", 10_001)(0), "10000 training images"),
    ],
)
def test_feature_distances_refuse(call, word):
    with pytest.raises(ValueError) as error:
        call()
    assert word in one_line(error)


# ---- floors


def test_real_floor_is_the_mean_over_independent_pairs():
    values = iter([1.0, 2.0, 6.0])
    floor = real_floor(lambda x, y: next(values), lambda i: (None, None), pairs=3)
    assert floor == (3.0, pytest.approx(7**0.5), 3)
    x, y = real_pairs("eight_gaussians", 300)(0)
    again, other = real_pairs("eight_gaussians", 300)(0), real_pairs("eight_gaussians", 300)(1)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    for a, b in ((x, y), (x, other[0]), (y, other[1]), (x, other[1])):
        assert not torch.equal(a, b)
    # W2 between two draws falls as they grow
    small, large = (real_floor(w2, real_pairs("spiral", n), pairs=3).mean for n in (50, 800))
    assert 0.05 < large < 0.7 * small


# ---- the support


def test_support_of_points_on_a_line():
    """Data at every whole number: fresh points, uniform, are up to 1/2 from one, and 80 % of them within 0.4."""
    known = torch.arange(-10.0, 11)[:, None]
    fresh = 20 * torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0)) - 10
    one = Support(known, fresh, inside=0.8)
    assert one.radius == pytest.approx(0.4, abs=0.005)
    assert one.off(torch.tensor([[0.0], [0.3], [0.5], [-10.3], [-10.5], [99.0]])) == 0.5
    assert one.off(fresh) == pytest.approx(0.2, abs=0.001)
    for call, words in (
        (lambda: Support(known, fresh[:99]), "at least 100 fresh data, got 99"),
        (lambda: one.off(torch.zeros(3, 2)), "x has 2 dimensions and y has 1"),
        (lambda: one.off(torch.full((3, 1), float("nan"))), "NaN"),
        (lambda: off_support(known, "digits"), "no support is known for 'digits'; expected one of"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in one_line(error)


def test_off_support_counts_what_w2_does_not_see():
    """Of eight Gaussians: 1 % of real points by definition; of points within two deviations of a centre none, of
    points halfway between two centres all."""
    real = load("eight_gaussians", 20_000, "test", seed=3).x
    centres, std = data.modes("eight_gaussians")
    away = torch.cdist(real.double(), centres).amin(1)
    assert off_support(real, "eight_gaussians") == pytest.approx(0.01, abs=0.003)
    assert off_support(real[away < 2 * std], "eight_gaussians") == 0
    between = (centres + centres.roll(1, 0)) / 2
    assert off_support(between, "eight_gaussians") == 1
    # a twentieth of the points on bridges: many times as many off the support, and W2 within its luck
    bridged = real[:2000].clone()
    bridged[:100] = (0.4 * centres[:1] + 0.6 * centres[1:2]).float()
    fresh = load("eight_gaussians", 2000, "test", seed=4).x
    assert off_support(bridged, "eight_gaussians") > 5 * off_support(real[:2000], "eight_gaussians")
    assert w2(bridged, fresh) < 2 * w2(real[:2000], fresh)


def test_a_law_of_your_own_has_pairs(monkeypatch):
    """What ``real_pairs`` asks is an attribute of the registered set, not a list of names."""
    monkeypatch.setattr(data.registry, "DATASETS", dict(data.DATASETS))

    @register_dataset("cube", seed_id=100, kind="draws")
    def cube(n, rng):
        return rng.uniform(-1, 1, (n, 3)), None

    x, y = real_pairs("cube", np.int64(200))(0)
    assert x.shape == y.shape == (200, 3) and not torch.equal(x, y)
    assert 0 < real_floor(w2, real_pairs("cube", 100), pairs=2).mean < 1


@pytest.mark.parametrize(
    "call, value",
    [
        (lambda: w2(*real_pairs("spiral", 400)(3)), 0.25024067746026063),
        (lambda: sliced_w2(*real_pairs("spiral", 400)(3)), 0.11077449579485422),
        (lambda: frechet_distance(*real_pairs("fashion_mnist", 600)(2)), 0.49145852449058225),
        (
            lambda: kernel_distance(
                *real_pairs("fashion_mnist", 600)(2), subset_size=200, subsets=3
            ),
            0.003064327743627674,
        ),
    ],
    ids=["w2", "sliced_w2", "frechet", "kernel"],
)
def test_values_are_those_of_earlier_releases(call, value):
    assert call() == pytest.approx(value, rel=1e-5)


def test_any_whole_number_is_a_seed():
    x, y = draw(40, 4), draw(40, 4, seed=1)
    for metric in (
        lambda seed: sliced_w2(x, y, n_projections=np.int32(9), seed=seed),
        lambda seed: kernel_distance(x, y, subset_size=9, subsets=np.int32(2), seed=seed),
    ):
        assert metric(np.int64(3)) == metric(torch.tensor(3)) == metric(3)
        with pytest.raises(ValueError) as error:
            metric(-1)
        assert "seed must be a whole number of at least 0" in one_line(error)


# ---- the Inception FID


def test_inception_fid_says_where_the_weights_belong(tmp_path, monkeypatch):
    images = torch.zeros(4, 1, 8, 8)
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05-6726825d.pth"):
        inception_fid(images, images, weights=tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"bad")
    with pytest.raises(ValueError, match="6726825d"):
        inception_fid(images, images, weights=tmp_path / "bad.pth")

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(FileNotFoundError) as error:
        inception_fid(images, images)
    assert "could not be downloaded" in one_line(error) and "hub" in str(error.value)


def test_inception_features(tmp_path, monkeypatch):
    """The whole of it but the published weights, which cannot be shipped: random ones in a file of that form."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("inception", ["2048"])
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(
        inception, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    )
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = inception.inception_features(inception.inception_network(file), images)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(found, network(pixels)[0].double())
    assert found.shape == (2, 2048) and not torch.allclose(found[0], found[1])
    with pytest.raises(
        ValueError, match=r"need images \(n, 1 or 3, H, W\), got shape \(2, 4, 8, 8\)"
    ):
        inception.inception_features(network, torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="more than 2048"):
        inception_fid(images, images, weights=file)
    torch.save({"a": torch.nn.Linear(1, 1)}, file)  # a pickle that would run code
    monkeypatch.setattr(
        inception, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    )
    with pytest.raises(pickle.UnpicklingError):
        inception.inception_network(file)
