"""The velocity target of a whole batch: exact, of the same mean as that of a pair, and taken only where that holds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from exact import MEAN, STD, column, one_line, randomise
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import iflow_lib as ifl
from iflow_lib.analytic import MixtureFlow
from iflow_lib.data import TensorData
from iflow_lib.objectives import velocity_target as module
from iflow_lib.objectives.base import Batch, on_line
from iflow_lib.paths import check_path
from iflow_lib.training.checkpoints import RunFolder
from iflow_lib.training.distributed import Processes

estimate = module.batch_velocity
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PATHS = {
    "rectified": ifl.RectifiedFlow(),
    "ve": ifl.VarianceExploding(),
    "pfgmpp": ifl.PoissonFlow(3),
    "vp": ifl.VariancePreserving(),
}


class Steady(ifl.RectifiedFlow):
    """A path of a user: noise that is uniform within a ball, without a word on its density."""

    def noise(self, shape, *, generator=None, device=None, dtype=None):
        z = super().noise(shape, generator=generator, device=device, dtype=dtype)
        return z / z.flatten(1).norm(dim=1).clamp(min=1).reshape(-1, *[1] * (z.ndim - 1))


class Told(Steady):
    """The same, with a density."""

    def radial_log_density(self, square, dim):
        return -2 * square


class Heavy(ifl.PoissonFlow):
    """Another noise than that of the class whose density it has."""

    def noise(self, *arguments, **options):
        return Steady().noise(*arguments, **options)


def draws(n, *shape, seed=0, path=PATHS["rectified"], dtype=torch.float64):
    """Data, noise and line times up to where the path ends."""
    g = torch.Generator().manual_seed(seed)
    x_0 = 1.5 * torch.randn(n, *shape, generator=g, dtype=dtype)
    z = path.noise((n, *shape), generator=g, dtype=dtype)
    t = (0.05 + 0.95 * torch.rand(n, generator=g, dtype=dtype)) * path.tau_max
    return x_0, z, t


def by_hand(x_0, z, t, density, count=None):
    """The same estimate in float64 with every difference in memory; count: which examples count for which (B, B)."""
    x, noise, t = x_0.double(), z.double(), t.double()
    apart = x[:, None] - x
    moved = noise[:, None] + ((1 - t) / t)[:, None, None] * apart
    log_weight = density(moved.square().sum(2))
    if count is not None:
        log_weight = log_weight.masked_fill(~count, -math.inf)
    w = torch.softmax(log_weight, 1)
    return noise - x + (w[:, :, None] * apart).sum(1) / t[:, None]


def normal(square):
    return -square / 2


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("name", PATHS)
def test_it_is_the_velocity_of_the_batch_as_a_law(name):
    path = PATHS[name]
    x_0, z, t = draws(20, 3, path=path)
    x, time = path.from_line(on_line(x_0, z, t), t)
    mean_x, mean_z = MixtureFlow(path, x_0).ends(x=x, t=time.clamp(max=path.t_max))
    found = estimate(path, x_0, z, t)
    torch.testing.assert_close(found, mean_z - mean_x, rtol=1e-8, atol=1e-8)
    off = (found - (z - x_0)).norm(dim=1)
    assert off.median() > 0.3  # many may have made a point


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_densities(dim):
    z = np.random.default_rng(0).standard_normal((40, dim)) * 3
    square, zero = torch.from_numpy((z**2).sum(1)), np.zeros(dim)
    laws = {path: stats.multivariate_normal(zero) for path in ("rectified", "ve", "vp")}
    laws["pfgmpp"] = stats.multivariate_t(zero, np.eye(dim), df=3)
    for name, law in laws.items():
        ours = PATHS[name].radial_log_density(square, dim).numpy()
        theirs = law.logpdf(z)
        np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], rtol=1e-9, atol=1e-9)
        assert np.ptp(ours) > 1


def test_images_in_any_layout_and_type():
    x_0, z, t = draws(12, 2, 3, 4)
    flat = estimate(PATHS["ve"], x_0.flatten(1), z.flatten(1), t)
    found = estimate(PATHS["ve"], x_0, z, t)
    assert torch.equal(found.flatten(1), flat)
    last = x_0.contiguous(memory_format=torch.channels_last)
    other = estimate(PATHS["ve"], last, z, t)
    torch.testing.assert_close(other, found)
    assert other.is_contiguous(memory_format=torch.channels_last)
    single = estimate(PATHS["ve"], x_0.float(), z.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- early and late, and far away


def crowd(dtype):
    """Data far from 0: some the same, some so near to each other that they differ in the last digits."""
    g = torch.Generator().manual_seed(0)
    x_0 = 100 + torch.randn(60, 2, generator=g, dtype=torch.float64)
    x_0[20:40] = x_0[:20] + 1e-4 * torch.randn(20, 2, generator=g, dtype=torch.float64)
    x_0[40:50] = x_0[50:] = x_0[:10]  # thirds, which do not add up in binary
    return x_0.to(dtype), torch.randn(60, 2, generator=g, dtype=torch.float64).to(dtype)


TIMES = (1e-30, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.3, 0.999, 1.0)


def errors(dtype, path, density):
    """Largest error at each time, in units of the velocity."""
    x_0, z = crowd(dtype)
    found = {}
    for time in TIMES:
        t = torch.full((60,), time, dtype=dtype)
        v, right = estimate(path, x_0, z, t).double(), by_hand(x_0, z, t, density)
        assert torch.isfinite(v).all(), time
        found[time] = float((v - right).abs().max() / right.abs().max())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rectified", "pfgmpp"])
def test_at_every_time_however_far_from_zero(dtype, name):
    density = {"rectified": normal, "pfgmpp": lambda q: -2.5 * torch.log1p(q / 3)}[name]
    bound = 2e-6 if dtype == torch.float32 else 1e-9
    found = errors(dtype, PATHS[name], density)
    assert max(found.values()) < bound, found


def test_near_neighbours_count_early():
    """So the test above would not pass if only the own example ever counted."""
    x_0, z = crowd(torch.float32)
    t = torch.full((60,), 1e-4)
    off = (estimate(PATHS["rectified"], x_0, z, t) - (z - x_0))[:40].norm(dim=1)
    assert off.median() > 0.1


def test_in_float32_neighbours_would_get_wrong_weights(monkeypatch):
    """As on mps: finite at any time, right where differences are not divided by the square of a small one."""
    monkeypatch.setattr(module, "working_type", lambda device: torch.float32)
    found = errors(torch.float32, PATHS["rectified"], normal)
    assert found[1e-4] > 1e-3
    assert max(found[t] for t in (0.3, 0.999, 1.0)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends(dtype):
    x_0, z = crowd(dtype)
    for path in PATHS.values():
        start = estimate(path, x_0, z, torch.zeros(60, dtype=dtype))
        assert torch.equal(start, z - x_0)
    end = estimate(PATHS["rectified"], x_0, z, torch.ones(60, dtype=dtype))
    torch.testing.assert_close(end, z - x_0.mean(0), rtol=1e-5, atol=1e-4)
    alone = estimate(PATHS["ve"], x_0[:1], z[:1], torch.full((1,), 0.5, dtype=dtype))
    assert torch.equal(alone, (z - x_0)[:1])


def test_examples_that_are_the_same_are_one():
    x_0, z, t = draws(10, 3)
    plain = estimate(PATHS["ve"], x_0, z, t)
    twice = estimate(PATHS["ve"], x_0.repeat(2, 1), z.repeat(2, 1), t.repeat(2))
    torch.testing.assert_close(twice[:10], plain, rtol=1e-10, atol=1e-10)
    same = x_0[:1].expand(10, 3)
    for time in TIMES:
        v = estimate(PATHS["ve"], same, z, torch.full((10,), time, dtype=torch.float64))
        assert torch.equal(v, z - same)
    x_0, z, _ = draws(30, 50)
    x_0[10:20] = x_0[20:] = x_0[:10]  # their squares may round to others
    early = estimate(PATHS["ve"], x_0, z, torch.full((30,), 1e-12, dtype=torch.float64))
    assert torch.equal(early, z - x_0)


def test_autocast_changes_nothing():
    x_0, z, t = draws(30, 4, dtype=torch.float32)
    plain = estimate(PATHS["pfgmpp"], x_0, z, t)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x_0 @ x_0.T).dtype == torch.bfloat16
        assert torch.equal(estimate(PATHS["pfgmpp"], x_0, z, t), plain)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor."""

    size = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        sizes = [a.numel() for a in tree_leaves(out) if isinstance(a, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return out


@pytest.mark.parametrize("labelled", [False, True])
def test_large_batches_are_cut(labelled):
    """Into equal parts, each as if it were alone; so neither time nor memory grows as B^2."""
    x_0, z, t = draws(1100, 1, 2, 3)
    labels = torch.arange(1100) % 3 if labelled else None
    with Largest() as largest:
        found = estimate(PATHS["ve"], x_0, z, t, labels)
    assert 200**2 < largest.size < 256**2
    for part in torch.arange(1100).tensor_split(5):
        known = None if labels is None else labels[part]
        alone = estimate(PATHS["ve"], x_0[part], z[part], t[part], known)
        assert torch.equal(found[part], alone)


@pytest.mark.parametrize("n, dim", [(64, 784), (100, 2)])
def test_memory(n, dim):
    x_0, z, t = draws(n, dim)
    with Largest() as largest:
        estimate(PATHS["pfgmpp"], x_0, z, t, torch.arange(n) % 3)
    assert largest.size == max(n * n, n * dim)


# ---------------------------------------------------------------- its mean, and its variance


def gaussian_velocity(x, t):
    """E[z - x_0 | x_t] for data N(MEAN, STD^2), each element on its own."""
    t = column(t, x)
    mean = MEAN + (1 - t) * STD**2 * (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)
    return (x - mean) / t


def gaussian_batch(n, seed, t):
    g = torch.Generator().manual_seed(seed)
    x_0, z = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    return MEAN + STD * x_0, z, torch.full((n,), t, dtype=torch.float64)


@pytest.mark.parametrize("t", [0.3, 0.6])
def test_its_mean_given_x_t_is_exactly_that_of_a_pair(t):
    """In batches of four, here as many classes. Without the own example, it would not be."""
    found = {"ours": [], "without the own": []}
    labels = torch.arange(1000) // 4
    one_class = labels[:, None] == labels
    for seed in range(40):
        x_0, z, time = gaussian_batch(1000, seed, t)
        x_t = on_line(x_0, z, time)
        others = by_hand(x_0, z, time, normal, one_class & ~torch.eye(1000, dtype=bool))
        for name, v in (
            ("ours", estimate(PATHS["rectified"], x_0, z, time, labels)),
            ("without the own", others),
        ):
            error = v - gaussian_velocity(x_t, time)
            moments = torch.cat([error, error * x_t, error * x_t**2], 1)
            found[name].append(moments.reshape(250, 4, 6).mean(1))
    ratio = {}
    for name, parts in found.items():
        a = torch.cat(parts)
        ratio[name] = float((a.mean(0).abs() / (a.std(0) / len(a) ** 0.5)).max())
    assert ratio["ours"] < 4.5 < 15 < ratio["without the own"]


def mean_square(n, t, rows=4096):
    """Squared error of the estimate, and that of the pair."""
    ours, pairs = [], []
    for seed in range(rows // n):
        x_0, z, time = gaussian_batch(n, seed, t)
        truth = gaussian_velocity(on_line(x_0, z, time), time)
        ours.append((estimate(PATHS["rectified"], x_0, z, time) - truth).square().sum(1))
        pairs.append((z - x_0 - truth).square().sum(1))
    return float(torch.cat(ours).mean()), float(torch.cat(pairs).mean())


@pytest.mark.parametrize("t", [0.5, 0.8])
def test_its_variance_is_less_and_falls_with_the_batch(t):
    errors = {n: mean_square(n, t) for n in (1, 4, 16, 64, 256)}
    assert errors[1][0] == pytest.approx(errors[1][1], rel=1e-9)
    assert errors[16][0] < 0.5 * errors[16][1]
    for n in (4, 16, 64):
        assert 2 < errors[n][0] / errors[4 * n][0] < 8, errors


# ---------------------------------------------------------------- labels


def test_examples_of_the_same_class_count():
    x_0, z, t = draws(30, 2)
    labels = torch.arange(30) % 3
    labels[20:] = -1
    labels[3] = 7
    found = estimate(PATHS["pfgmpp"], x_0, z, t, labels)
    everyone = estimate(PATHS["pfgmpp"], x_0, z, t)
    torch.testing.assert_close(found[20:], everyone[20:], rtol=1e-10, atol=1e-10)
    for label in (0, 1, 2):
        rows = labels == label
        alone = estimate(PATHS["pfgmpp"], x_0[rows], z[rows], t[rows])
        torch.testing.assert_close(found[rows], alone, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(found[rows], everyone[rows])
    assert torch.equal(found[3], (z - x_0)[3])


# ---------------------------------------------------------------- in the objectives


OBJECTIVES = {
    "FlowMatching": ifl.FlowMatching,
    "IntegralIdentity": lambda **k: ifl.IntegralIdentity(derivative="difference", **k),
    "IntegralIdentity, jvp": lambda **k: ifl.IntegralIdentity(derivative="jvp", **k),
    "IntegralIdentity, conditional": lambda **k: ifl.IntegralIdentity(tangent="conditional", **k),
    "IntegralIdentity, gap": lambda **k: ifl.IntegralIdentity(gap=0.05, **k),
    "IntegralIdentity, self": lambda **k: ifl.IntegralIdentity(anchor="self", **k),
    "IntegralAdditivity": ifl.IntegralAdditivity,
    "TerminalVelocity": ifl.TerminalVelocity,
    "ConsistencyTraining": ifl.ConsistencyTraining,
}
objectives = pytest.mark.parametrize("name", OBJECTIVES)


def flow_map(path=PATHS["pfgmpp"], classes=0, anchor=False, dim=2):
    net = ifl.MLP(dim=dim, hidden=16, layers=2, classes=classes, anchor=anchor)
    return ifl.FlowMap(randomise(net), path)


def drawn(objective, model, batch):
    return objective.draw(model, Batch.of(batch), torch.Generator().manual_seed(4))


@objectives
def test_every_objective_draws_it_and_takes_it(name):
    model = flow_map(anchor=name.endswith("self"))
    x_0 = draws(40, 2, dtype=torch.float32)[0]
    pair = drawn(OBJECTIVES[name](velocity="pair"), model, x_0)
    for choice in ("auto", "batch"):
        objective = OBJECTIVES[name](velocity=choice)
        whole = drawn(objective, model, x_0)
        velocity = whole.pop("velocity")
        assert whole.keys() == pair.keys() and all(
            a is pair[k] is None or torch.equal(a, pair[k]) for k, a in whole.items()
        )
        t = pair["high"] / (1 + pair["high"]) if "high" in pair else pair["t"]
        assert torch.equal(velocity, estimate(model.path, pair["x_0"], pair["z"], t))
        plain = objective.loss(model, **pair)[0]
        same = objective.loss(model, **pair, velocity=pair["z"] - pair["x_0"])[0]
        torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-6)
        assert objective.loss(model, **pair, velocity=velocity)[0] != plain
    assert OBJECTIVES[name]().velocity == "auto"


@objectives
def test_every_objective_trains_with_it(name):
    losses = {}
    for choice in ("pair", "auto", "batch"):
        model = flow_map(anchor=name.endswith("self"))
        config = settings(steps=6)
        run = ifl.fit(model, OBJECTIVES[name](velocity=choice), draws(80, 2)[0].float(), config)
        losses[choice] = run.history.loss
        assert run.manifest["objective"]["velocity"] == choice
        assert np.isfinite(run.history.loss).all()
    assert losses["auto"].equals(losses["batch"]) and not losses["auto"].equals(losses["pair"])


def test_what_each_row_of_the_identity_regresses_on():
    """Where s = t the target is the velocity; with tangent="conditional" it is also that along the trajectory."""
    objective = ifl.IntegralIdentity(
        tangent="conditional", gap=0.25, equal_share=0.5, velocity="batch"
    )
    model, seen = flow_map(ifl.RectifiedFlow()), []
    x_0 = draws(16, 2, dtype=torch.float32)[0]
    given = drawn(objective, model, x_0)
    object.__setattr__(
        objective,
        "both_ends",
        lambda *a: seen.append(a) or ifl.IntegralIdentity.both_ends(objective, *a),
    )
    loss = objective.loss(model, **given)[0]
    assert torch.equal(seen[0][5], given["velocity"][:8])
    equal = given | {"s": given["s"][:0], "gap": given["gap"][:0]}
    x_t = on_line(given["x_0"], given["z"], given["t"])
    by_rows = (model(x_t, given["t"], given["t"]) - given["velocity"]).square().sum(1)
    torch.testing.assert_close(objective.loss(model, **equal)[0], by_rows.mean())
    assert torch.isfinite(loss)


def test_the_points_that_consistency_training_compares():
    model, seen = flow_map(ifl.RectifiedFlow()), []
    objective = ifl.ConsistencyTraining(velocity="batch")
    given = drawn(objective, model, draws(16, 2, dtype=torch.float32)[0])
    model.net.register_forward_hook(lambda net, inputs, out: seen.append(inputs))
    objective.loss(model, **given)
    (low, t_low, _), (high, t_high, _) = seen[-2:]  # before, a copy was tried
    torch.testing.assert_close(high, on_line(given["x_0"], given["z"], t_high))
    torch.testing.assert_close(low, high - (t_high - t_low)[:, None] * given["velocity"])
    assert (low - on_line(given["x_0"], given["z"], t_low)).abs().max() > 0.1


@objectives
def test_two_processes_have_the_loss_of_one(name):
    """Each computes its rows, and the velocity is of the rows of both (``tests/test_scale.py`` trains so)."""
    model, objective = flow_map(anchor=name.endswith("self")), OBJECTIVES[name](velocity="batch")
    whole = drawn(objective, model, draws(64, 2, dtype=torch.float32)[0])
    loss = objective.loss(model, **whole)[0]
    parts = [
        objective.loss(
            model, **{k: a if a is None else processes.shard(a) for k, a in whole.items()}
        )[0]
        for processes in (Processes(0, 2), Processes(1, 2))
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, loss, rtol=1e-5, atol=1e-6)
    halves = [drawn(objective, model, whole["x_0"][r::2])["velocity"] for r in (0, 1)]
    assert not torch.allclose(halves[0], whole["velocity"][::2])


# ---------------------------------------------------------------- where it is taken


def settings(**changes):
    known = {"steps": 8, "batch_size": 32, "device": "cpu", "progress": False, "log_every": 1}
    return ifl.TrainConfig(**known | changes)


class WithoutVelocity(ifl.FlowMatching):
    """A loss from before there was one."""

    def loss(self, model, x_0, z, t, labels):
        return super().loss(model, x_0, z, t, labels)


class WithWhatever(ifl.FlowMatching):
    def loss(self, model, **drawn):
        return super().loss(model, **drawn)


def test_auto_takes_it_where_it_may():
    x_0 = draws(10, 2, dtype=torch.float32)[0]

    def taken(batch=x_0, path=PATHS["ve"], objective=ifl.FlowMatching, dim=2):
        return "velocity" in drawn(objective(velocity="auto"), flow_map(path, dim=dim), batch)

    assert taken() and taken(path=Told()) and taken(objective=WithWhatever)
    assert all(taken(path=path) for path in PATHS.values())
    assert not taken(Batch(x_0, noise=x_0)) and not taken(Batch(x_0, pair=lambda z: z))
    assert not taken(path=Steady()) and not taken(path=Heavy(3))
    assert not taken(objective=WithoutVelocity)
    most = module.MOST_ELEMENTS
    for dim in (most, most + 1):
        assert taken(torch.randn(10, dim), dim=dim) == (dim == most)


@pytest.mark.parametrize("name", ["FlowMatching", "IntegralIdentity", "IntegralIdentity, gap"])
@pytest.mark.parametrize(
    "path, data, changes, words",
    [
        (PATHS["ve"], "noise", {}, "these bring their own, as those of reflow do"),
        (PATHS["ve"], "plain", {"coupling": "ot"}, 'leave coupling="independent"'),
        (Steady(), "plain", {}, "Steady overrides noise alone: give it radial_log_density"),
    ],
)
def test_it_is_refused_where_it_may_not(name, path, data, changes, words):
    x, noise, _ = draws(40, 2, dtype=torch.float32)
    data = TensorData(x, noise=noise if data == "noise" else None)
    for choice in ("batch", "auto", "pair"):
        model, seen = flow_map(path), []
        model.net.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        objective, config = OBJECTIVES[name](velocity=choice), settings(**changes)
        if choice == "batch":
            with pytest.raises(ValueError) as error:
                ifl.fit(model, objective, data, config)
            assert words in one_line(error) and 'or take velocity="pair"' in str(error.value)
            assert not seen and model.learned is None
        else:
            assert np.isfinite(ifl.fit(model, objective, data, config).history.loss).all()


def test_other_refusals():
    x_0 = draws(10, 2, dtype=torch.float32)[0]
    with pytest.raises(ValueError) as error:
        ifl.fit(flow_map(), WithoutVelocity(velocity="batch"), x_0, settings())
    assert "that of WithoutVelocity takes no velocity: add velocity=None" in one_line(error)
    with pytest.raises(ValueError) as error:
        ifl.FlowMatching(velocity="batch")(flow_map(), Batch(x_0, noise=x_0))
    assert "these bring their own" in one_line(error)
    for name, make in OBJECTIVES.items():
        with pytest.raises(ValueError) as error:
            make(velocity="mean")
        assert "velocity must be one of 'auto', 'batch', 'pair'" in one_line(error), name
    teacher = flow_map()
    with pytest.raises(TypeError):  # its velocity is its teacher's
        ifl.FlowMapDistillation(teacher=teacher, velocity="batch")
    assert "velocity" not in {f.name for f in dataclasses.fields(ifl.FlowMapDistillation)}


def test_a_batch_of_one_is_the_pair():
    x = draws(20, 2, dtype=torch.float32)[0]
    losses = [
        ifl.fit(flow_map(), ifl.FlowMatching(velocity=v), x, settings(batch_size=1)).history.loss
        for v in ("batch", "pair")
    ]
    assert losses[0].equals(losses[1])


def test_the_density_of_a_path_of_one_s_own_is_checked():
    class Wrong(Told):
        def radial_log_density(self, square, dim):
            return super().radial_log_density(square, dim).sum()

    class NoNumber(Told):
        def radial_log_density(self, square, dim):
            return square.log() - square.log()

    check_path(Told(), (2,))
    for path, words in ((Wrong(), "must return a tensor of shape (2, 3)"), (NoNumber(), "NaN")):
        with pytest.raises(ValueError) as error:
            check_path(path, (2,))
        assert "radial_log_density of the path" in one_line(error) and words in str(error.value)


# ---------------------------------------------------------------- stopped and continued


def run(folder, velocity="auto", resume=None):
    model, objective = flow_map(classes=3), ifl.IntegralIdentity(velocity=velocity)
    data = TensorData(draws(80, 2)[0].float(), torch.arange(80) % 3)
    config = settings(out_dir=folder, checkpoint_every=4, keep=9)
    return ifl.fit(model, objective, data, config, resume=resume)


def test_a_run_that_is_continued_is_the_undisturbed_one(tmp_path):
    whole, pair = run(tmp_path / "whole"), run(tmp_path / "pair", "pair")
    again = run(tmp_path / "again", resume=tmp_path / "whole" / "checkpoints" / "step-00000004")
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.history.loss.equals(whole.history.loss)
    assert not pair.history.loss.equals(whole.history.loss)


def test_earlier_versions_had_the_velocity_of_a_pair(tmp_path):
    whole = run(tmp_path / "whole", "pair")
    tensors, info, _ = RunFolder(tmp_path / "whole").load(
        tmp_path / "whole" / "checkpoints" / "step-00000004"
    )
    del info["identity"]["objective"]["velocity"]
    with RunFolder(tmp_path / "old") as folder:
        folder.save(4, tensors, info)
    with pytest.raises(ValueError) as error:
        run(tmp_path / "old", resume="auto")
    words = "its objective is {'velocity': 'pair'}, here it is {'velocity': 'auto'}"
    assert words in one_line(error)
    assert run(tmp_path / "old", "pair", resume="auto").history.loss.equals(whole.history.loss)


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@needs_cuda
def test_on_a_gpu_it_waits_for_nothing_whatever_products_are_rounded_to():
    x_0, z, t = draws(256, 32, dtype=torch.float32)
    labels = torch.arange(256) % 3 - 1
    right = estimate(PATHS["pfgmpp"], x_0, z, t, labels)
    on_gpu = [a.cuda() for a in (x_0, z, t, labels)]
    before = torch.backends.cuda.matmul.allow_tf32
    estimate(PATHS["pfgmpp"], *on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = estimate(PATHS["pfgmpp"], *on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cuda.matmul.allow_tf32 = before
    torch.testing.assert_close(found.cpu(), right, rtol=1e-4, atol=1e-4)
