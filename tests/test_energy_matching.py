"""Distribution matching without a teacher: the distance, the spaces, and what a run with it does."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from exact import MEAN, STD, GaussianNet, one_line, randomise
from scipy.stats import energy_distance
from torch import nn

import iflow_lib as ifl
from iflow_lib.data import TensorData, mapped
from iflow_lib.objectives import EnergyMatching, feature_spaces, paired_energy_distance
from iflow_lib.objectives.energy import end_of_jump
from iflow_lib.objectives.feature_spaces import (
    RandomFilters,
    RandomWaves,
    covariance,
    feature_space,
    inverse_root,
    mean_distance,
)
from iflow_lib.training.loop import Trainer

IDENTITY = ifl.IntegralIdentity(derivative="difference")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(n=40, seed=0):
    return TensorData(normal(n, 1, 8, 8, seed=seed), torch.arange(n) % 3)


def points(n=200):
    return TensorData(normal(n, 2), torch.arange(n) % 3)


def mlp(path=None, seed=0, **network):
    torch.manual_seed(seed)
    net = randomise(ifl.MLP(**{"dim": 2, "hidden": 16, "layers": 2} | network))
    return ifl.FlowMap(net, path or ifl.RectifiedFlow())


def config(**settings):
    known = {"steps": 6, "batch_size": 16, "device": "cpu", "progress": False}
    return ifl.TrainConfig(**known | settings)


# ---------------------------------------------------------------- the distance


def test_the_distance_is_the_double_sum():
    x, y = normal(9, 3), normal(9, 3, seed=1)
    pairs = [(i, j) for i, j in itertools.product(range(9), repeat=2) if i != j]

    def far(a, b):
        return sum(math.dist(a[i].tolist(), b[j].tolist()) for i, j in pairs) / len(pairs)

    expected = 2 * far(x, y) - far(x, x) - far(y, y)
    assert float(paired_energy_distance(x, y)) == pytest.approx(expected, rel=1e-12)


def test_the_distance_in_one_dimension_is_that_of_scipy():
    """Scipy's is the root, and its means have the pairs of the same row, which ours leave out."""
    n, x, y = 50, normal(50, 1), 2 * normal(50, 1, seed=1) + 0.3
    squared = energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    same_row = 2 * float((x - y).abs().sum())
    ours = float(paired_energy_distance(x, y)) * n * (n - 1)
    assert ours + same_row == pytest.approx(n * n * squared, rel=1e-9)


def far_of_normals(mean, std):
    """E|N(mean, std^2)|."""
    return std * math.sqrt(2 / math.pi) * math.exp(-((mean / std) ** 2) / 2) + mean * math.erf(
        mean / std / math.sqrt(2)
    )


def batches(net, objective, batch, count, path=None, calls=1):
    """Distances D and their gradients by gain, shift and tilt, of many batches of the Gaussian law."""
    model = ifl.FlowMap(net, path or ifl.RectifiedFlow())
    objective.prepare(model, TensorData(MEAN + STD * normal(2000, *net.data_shape, seed=9)))
    g, found = torch.Generator().manual_seed(3), []
    for _ in range(count):
        x_0 = MEAN + STD * torch.randn(batch, *net.data_shape, generator=g, dtype=torch.float64)
        drawn = objective.draw(model, ifl.Batch(x_0), g)
        distance = objective.distance(model, x_0, drawn["ends_noise"], drawn.get("ends_middle"))
        slopes = torch.autograd.grad(distance, [net.gain, net.shift, net.tilt])
        found.append([distance.item(), *map(float, slopes)])
    return np.array(found)


