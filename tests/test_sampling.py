"""Sampling: exact maps give exact samples, solvers have their order, calls are counted, noise never changes."""

import copy

import numpy as np
import pytest
import torch
from exact import MEAN, STD, GaussianNet, gaussian_jump, one_line, randomise
from torch import nn

from iflow_lib import sampling
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving
from iflow_lib.sampling import (
    SAMPLERS,
    Sampler,
    SamplerRequest,
    initial_anchors,
    initial_noise,
    pick_device,
    reflow,
    register_sampler,
    sample,
)
from iflow_lib.scaling import Standardization
from iflow_lib.zoo import timed_sample

ALL = [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8)]
paths = pytest.mark.parametrize("path", ALL, ids=repr)
DEVICES = ["cpu"] + [
    d
    for d, ok in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
    if ok
]


class Spy(nn.Module):
    """Wraps a network and keeps what it was called with."""

    def __init__(self, net):
        super().__init__()
        self.net, self.data_shape, self.inputs, self.times = net, net.data_shape, [], []

    def forward(self, x, t, s):
        self.inputs.append(x.detach().cpu().clone())
        self.times.append((float(t[0]), float(s[0])))
        return self.net(x, t, s)


def spied(path, net=None):
    return FlowMap(Spy(net or randomise(MLP(dim=2, hidden=16, layers=2))), path)


def noise(model, n, seed=0):
    return torch.cat(list(initial_noise(model, n, seed)))


def line_times(model, method, nfe):
    return SAMPLERS[method](SamplerRequest(model, 1, 0, nfe)).times.tolist()


# ---------------------------------------------------------------- truth


@paths
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_exact_map_gives_the_exact_jump(path, shape, nfe):
    """At any NFE, in the line's terms and in the path's."""
    model = FlowMap(GaussianNet(shape), path)
    out = sample(model, 50, nfe, seed=3)
    z, end = noise(model, 50, seed=3).double(), torch.tensor([path.tau_max], dtype=torch.float64)
    truth = gaussian_jump(z, (1 - end, end), (torch.ones(1), torch.zeros(1)))
    assert out.x.shape == (50, *shape) and out.nfe == nfe and out.trajectory is None
    torch.testing.assert_close(out.x, truth, rtol=1e-9, atol=1e-9)
    t_max = torch.full((50,), path.t_max, dtype=torch.float64)
    prior = path.prior((256, *shape), generator=torch.Generator().manual_seed(3))[:50].double()
    torch.testing.assert_close(
        out.x, model.jump(x=prior, t=t_max, s=0 * t_max).detach(), rtol=1e-5, atol=1e-5
    )


def test_one_step_samples_have_the_law_of_the_data():
    x = sample(FlowMap(GaussianNet((2,)), RectifiedFlow()), 20_000).x
    assert float((x.mean(0) - MEAN).abs().max()) < 4 * STD / 20_000**0.5
    assert float((x.std(0) - STD).abs().max()) < 4 * STD / 40_000**0.5


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("path", [RectifiedFlow(), VarianceExploding()], ids=repr)
def test_order_of_convergence(path, method, order):
    model = FlowMap(GaussianNet((2,)), path)
    truth = sample(model, 64, 1, "map").x
    errors = [
        float((sample(model, 64, order * steps - (order - 1), method).x - truth).abs().max())
        for steps in (64, 128, 256)
    ]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(rates - order).max() < 0.25, (errors, rates)


def test_heun_on_vp_is_held_up_by_its_last_step():
    """Of VP's even grid the last step shrinks only as the root of the others, and it is Euler's: the order is 1. With a last
    step as short as the others it is 2."""
    model = FlowMap(GaussianNet((2,)), VariancePreserving())
    truth = sample(model, 64, 1, "map").x

    def rates(times):
        errors = [
            float((sample(model, 64, 2 * k - 1, "heun", times=times(k)).x - truth).abs().max())
            for k in (64, 128, 256)
        ]
        return np.log2(np.array(errors[:-1]) / errors[1:])

    even = rates(lambda k: None)
    assert 0.6 < even.min() and even.max() < 1.6, even
    path = model.path

    def of_the_line(k):
        times = path.time(torch.linspace(path.tau_max, 0, k + 1, dtype=torch.float64))
        times[0] = path.t_max
        return times

    assert np.abs(rates(of_the_line) - 2).max() < 0.25


# ---------------------------------------------------------------- NFE


@paths
@pytest.mark.parametrize(
    "method, nfe", [("map", 1), ("map", 3), ("euler", 1), ("euler", 7), ("heun", 1), ("heun", 7)]
)
@pytest.mark.parametrize("trajectory", [False, True])
def test_nfe_is_the_number_of_calls(path, method, nfe, trajectory):
    model = FlowMap(GaussianNet((2,)), path)
    out = sample(model, 10, nfe, method, trajectory=trajectory)
    assert model.net.calls == nfe == out.nfe
    model.net.calls = 0
    assert (
        sample(model, 10, nfe, method, batch_size=4).nfe == nfe and model.net.calls == 3 * nfe
    )  # 3 batches


@paths
def test_times_the_network_sees(path):
    for method, nfe in (("map", 3), ("euler", 3), ("heun", 5)):
        model = spied(path)
        sample(model, 5, nfe, method)
        grid = line_times(model, method, nfe)
        assert grid[0] == pytest.approx(path.tau_max) and grid[-1] == 0
        pairs = list(zip(grid, grid[1:]))
        expected = {
            "map": pairs,
            "euler": [(t, t) for t, _ in pairs],
            "heun": [(r, r) for pair in pairs for r in pair][:-1],  # never the velocity at 0
        }[method]
        assert model.net.times == [pytest.approx(p, abs=1e-7) for p in expected]


class WithLabels(nn.Module):
    """u = the label's number, everywhere; 0 if not told."""

    data_shape, classes = (2,), 3

    def __init__(self):
        super().__init__()
        self.calls, self.gain = 0, nn.Parameter(torch.ones(()))

    def forward(self, x, t, s, labels=None):
        self.calls += 1
        return self.gain * torch.where(labels < 0, 0, labels)[:, None].float() + 0 * x