@pytest.mark.parametrize("gain, shift", [(1.0, 0.0), (0.8, 0.0), (1.0, 0.3), (1.3, -0.2)])
def test_the_distance_of_a_wrong_jump_is_the_closed_form(gain, shift):
    """Ends of a Gaussian network are Gaussian, so every mean of D is known."""
    net = GaussianNet(shape=(1,))
    with torch.no_grad():
        net.gain.fill_(gain)
        net.shift.fill_(shift)
    # y = z - u(z, 1, 0), and u = gain ((1 - STD) z - MEAN) + shift
    mean, std = gain * MEAN - shift, abs(1 - gain * (1 - STD))
    expected = (
        2 * far_of_normals(mean - MEAN, math.hypot(std, STD))
        - far_of_normals(0, math.sqrt(2) * std)
        - far_of_normals(0, math.sqrt(2) * STD)
    )
    found = batches(net, EnergyMatching(IDENTITY), 256, 60)[:, 0]
    assert abs(found.mean() - expected) < 4 * found.std() / 60**0.5
    assert (expected < 1e-12) == (gain == 1 and shift == 0)


@pytest.mark.parametrize("space", feature_spaces.SPACES)
@pytest.mark.parametrize("calls", [(1,), (2,), (1, 2)])
def test_the_exact_flow_map_is_left_alone(space, calls):
    """The gradient of D is zero in the mean where the map is exact, and leads back where it is not."""
    objective = EnergyMatching(IDENTITY, space=space, calls=calls)
    exact = batches(GaussianNet(), objective, 128, 60)
    errors = exact.std(0) / 60**0.5
    assert (np.abs(exact.mean(0)) < 4 * errors).all(), (exact.mean(0), errors)
    for i, name in enumerate(("gain", "shift", "tilt"), start=1):
        for change in (-0.2, 0.2):
            net = GaussianNet()
            with torch.no_grad():
                getattr(net, name).add_(change)
            off = batches(net, objective, 128, 60)
            assert off[:, 0].mean() > 4 * off[:, 0].std() / 60**0.5
            slope = off[:, i].mean() / change
            assert slope > 4 * off[:, i].std() / abs(change) / 60**0.5, (name, change)


def test_the_base_and_the_distance_are_both_at_their_minimum_at_the_exact_flow_map():
    """Gradients of the whole loss, summed over many batches: those of the exact map are noise."""
    net, g = GaussianNet(), torch.Generator().manual_seed(0)
    model = ifl.FlowMap(net, ifl.RectifiedFlow())
    objective = EnergyMatching(ifl.IntegralIdentity(derivative="jvp"), weight=3.0)
    objective.prepare(model, TensorData(MEAN + STD * normal(500, 2)))
    slopes = []
    for _ in range(200):
        x_0 = MEAN + STD * torch.randn(64, 2, generator=g, dtype=torch.float64)
        loss = objective(model, x_0, g)
        slopes.append([float(s) for s in torch.autograd.grad(loss, [net.gain, net.shift])])
    slopes = np.array(slopes)
    assert (np.abs(slopes.mean(0)) < 4 * slopes.std(0) / 200**0.5).all()