@pytest.mark.parametrize("method, odd", [("map", False), ("euler", False), ("heun", True)])
def test_labels_and_guidance(method, odd):
    net = WithLabels()
    model = FlowMap(net, RectifiedFlow())
    labels = torch.arange(10) % 3
    out = sample(model, 10, 2 + odd, method, seed=1, labels=labels, batch_size=4)
    torch.testing.assert_close(
        out.x, noise(model, 10, 1) - labels[:, None].float()
    )  # u is constant: exact
    net.calls = 0
    guided = sample(model, 10, 4 + 2 * odd, method, seed=1, labels=labels, guidance=2.5)
    assert guided.nfe == net.calls == 4 + 2 * odd  # two calls for every u
    torch.testing.assert_close(guided.x, noise(model, 10, 1) - 2.5 * labels[:, None].float())
    for two in (2, np.int64(2), torch.tensor(2), [2] * 10, np.full(10, 2, np.uint8)):
        one = sample(model, 10, 2, "euler", seed=1, labels=two)
        torch.testing.assert_close(one.x, noise(model, 10, 1) - 2)
    for options, words in [
        (dict(labels=[0, 1]), "10 whole numbers in [0, 3)"),
        (dict(labels=[3] * 10), "[0, 3)"),
        (dict(labels=[-2] * 10), "from -2 to -2"),
        (dict(labels=np.full(10, 200, np.uint8)), "from 200 to 200"),
        (dict(labels=torch.zeros(10)), "whole numbers"),
        (dict(labels=torch.zeros(10, dtype=torch.bool)), "whole numbers"),
        (dict(labels=["a"] * 10), "no whole numbers"),
        (dict(labels=[None] * 10), "no whole numbers"),
        (dict(guidance=2.0), "guidance needs labels"),
        (
            dict(labels=0, guidance=2.0, nfe=3),
            "with guidance makes 4 network calls a step, 2 in the last: take nfe=2 or nfe=6 in place of 3"
            if odd
            else "with guidance makes 2 network calls a step: nfe must be a multiple of 2, got 3",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            sample(model, 10, **{"method": method, "nfe": 1, **options})
        assert words in one_line(error)
    with pytest.raises(ValueError, match="without classes"):
        sample(FlowMap(MLP(2), RectifiedFlow()), 3, labels=0)


@paths
def test_rk45_is_accurate_and_counts(path):
    net = GaussianNet()
    model = FlowMap(net, path)
    rough, fine = (sample(model, 50, method="rk45", seed=3, tolerance=tol) for tol in (1e-3, 1e-9))
    exact = sample(model, 50, 1, "map", seed=3)
    assert float((fine.x - exact.x).abs().max()) < 1e-7 and fine.nfe > rough.nfe > 6
    net.calls = 0
    out = sample(model, 50, method="rk45", seed=3, batch_size=50, trajectory=True)
    assert out.nfe == net.calls and out.trajectory.shape == (2, 50, 2)
    assert out.times.tolist() == pytest.approx([path.t_max, 0])


@paths
@pytest.mark.parametrize("method", ["map", "euler", "heun"])
def test_own_times(path, method):
    model, steps = spied(path), 3
    times = [path.t_max, 0.3 * path.t_max, 0.1 * path.t_max, 0.0]
    nfe = 2 * steps - 1 if method == "heun" else steps
    out = sample(model, 5, nfe, method, times=times, trajectory=True)
    assert out.nfe == nfe and out.times.tolist() == pytest.approx(times)
    asked = sorted({t for t, _ in model.net.times}, reverse=True)
    tau = path.tau(torch.tensor(times).double())
    assert asked[:3] == pytest.approx(tau[:3].tolist(), abs=1e-6)
    assert (
        torch.equal(
            sample(model, 5, nfe, method, times=path.grid(steps), seed=2).x,
            sample(model, 5, nfe, method, seed=2).x,
        )
        or method == "map"
    )
    for bad in (
        [path.t_max, 0.0],
        [path.t_max, 0.1, 0.2, 0.0],
        [0.9 * path.t_max, 0.3, 0.1, 0.0],
        [path.t_max, 0.3, 0.1, 0.01],
        [],
        path.t_max,
        [[path.t_max, 0.3, 0.1, 0.0]],
    ):
        with pytest.raises(ValueError, match="times must fall from"):
            sample(model, 5, nfe, method, times=bad)
    for bad, words in (
        ([path.t_max, 0.0], "nfe=1 makes as many steps as these"),
        ([path.t_max, float("nan"), 0.1, 0.0], "with NaN"),
    ):
        with pytest.raises(ValueError) as error:
            sample(model, 5, nfe, method, times=bad)
        assert one_line(error).endswith(words)
    with pytest.raises(ValueError, match="times are no numbers"):
        sample(model, 5, nfe, method, times=["a", "b"])
    with pytest.raises(ValueError, match="rk45 takes no times"):
        sample(model, 5, 1, "rk45", times=[path.t_max, 0.0])
    if method == "map":
        with pytest.raises(ValueError, match="map takes no times with an anchored network"):
            sample(FlowMap(Anchored(), path), 5, 1, "map", times=[path.t_max, 0.0])


class Anchored(nn.Module):
    """u = x - a at t = 1: the jump to 0 returns the anchor plus one tenth, so refinements can be counted."""

    data_shape, anchor = (2,), True

    def __init__(self):
        super().__init__()
        self.anchors, self.times, self.gain = [], [], nn.Parameter(torch.ones(()))

    def forward(self, x, t, s, anchor):
        self.anchors.append(anchor)
        self.times.append((float(t[0]), float(s[0])))
        return self.gain * (x - anchor) - 0.1


def test_anchor_refinement_as_published():
    """f(a, z, t_max), again and again at the same noise; every call is counted; the first anchor is Gaussian."""
    net = Anchored()
    model = FlowMap(net, RectifiedFlow())
    out = sample(model, 300, 5, "anchor", seed=4, trajectory=True, batch_size=300)
    assert out.nfe == 5 == len(net.anchors) and set(net.times) == {(1.0, 0.0)} and out.times is None
    torch.testing.assert_close(out.x, net.anchors[0] + 0.5)
    assert out.trajectory.shape == (6, 300, 2) and torch.equal(out.trajectory[0], net.anchors[0])
    assert abs(float(net.anchors[0].std()) - 1) < 0.1 and not torch.equal(
        net.anchors[0], noise(model, 300, 4)
    )
    first = torch.cat(list(initial_anchors(model, 300, 4)))
    assert torch.equal(net.anchors[0], first) and len(first.unique(dim=0)) == 300
    with pytest.raises(ValueError, match="anchor=True"):
        sample(FlowMap(MLP(2), RectifiedFlow()), 3, method="anchor")


@pytest.mark.parametrize("batch_size", [1, 7, 256, 300, 1000])
def test_refinement_does_not_depend_on_the_batch_size(batch_size):
    reference = sample(FlowMap(Anchored(), RectifiedFlow()), 400, 2, "anchor", 4, batch_size=128)
    model = FlowMap(Anchored(), RectifiedFlow())
    out = sample(model, 400, 2, "anchor", 4, batch_size=batch_size, trajectory=True)
    assert torch.equal(out.x, reference.x) and out.nfe == 2
    assert max(map(len, model.net.anchors)) <= batch_size
    more = sample(model, 600, 2, "anchor", 4).x
    assert torch.equal(more[:400], out.x)


def test_anchors_are_not_the_noise_of_any_seed_nearby():
    """torch's generator reads 32 bits of a seed only, so no seed beside it would do."""
    model = FlowMap(Anchored(), RectifiedFlow())
    for seed in (0, 1, 41):
        anchors = torch.cat(list(initial_anchors(model, 5, seed)))
        assert not torch.equal(anchors, torch.cat(list(initial_anchors(model, 5, seed + 1))))
        for other in range(50):
            assert float((noise(model, 5, other) - anchors).abs().max()) > 0.01


def test_an_anchored_map_spends_its_first_call_on_the_anchor():
    net = Anchored()
    model = FlowMap(net, RectifiedFlow())
    sample(model, 7, 1)
    assert (
        net.times == [(1.0, 0.0)] and float(net.anchors[0].abs().max()) == 0
    )  # alone, it jumps without one
    net.anchors.clear(), net.times.clear()
    out = sample(model, 7, 3, seed=1, trajectory=True)
    assert out.nfe == 3 and net.times == [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0)]
    assert torch.equal(net.anchors[1], net.anchors[2]) and torch.equal(
        out.times, torch.tensor([1.0, 0.5, 0.0]).double()
    )
    torch.testing.assert_close(net.anchors[1], torch.full((7, 2), 0.1))  # x - (x - 0 - 0.1)


def test_reflow_pairs():
    model = FlowMap(GaussianNet(), RectifiedFlow())
    pairs = reflow(model, 300, nfe=200, seed=5)
    assert torch.equal(pairs.noise, noise(model, 300, 5)) and pairs.x.shape == (300, 2)
    exact = sample(model, 300, 1, "map", seed=5).x
    assert (
        float((pairs.x - exact).abs().max()) < 0.02
    )  # each noise with where the ODE takes it, not with another
    with pytest.raises(ValueError, match="RectifiedFlow, not on VarianceExploding"):
        reflow(FlowMap(GaussianNet(), VarianceExploding()), 5)
    for model.learned in ("jump_to_data", "refinement"):
        with pytest.raises(ValueError) as error:
            reflow(model, 5)
        assert f"trained for {model.learned} alone" in one_line(error)
    for model.learned in ("velocity", "jump", None):
        reflow(model, 5, nfe=1)


def test_numbers_and_devices_of_any_kind():
    model = FlowMap(randomise(MLP(dim=2, hidden=4, layers=1)), RectifiedFlow())
    expected = sample(model, 3, 2, seed=5, batch_size=2).x
    for number in (np.int64, np.uint8, torch.tensor):
        options = dict(nfe=number(2), seed=number(5), batch_size=number(2))
        for device in (None, "cpu", torch.device("cpu"), torch.device("cpu", 0)):
            assert torch.equal(sample(model, number(3), **options, device=device).x, expected)
        assert torch.equal(noise(model, 3, number(5)), noise(model, 3, 5))


# ---------------------------------------------------------------- seeds, batches, devices


@paths
@pytest.mark.parametrize("method, nfe", [("map", 2), ("heun", 5)])
def test_same_seed_and_batch_size_bit_for_bit(path, method, nfe):
    model = spied(path)
    torch.manual_seed(0)
    first = sample(model, 300, nfe, method, seed=5, batch_size=64)
    torch.manual_seed(1)  # the global generator plays no part
    again, other = (sample(model, 300, nfe, method, seed=seed, batch_size=64) for seed in (5, 6))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)


@paths
@pytest.mark.parametrize("n", [1, 256, 600])
def test_batch_size_changes_nothing(path, n):
    reference_model = spied(path)
    reference = sample(reference_model, n, 1, batch_size=1000)
    reference_noise = torch.cat(reference_model.net.inputs)
    assert torch.equal(reference_noise, noise(reference_model, n)) and reference.x.shape == (n, 2)
    for batch_size in (1, 7, 256, 300):
        model = spied(path)
        out = sample(model, n, 1, batch_size=batch_size)
        assert torch.equal(torch.cat(model.net.inputs), reference_noise)
        sizes = [len(x) for x in model.net.inputs]
        assert max(sizes) <= batch_size and sum(sizes) == n
        assert all(size == batch_size for size in sizes[:-1])
        torch.testing.assert_close(out.x, reference.x, rtol=0, atol=1e-4)


def test_batch_size_changes_nothing_for_images():
    model = FlowMap(
        randomise(UNet(channels=1, size=8, width=8, blocks=1), scale=0.1), PoissonFlow(8)
    )
    reference = sample(model, 40, 5, "heun", batch_size=1000).x
    for batch_size in (1, 7, 39):
        torch.testing.assert_close(
            sample(model, 40, 5, "heun", batch_size=batch_size).x, reference, rtol=0, atol=1e-4
        )