@pytest.mark.parametrize(
    "path", [ifl.RectifiedFlow(), ifl.VarianceExploding(), ifl.PoissonFlow(8)], ids=lambda p: p.name
)
def test_the_loss_is_base_and_distance_and_jumps_start_where_sampling_does(path):
    model, x_0 = mlp(path), normal(12, 2, dtype=torch.float32)
    plain, both = ifl.ConsistencyTraining(), EnergyMatching(ifl.ConsistencyTraining(), 3.0)
    both.prepare(model, TensorData(x_0))
    drawn = both.draw(model, ifl.Batch(x_0, step=3, steps=9), torch.Generator().manual_seed(1))
    same = plain.draw(model, ifl.Batch(x_0, step=3, steps=9), torch.Generator().manual_seed(1))
    assert all(same[k] is None or torch.equal(drawn[k], same[k]) for k in same)
    loss, nothing = both.loss(model, **drawn)
    zero = torch.zeros(12)
    start = drawn["ends_noise"] * path.tau_max
    ends = start - path.tau_max * model(start, zero + path.tau_max, zero)
    expected = plain.loss(model, **same)[0] + 3 * paired_energy_distance(ends, x_0)
    assert nothing is None and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    t_max = torch.full((12,), path.t_max)
    prior = path.prior((12, 2), generator=torch.Generator().manual_seed(2))
    at_start = path.to_line(prior, t_max)[0]
    noise = path.noise((12, 2), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(at_start, noise * path.tau_max, rtol=1e-5)
    sampled = path.scale(zero)[0] * end_of_jump(model, at_start, zero + path.tau_max, zero)
    jumped = model.jump(x=prior, t=t_max, s=zero)
    assert torch.allclose(sampled, jumped, rtol=1e-3, atol=1e-3)


def test_two_jumps_meet_at_one_time_of_a_batch():
    model, x_0 = mlp(), normal(12, 2, dtype=torch.float32)
    objective = EnergyMatching(IDENTITY, calls=(1, 2))
    objective.prepare(model, TensorData(x_0))
    g, times = torch.Generator().manual_seed(0), []
    for _ in range(20):
        drawn = objective.draw(model, ifl.Batch(x_0), g)
        middle, z = drawn["ends_middle"], drawn["ends_noise"]
        assert middle.shape == (12,) and len(middle.unique()) == 1
        times.append(float(middle[0]))
    assert 0.05 < np.mean(times) < 0.95 and len(set(times)) == 20
    one, zero = torch.ones(12), torch.zeros(12)
    half = z - (1 - middle[0]) * model(z, one, middle)
    ends = [z - model(z, one, zero), half - middle[0] * model(half, middle, zero)]
    expected = sum(paired_energy_distance(y, x_0).item() for y in ends) / 2
    assert objective.distance(model, x_0, z, middle).item() == pytest.approx(expected, rel=1e-5)


def test_noise_is_fresh_where_that_of_the_batch_depends_on_the_data():
    """Coupled, or paired with its examples: D compares what is independent."""
    model, x_0 = mlp(), normal(30, 2, dtype=torch.float32)
    objective = EnergyMatching(IDENTITY)
    objective.prepare(model, TensorData(x_0))
    for given in ({"noise": x_0.clone()}, {"pair": lambda z: x_0.clone()}):
        drawn = objective.draw(model, ifl.Batch(x_0, **given), torch.Generator().manual_seed(0))
        assert torch.equal(drawn["z"], x_0)
        assert abs(float((drawn["ends_noise"] * x_0).mean())) < 0.4
    run = ifl.fit(mlp(), objective, points(), config(coupling="ot"))
    assert np.isfinite(run.history.loss).all()
    coupled = TensorData(normal(50, 2), noise=normal(50, 2, seed=1))
    assert ifl.fit(mlp(), EnergyMatching(ifl.Distillation()), coupled, config()).model


# ---------------------------------------------------------------- classes


def test_a_model_that_confuses_its_classes_is_seen():
    """Ends that are right as a whole and wrong within each class: D of the joint law is above zero."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    x = torch.randn(400, 1, generator=g, dtype=torch.float64) + 6.0 * labels[:, None]

    class Ends(nn.Module):
        data_shape, classes = (1,), 2

        def __init__(self, swapped):
            super().__init__()
            self.swapped = swapped
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, s, labels):
            known = labels >= 0
            # withheld: the sign of the noise decides
            which = torch.where(known, (labels != 0) != self.swapped, x[:, 0] > 0)
            # from N(0, 1) to the class: the end is x - u
            return torch.where(known[:, None], -6.0 * which[:, None], 0 * x) + 0 * self.weight

    found = {}
    for swapped, withheld in itertools.product((False, True), (False, True)):
        model = ifl.FlowMap(Ends(swapped).double(), ifl.RectifiedFlow())
        objective = EnergyMatching(IDENTITY)
        objective.__dict__.update(_tau_max=1.0, _factor=1.0, _apart=3.0, _space=nn.Flatten())
        given = torch.where(torch.arange(400) < 20, -1, labels) if withheld else labels
        z = torch.randn(400, 1, generator=g, dtype=torch.float64)
        found[swapped, withheld] = objective.distance(model, x, z, labels=given).item()
    assert abs(found[False, False]) < 0.1 and abs(found[False, True]) < 0.2
    assert found[True, False] > 0.5 and found[True, True] > 0.5
    blind = TensorData(x).x.double()
    ends = torch.randn(400, 1, generator=g, dtype=torch.float64) + 6.0 * (1 - labels[:, None])
    assert abs(float(paired_energy_distance(ends, blind))) < 0.1  # without classes nothing is seen


def test_classes_are_as_far_apart_as_examples():
    data = points()
    model = mlp(classes=3)
    objective = EnergyMatching(IDENTITY, space="whitened")
    objective.prepare(model, data)
    same, labels = torch.zeros(4, 2), torch.tensor([-1, 0, 1, 2])
    apart = torch.pdist(objective.points(same, labels, 3))
    assert torch.allclose(apart, torch.full((6,), mean_distance(data.x)), rtol=1e-5)
    assert objective.points(same, None, 0).shape == (4, 2)


def test_a_model_without_classes_takes_no_notice_of_labels():
    model, x_0, z = mlp(), normal(10, 2).float(), normal(10, 2, seed=1).float()
    objective = EnergyMatching(IDENTITY)
    objective.prepare(model, TensorData(x_0))
    one, other = (objective.distance(model, x_0, z, labels=y) for y in (None, torch.arange(10)))
    assert torch.equal(one, other)


# ---------------------------------------------------------------- spaces


def tilted(n=3000):
    x = normal(n, 4) @ torch.tensor(
        [[3.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0.2, 0.1], [0, 0, 0, 0.5]], dtype=torch.float64
    )
    return TensorData(x + torch.tensor([100.0, -3, 0, 1], dtype=torch.float64))


def test_whitened_data_have_the_covariance_one():
    data = tilted()
    assert torch.allclose(covariance(data), torch.cov(data.x.double().T, correction=0), rtol=1e-9)
    module = feature_spaces.Whitened(data, 1e-9)
    white = (data.x.double() - data.x.double().mean(0)) @ module.matrix.double()
    assert torch.allclose(torch.cov(white.T), torch.eye(4, dtype=torch.float64), atol=2e-3)
    assert torch.allclose(module(data.x.double()), data.x.double() @ module.matrix.double())
    matrix = covariance(data)
    root = inverse_root(matrix, 1e-2)
    ridged = matrix + 1e-2 * torch.linalg.eigvalsh(matrix)[-1] * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(
        root @ ridged @ root, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_a_covariance_is_taken_by_blocks_of_a_mapped_file(tmp_path, monkeypatch):
    data, released = tilted(), []
    np.save(tmp_path / "x.npy", data.x.numpy())
    there = TensorData(np.load(tmp_path / "x.npy", mmap_mode="c"))
    assert there.mapped is not None
    monkeypatch.setattr(mapped, "release", released.append)
    small = lambda x, m=None: iter([x[:1000], x[1000:2999], x[2999:]])  # noqa: E731
    whole = covariance(there)
    assert len(released) >= 2
    monkeypatch.setattr(feature_spaces, "row_blocks", small)
    assert torch.allclose(covariance(there), whole, rtol=1e-10)
    assert torch.allclose(whole, covariance(data), rtol=1e-12)


@pytest.mark.parametrize("data", [points(), images(), tilted()], ids=["2", "1x8x8", "4"])
@pytest.mark.parametrize("space", feature_spaces.SPACES)
def test_every_space_has_the_scale_of_the_data(space, data):
    module, factor, apart = feature_space(space, data, 1e-3, 0)
    rows = data.x[:1024] if len(data) <= 1024 else mapped.spaced_rows(data.x, 1024)
    there = mean_distance(factor * module(rows))
    assert there == pytest.approx(apart, rel=1e-4) and apart == pytest.approx(mean_distance(rows))
    assert not list(module.parameters())


@pytest.mark.parametrize("data", [points(), images()], ids=["vectors", "images"])
def test_random_features_are_those_of_their_seed(data):
    first, again, other = (feature_space("random", data, 1e-3, seed)[0] for seed in (0, 0, 1))
    state = torch.get_rng_state()
    assert torch.equal(first(data.x), again(data.x))
    assert not torch.allclose(first(data.x), other(data.x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels, size", [(1, (8, 8)), (3, (32, 32)), (1, (28, 14)), (2, (3, 5))])
def test_random_filters_see_every_pixel_at_several_sizes(channels, size):
    module = RandomFilters(channels, torch.Generator().manual_seed(0)).double()
    x = normal(2, channels, *size).requires_grad_()
    features = module(x)
    assert features.ndim == 2 and features.shape[1] % 32 == 0
    features[0].sum().backward()
    assert bool((x.grad[0] != 0).all()) and not bool(x.grad[1].any())
    filters = features.shape[1] // 32
    assert filters <= 3 * 25
    if min(size) >= 14:
        assert filters >= 3 * 10


def test_waves_see_what_is_near():
    """Points closer than the shortest length are as far apart, up to a factor, as they are; far ones all alike."""
    module = RandomWaves(2, 1.0, torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, 0], [0.01, 0], [0.02, 0], [50.0, 0], [0, 70.0]])
    far = torch.cdist(module(x), module(x))
    assert float(far[0, 2] / far[0, 1]) == pytest.approx(2, rel=0.01)
    assert float(far[0, 3] / far[0, 4]) == pytest.approx(1, rel=0.15)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("space", feature_spaces.SPACES)
@pytest.mark.parametrize("kind", ["vectors", "images", "classes"])
def test_a_run_that_was_stopped_is_the_run_that_was_not(space, kind, tmp_path):
    """Bit for bit, with nothing of the space in its checkpoints."""
    network = {"classes": 3} if kind == "classes" else {}

    def run(folder, steps=None):
        torch.manual_seed(0)
        unet = ifl.UNet(channels=1, size=8, width=8, blocks=1)
        model = (
            ifl.FlowMap(randomise(unet), ifl.RectifiedFlow())
            if kind == "images"
            else mlp(**network)
        )
        objective = EnergyMatching(IDENTITY, space=space, calls=(1, 2))
        data = images() if kind == "images" else points()
        settings = config(out_dir=str(tmp_path / folder), checkpoint_every=3, log_every=1)
        if steps is None:
            return ifl.fit(model, objective, data, settings, resume="auto")
        own = Trainer.one_step

        def one_step(self):
            if self.step == steps:
                raise KeyboardInterrupt
            own(self)

        Trainer.one_step = one_step
        try:
            return ifl.fit(model, objective, data, settings, resume="auto")
        finally:
            Trainer.one_step = own

    whole = run("whole")
    stopped = run("parts", steps=4)
    assert stopped.manifest["steps_done"] < 6
    rest = run("parts")
    assert rest.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()):
        assert torch.equal(a, b)
    assert EnergyMatching(IDENTITY).state() == {}
    said = whole.manifest["objective"]
    assert said["name"] == "EnergyMatching" and said["base"]["name"] == "IntegralIdentity"
    assert said["space"] == space and whole.model.learned == "jump"


def test_it_learns():
    """From a model whose samples are too wide, a few steps of D alone in the weights lead to the data."""
    data = points(500)
    model = mlp(hidden=32)
    start = ifl.fit(model, IDENTITY, data, config(steps=60, batch_size=64)).model
    after = ifl.FlowMap(copy.deepcopy(start.net).requires_grad_(True), start.path)
    objective = EnergyMatching(IDENTITY, weight=30.0)
    run = ifl.fit(after, objective, data, config(steps=150, batch_size=64, lr=3e-3, ema=0.9))

    def away(m):
        return ifl.metrics.energy_distance(ifl.sample(m, 500, 1, seed=1).x, data.x)

    assert away(run.model) < 0.5 * away(start)


class Seen(nn.Module):
    """A network with dropout or batch normalisation. All of them note in which mode it is called."""

    data_shape, modes = (2,), []

    def __init__(self, kind):
        super().__init__()
        part = nn.Dropout(0.5) if kind == "dropout" else nn.BatchNorm1d(16)
        self.layers = nn.Sequential(nn.Linear(4, 16), part, nn.Tanh(), nn.Linear(16, 2))
        part.register_forward_hook(lambda part, *_: Seen.modes.append(part.training))

    def forward(self, x, t, s):
        return self.layers(torch.cat([x, t[:, None], s[:, None]], 1))


@pytest.mark.parametrize("kind", ["dropout", "BatchNorm"])
def test_networks_that_draw_or_keep_statistics(kind):
    """D moves neither the generators nor the statistics, and takes the running ones as `sample` does."""
    torch.manual_seed(0)
    net = ifl.FlowMap(Seen(kind), ifl.RectifiedFlow()).train()
    x_0, found = points().x[:32], []
    for objective in (IDENTITY, EnergyMatching(IDENTITY, calls=(1, 2))):
        twin = copy.deepcopy(net)
        objective.prepare(twin, points())
        Seen.modes.clear()
        torch.manual_seed(3)
        objective(twin, x_0, torch.Generator().manual_seed(0)).backward()
        found.append((torch.rand(1), dict(twin.named_buffers()), list(Seen.modes)))
    (plain, buffers, modes), (both, same, all_modes) = found
    assert torch.equal(plain, both)
    assert all(torch.equal(buffers[key], same[key]) for key in buffers)
    assert all_modes == [kind == "dropout"] * 3 + modes
    run = ifl.fit(net, EnergyMatching(IDENTITY), points(), config())
    assert np.isfinite(run.history.loss).all()
    assert not EnergyMatching(IDENTITY).compiles(net)


def test_images_in_channels_last_and_with_a_teacher():
    torch.manual_seed(0)
    nets = [randomise(ifl.UNet(channels=1, size=8, width=8, blocks=1, classes=3)) for _ in range(2)]
    teacher, model = (ifl.FlowMap(net, ifl.VarianceExploding()) for net in nets)
    taught = ifl.FlowMapDistillation(teacher=teacher, derivative="difference")
    for layout, space in itertools.product((True, False), ("random", "whitened")):
        run = ifl.fit(
            copy.deepcopy(model),
            EnergyMatching(taught, space=space),
            images(),
            config(channels_last=layout, label_dropout=0.3),
        )
        assert np.isfinite(run.history.loss).all()
        assert run.manifest["objective"]["base"]["teacher"]["network"] == "UNet"


def test_the_rows_of_one_process_have_a_distance_of_the_same_mean():
    """What several processes do: D over the rows of each, then the mean."""
    net, g = GaussianNet(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.gain.fill_(0.8)
    model = ifl.FlowMap(net, ifl.RectifiedFlow())
    objective = EnergyMatching(IDENTITY)
    objective.prepare(model, TensorData(MEAN + STD * normal(500, 2)))
    apart = []
    for _ in range(300):
        x_0 = MEAN + STD * torch.randn(16, 2, generator=g, dtype=torch.float64)
        z = torch.randn(16, 2, generator=g, dtype=torch.float64)
        with torch.no_grad():
            whole = objective.distance(model, x_0, z)
            shares = [objective.distance(model, x_0[i::2], z[i::2]) for i in (0, 1)]
        apart.append(float(whole - sum(shares) / 2))
    assert abs(np.mean(apart)) < 4 * np.std(apart) / 300**0.5 and np.std(apart) > 0


# ---------------------------------------------------------------- what is refused


class OwnCall(ifl.FlowMatching):
    learns = "jump"

    def __call__(self, model, batch, generator=None):
        return torch.zeros(())


class WithoutData(ifl.Objective):
    learns = "jump"

    def config(self):
        return {}

    def draw(self, model, batch, generator):
        return {"x": batch.x_0}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"base": ifl.FlowMatching()}, "FlowMatching teaches none"),
        ({"base": ifl.X0Regression()}, "X0Regression teaches none"),
        ({"base": ifl.X0Regression("self")}, "X0Regression teaches none"),
        ({"base": ifl.Objective()}, 'learns = "jump"'),
        ({"base": ifl.IntegralIdentity}, "got IntegralIdentity: give an instance"),
        ({"base": None}, "got NoneType"),
        ({"base": OwnCall()}, "OwnCall has its own __call__"),
        ({"base": EnergyMatching()}, "EnergyMatching matches already"),
        (
            {"base": ifl.ConsistencyTraining(), "calls": (1, 2)},
            "ConsistencyTraining teaches jumps to the data alone: give calls=(1,)",
        ),
        ({"weight": -1}, "weight must be at least 0, got -1"),
        ({"weight": math.nan}, "weight must be at least 0, got nan"),
        ({"weight": math.inf}, "weight must be"),
        ({"weight": "much"}, "weight must be at least 0, got a str"),
        ({"space": "pixels"}, "space must be one of 'data', 'whitened', 'random'; got 'pixels'"),
        ({"calls": ()}, "calls must be (1,), (2,) or (1, 2), got ()"),
        ({"calls": 1}, "calls must be (1,), (2,) or (1, 2), got 1"),
        ({"calls": (1, 1)}, "calls must be"),
        ({"calls": (3,)}, "calls must be"),
        ({"ridge": 0}, "ridge must be in [1e-09, 1], got 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError) as error:
        EnergyMatching(**settings)
    assert words in one_line(error)


@pytest.mark.parametrize(
    "settings, changes, words",
    [
        ({}, {"batch_size": 1}, "at least two examples a step, not 1"),
        ({"space": "whitened"}, {"x": torch.ones(20, 2)}, "all examples are the same"),
        ({"space": "random"}, {"x": torch.ones(20, 2)}, "all examples are the same"),
        ({"space": "random"}, {"x": torch.ones(1, 2)}, "all examples are the same"),
        ({}, {"anchor": True}, "without an anchor"),
        ({"base": WithoutData()}, {}, "draw of WithoutData must give x_0"),
    ],
)
def test_bad_runs(settings, changes, words):
    model = mlp(anchor=changes.get("anchor", False))
    x = changes.get("x", points().x)
    with pytest.raises(ValueError) as error:
        ifl.fit(
            model,
            EnergyMatching(**settings),
            x,
            config(batch_size=changes.get("batch_size", 16)),
        )
    assert words in one_line(error)


def test_a_covariance_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(feature_spaces, "MOST_ELEMENTS", 3)
    with pytest.raises(ValueError) as error:
        feature_space("whitened", tilted(), 1e-3, 0)
    assert "at most 3 elements: give space='random'" in one_line(error)


def test_constant_data_can_be_matched_as_they_are():
    run = ifl.fit(mlp(), EnergyMatching(IDENTITY), torch.ones(20, 2), config())
    assert np.isfinite(run.history.loss).all()


def test_settings_and_what_is_learned():
    objective = EnergyMatching(ifl.ConsistencyTraining(), 2.0, "random", seed=3)
    assert objective.learns == "jump_to_data" and EnergyMatching().learns == "jump"
    said = objective.config()
    assert said["base"] == {"name": "ConsistencyTraining", **ifl.ConsistencyTraining().config()}
    rest = {k: v for k, v in said.items() if k != "base"}
    assert EnergyMatching(ifl.ConsistencyTraining(), **rest) == objective
    assert objective.captures() and EnergyMatching(calls=[1, 2]).calls == (1, 2)
    assert ifl.pretrained.learned_by({"name": "EnergyMatching", **said}) == "jump_to_data"