@paths
def test_more_samples_extend_the_fewer(path):
    model = spied(path)
    long = noise(model, 1000, seed=2)
    assert len(long) == 1000 and len(long.unique(dim=0)) == 1000
    for n in (1, 2, 255, 256, 257, 999):
        assert torch.equal(noise(model, n, seed=2), long[:n])
    longer, shorter = (sample(model, n, 2, seed=2).x for n in (700, 300))
    torch.testing.assert_close(longer[:300], shorter, rtol=0, atol=1e-4)


@paths
def test_noise_has_the_path_s_law_and_scale(path):
    model = spied(path)
    z = path.noise((256, 2), generator=torch.Generator().manual_seed(4))
    assert torch.equal(noise(model, 100, seed=4), path.tau_max * z[:100])


@paths
@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_drawn_on_the_cpu_for_every_device(path, device, monkeypatch):
    drawn = []
    original = type(path).noise

    def noise_spy(self, shape, *, generator=None, device=None, dtype=None):
        assert generator is not None and generator.device.type == "cpu"
        z = original(self, shape, generator=generator, device=device, dtype=dtype)
        drawn.append(z)
        return z

    monkeypatch.setattr(type(path), "noise", noise_spy)
    model = spied(path)
    reference = sample(model, 20, 2, seed=1).x
    fed = model.net.inputs[0]
    assert all(z.device.type == "cpu" and z.dtype == torch.float32 for z in drawn) and drawn
    moved = spied(path)
    inputs = moved.net.inputs
    monkeypatch.setattr(copy, "deepcopy", lambda model: keep_inputs(model, inputs))
    out = sample(moved, 20, 2, seed=1, device=device)
    assert {p.device.type for p in moved.parameters()} == {"cpu"}  # it stays where it was
    assert out.x.device.type == "cpu" and torch.equal(inputs[0], fed)
    torch.testing.assert_close(out.x, reference, rtol=0, atol=1e-4)


def keep_inputs(model, inputs):
    """A copy whose spy writes into the same list."""
    twin = spied(model.path)
    twin.load_state_dict(model.state_dict())
    twin.net.inputs = inputs
    return twin


def test_a_model_elsewhere_is_copied_not_moved(monkeypatch):
    """Meta stands for another device; it holds no numbers, so the samples themselves fail."""
    model = FlowMap(MLP(dim=2, hidden=4), RectifiedFlow()).train()
    model.net.out.eval()
    devices = []
    model.net.register_forward_pre_hook(lambda net, inputs: devices.append(inputs[0].device.type))
    monkeypatch.setattr(sampling, "pick_device", lambda device: torch.device("meta"))
    with pytest.raises(NotImplementedError):
        sample(model, 3, device="cuda")
    assert devices == ["meta"]
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.training and model.net.hidden.training and not model.net.out.training


def test_samples_take_the_model_s_dtype():
    assert (
        sample(FlowMap(randomise(MLP(dim=2, hidden=4).double()), RectifiedFlow()), 3).x.dtype
        == torch.float64
    )


def test_network_without_parameters():
    class Still(nn.Module):
        data_shape = (2,)

        def forward(self, x, t, s):
            return torch.zeros_like(x)

    model = FlowMap(Still(), RectifiedFlow())
    assert torch.equal(sample(model, 5).x, noise(model, 5))


# ---------------------------------------------------------------- trajectory, modes


@paths
@pytest.mark.parametrize("method, nfe", [("map", 4), ("euler", 4), ("heun", 7)])
def test_trajectory(path, method, nfe):
    """Starts at the prior, ends at the samples, and for the exact map lies on the ODE's solution."""
    model = FlowMap(GaussianNet((3,)), path)
    out = sample(model, 300, nfe, method, seed=1, batch_size=100, trajectory=True)
    assert out.trajectory.shape == (5, 300, 3) and out.times.shape == (5,)
    assert float(out.times[0]) == pytest.approx(path.t_max) and out.times[-1] == 0
    assert bool((out.times.diff() < 0).all())
    assert torch.equal(out.trajectory[-1], out.x) and torch.equal(
        out.x, sample(model, 300, nfe, method, seed=1, batch_size=100).x
    )
    start = out.trajectory[0]
    g = torch.Generator().manual_seed(1)
    prior = torch.cat([path.prior((256, 3), generator=g) for _ in range(2)])[:300]
    torch.testing.assert_close(start, prior.double(), rtol=1e-5, atol=1e-5)
    if method == "map":
        for t, x in zip(out.times, out.trajectory):
            ends = [torch.full((300,), float(r), dtype=torch.float64) for r in (out.times[0], t)]
            weights = [
                ((1 - r), r) if path.name == "RectifiedFlow" else (torch.ones_like(r), r)
                for r in ends
            ]
            torch.testing.assert_close(x, gaussian_jump(start, *weights), rtol=1e-9, atol=1e-9)


def test_sampling_leaves_the_model_as_it_was():
    model = FlowMap(MLP(dim=2, hidden=4), RectifiedFlow())
    for training in (True, False):
        model.train(training)
        x = sample(model, 3).x
        assert model.training is training and not x.requires_grad
        assert all(p.grad is None for p in model.parameters())
    model.train()
    model.net.hidden[0].eval()  # a part that the caller has frozen
    sample(model, 3)
    assert model.net.out.training and not model.net.hidden[0].training
    model.net.data_shape = (3,)  # the network will fail: the mode must come back even then
    with pytest.raises(RuntimeError):
        sample(model, 3)
    assert model.training


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"nfe": 0}, "nfe must be"),
        ({"nfe": -1}, "nfe must be"),
        ({"nfe": 1.5}, "nfe must be"),
        ({"n": 0}, "n must be"),
        ({"nfe": True}, "nfe must be"),
        ({"n": "3"}, "n must be"),
        ({"batch_size": 0}, "batch_size must be"),
        *[({"seed": seed}, "seed must be") for seed in (-1, 1.5, True, "0", None, 2**64)],
        ({"seed": torch.tensor(1.5)}, "seed must be"),
        ({"batch_size": 2.0}, "batch_size must be"),
        ({"method": "rk4"}, "unknown method 'rk4': expected auto or one of map, euler, heun"),
        ({"method": None}, "unknown method None"),
        (
            {"method": "heun", "nfe": 8},
            "heun makes 2 network calls a step, 1 in the last: take nfe=7 or nfe=9 in place of 8",
        ),
        ({"method": "heun", "nfe": 2}, "take nfe=1 or nfe=3 in place of 2"),
        (
            {"method": "euler"},
            "euler needs nfe, the network calls per sample, as in sample(model, n, nfe=32",
        ),
        ({"method": "heun"}, "heun needs nfe"),
        ({"guidance": "2"}, "guidance must be a number"),
        ({"guidance": float("nan")}, "guidance must be a number"),
        ({"method": "rk45", "tolerance": 0.0}, "tolerance must be positive"),
        ({"method": "rk45", "tolerance": "small"}, "tolerance must be a number"),
        ({"device": "tpu"}, "unknown device 'tpu': expected auto, cpu, cuda"),
        ({"device": "cpux"}, "unknown device"),
        ({"device": "cuda:99"}, "not available"),
    ],
)
def test_bad_arguments_before_any_call(arguments, words):
    model = FlowMap(GaussianNet(), RectifiedFlow())
    with pytest.raises(ValueError) as error:
        sample(model, **{"n": 4, **arguments})
    assert words in one_line(error) and model.net.calls == 0


def test_pick_device(monkeypatch):
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert pick_device("auto") == torch.device(best) and pick_device("cpu") == torch.device(
            "cpu"
        )
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ValueError) as error:
            pick_device(name)
        assert "not available on this machine" in one_line(error) and name in str(error.value)
    for name in ("", "gpu", "cpu:x", "cuda:x", "cuda:", "cpu:-1"):
        with pytest.raises(ValueError) as error:
            pick_device(name)
        one_line(error)


def test_a_model_is_asked_for():
    """Not its network, and not the run that holds it."""
    for given in (MLP(dim=2), object()):
        for ask in (sample, reflow):
            with pytest.raises(ValueError) as error:
                ask(given, 3)
            assert "takes a FlowMap, such as fit(...).model, not a" in one_line(error)


# ---------------------------------------------------------------- what the model learned


@pytest.mark.parametrize(
    "learned, nfe, method, spent",
    [
        (None, None, "map", 1),
        (None, 3, "map", 3),
        ("jump", None, "map", 1),
        ("jump", 3, "map", 3),
        ("jump_to_data", None, "map", 1),
        ("jump_to_data", 1, "map", 1),
        ("velocity", 7, "euler", 7),
        ("refinement", None, "anchor", 1),
        ("refinement", 4, "anchor", 4),
        ("something new", None, "map", 1),
    ],
)
def test_auto_does_what_the_model_learned(learned, nfe, method, spent):
    net = randomise(MLP(dim=2, hidden=8, layers=1, anchor=learned == "refinement"))
    model = FlowMap(net, VarianceExploding())
    model.learned = learned
    out, said = sample(model, 20, nfe, seed=3), sample(model, 20, spent, method, seed=3)
    assert torch.equal(out.x, said.x) and out.nfe == said.nfe == spent


@pytest.mark.filterwarnings("error")
def test_auto_asks_where_it_cannot_know():
    """A velocity in one jump gave the mean of the data without a word."""
    model = FlowMap(GaussianNet(), RectifiedFlow())
    model.learned = "velocity"
    with pytest.raises(ValueError) as error:
        sample(model, 3)
    assert "learned a velocity" in one_line(error) and "nfe=32" in str(error.value)
    assert torch.equal(sample(model, 3, 1).x, sample(model, 3, 1, "euler").x)  # said so
    model.net.calls = 0
    model.learned = "jump_to_data"
    with pytest.raises(ValueError) as error:
        sample(model, 3, 2)
    assert "nfe must be 1, got 2" in one_line(error) and 'method="map"' in str(error.value)
    assert model.net.calls == 0
    assert sample(model, 3, 2, "map").nfe == 2


def test_samples_that_are_not_finite_are_said_in_a_line(recwarn):
    model = FlowMap(randomise(MLP(dim=2, hidden=4, layers=1)), RectifiedFlow())
    assert bool(sample(model, 3).x.isfinite().all()) and not recwarn.list
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    timed_sample(model, 4, 1, "map", 0)
    assert not recwarn.list
    with pytest.warns(RuntimeWarning) as caught:
        sample(model, 4)
    text = str(caught[0].message)
    assert text.startswith("4 of 4 samples (100%) are NaN") and "\n" not in text
    assert "map with nfe=1" in text


# ---------------------------------------------------------------- the data's own scale


@paths
def test_the_scaling_is_undone(path):
    model = FlowMap(GaussianNet((3,)), path)
    plain = sample(model, 7, 2, seed=1, trajectory=True)
    mean, std = torch.tensor([5.0, -3.0, 0.0]), torch.tensor([10.0, 0.1, 1.0])
    model.scaling = Standardization(mean, std)
    out = sample(model, 7, 2, seed=1, trajectory=True)
    torch.testing.assert_close(out.x, plain.x * std + mean, check_dtype=False)
    torch.testing.assert_close(out.trajectory, plain.trajectory * std + mean, check_dtype=False)
    assert torch.equal(out.trajectory[-1], out.x) and torch.equal(out.times, plain.times)
    raw = sample(model, 7, 2, seed=1, trajectory=True, original_scale=False)
    assert torch.equal(raw.x, plain.x) and torch.equal(raw.trajectory, plain.trajectory)


def test_reflow_keeps_the_scaling():
    """Its pairs are on the line, where the next network works; that network's samples are undone again."""
    model = FlowMap(GaussianNet(), RectifiedFlow())
    model.scaling = Standardization(torch.tensor([5.0, 50.0]), torch.tensor([10.0, 0.1]))
    pairs = reflow(model, 30, nfe=4, seed=5)
    assert pairs.scaling is model.scaling and torch.equal(pairs.noise, noise(model, 30, 5))
    assert torch.equal(pairs.x, sample(model, 30, 4, "euler", 5, original_scale=False).x.float())
    classes = reflow(FlowMap(WithLabels(), RectifiedFlow()), 6, nfe=1, labels=np.int64(2))
    assert classes.labels.tolist() == [2] * 6 and classes.scaling is None


# ---------------------------------------------------------------- samplers of one's own


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLERS", dict(SAMPLERS))
    return sampling.SAMPLERS


def test_a_sampler_of_one_s_own(registry):
    """The midpoint rule: of second order at least, with two calls a step, a trajectory and guidance for nothing."""

    @register_sampler("midpoint")
    class Midpoint(Sampler):
        calls = 2

        def step(self, u, x, t, s):
            middle = (t + s) / 2
            half = x - (t - middle) * u(x, t, t)
            return x - (t - s) * u(half, middle, middle)

    model = FlowMap(GaussianNet(), RectifiedFlow())
    truth = sample(model, 64).x
    errors = [
        float((sample(model, 64, nfe, "midpoint").x - truth).abs().max()) for nfe in (64, 128, 256)
    ]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert rates.min() > 1.75
    out = sample(model, 10, 6, "midpoint", trajectory=True)
    assert out.nfe == 6 and out.trajectory.shape == (4, 10, 2) and len(out.times) == 4
    guided = sample(
        FlowMap(WithLabels(), RectifiedFlow()), 10, 8, "midpoint", labels=1, guidance=2.0
    )
    assert guided.nfe == 8
    for nfe, words in ((None, "midpoint needs nfe"), (3, "multiple of 2, got 3")):
        with pytest.raises(ValueError) as error:
            sample(model, 10, nfe, "midpoint")
        assert words in one_line(error)
    assert register_sampler("midpoint")(Midpoint) is Midpoint  # a cell that is run again


def test_what_cannot_be_a_sampler(registry):
    class Mine(Sampler):
        pass

    for name, kind, words in (
        ("euler", Mine, "the name 'euler' is taken by the sampler iflow_lib.sampling.Euler"),
        ("auto", Mine, "takes a name"),
        ("", Mine, "takes a name"),
        (Mine, Mine, "takes a name"),
        ("mine", GaussianNet, "decorates a class that extends ifl.Sampler"),
        ("mine", Mine.step, "decorates a class that extends ifl.Sampler"),
    ):
        with pytest.raises(ValueError) as error:
            register_sampler(name)(kind)
        assert words in one_line(error)
    assert registry.keys() == SAMPLERS.keys()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "the sampler Wrong has no step: give it step(self, u, x, t, s)"),
        ({"step": lambda *_: None}, "made a point of type NoneType: step must return the points"),
        ({"step": lambda self, u, x, t, s: x.numpy()}, "made a point of type ndarray"),
        ({"grid": lambda *_: [1.0, 0.0]}, "must fall from tau_max to 0, in a tensor"),
        ({"grid": lambda *_: torch.zeros(0)}, "must fall from tau_max to 0, in a tensor"),
        ({"points": lambda *_: iter(())}, "the sampler Wrong made no points"),
        ({"calls": 0}, "calls of the sampler Wrong must be a whole number of at least 1, got 0"),
    ],
)
def test_a_sampler_with_a_fault(registry, changes, words):
    model = FlowMap(GaussianNet(), RectifiedFlow())
    with pytest.raises((ValueError, NotImplementedError)) as error:
        register_sampler("wrong")(type("Wrong", (Sampler,), changes))
        sample(model, 5, 2, "wrong")
    assert words in one_line(error)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError) as error:
        sample(FlowMap(MLP(dim=2), RectifiedFlow()).to("meta"), 3)
    assert '"meta"' in one_line(error)


def test_a_sampler_that_ends_early_or_changes_the_shape_is_refused(registry):
    @register_sampler("halfway")
    class Halfway(sampling.Euler):
        def grid(self, plan):
            return torch.linspace(1, 0.5, plan.evaluations + 1, dtype=torch.float64)

    @register_sampler("first")
    class First(sampling.Euler):
        def step(self, u, x, t, s):
            return x[:, :1]

    model = FlowMap(GaussianNet(), RectifiedFlow())
    for method, words in (
        ("halfway", "the times of the sampler Halfway must fall from tau_max to 0"),
        ("first", "the sampler First made a point of shape (5, 1) from one of (5, 2)"),
    ):
        with pytest.raises(ValueError) as error:
            sample(model, 5, 2, method)
        assert words in one_line(error)


def test_printed_samples_are_short():
    out = sample(FlowMap(GaussianNet(), RectifiedFlow()), 5, 2, trajectory=True)
    assert repr(out) == "SampleResult(x: (5, 2), trajectory: (3, 5, 2), times: (3,), nfe: 2)"


def test_noise_comes_in_blocks_of_bounded_size():
    model = spied(RectifiedFlow())
    sizes = [len(block) for block in initial_noise(model, 10 * sampling.NOISE_BLOCK + 3)]
    assert max(sizes) == sampling.NOISE_BLOCK and sizes[-1] == 3
