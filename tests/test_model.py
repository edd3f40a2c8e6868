"""FlowMap: the boundary bit for bit, and jump, integral, velocity, denoiser against the exact Gaussian flow map in
each path's own clock."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import torch
from exact import MEAN, SHAPES, STD, GaussianNet, column, gaussian_jump, one_line, randomise, spread
from torch import nn

from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving
from iflow_lib.scaling import Standardization

ALL = [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8), VariancePreserving()]
paths = pytest.mark.parametrize("path", ALL, ids=repr)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def weights(path, t):
    """(alpha, sigma), written out again."""
    if path.name == "VariancePreserving":
        spent = 0.1 * t + 19.9 * t**2 / 2
        return torch.exp(-spent / 2), (-torch.expm1(-spent)).sqrt()
    return (1 - t, t) if path.name == "RectifiedFlow" else (torch.ones_like(t), t)


def draw(path, shape, n=40, seed=0, least=0.0):
    """x with the law of x_t, t and s <= t in the path's clock, in float64; both corners of the path included."""
    g = torch.Generator().manual_seed(seed)
    s, t = (
        (least + (path.t_max - least) * torch.rand(2, n, generator=g, dtype=torch.float64) ** 3)
        .sort(0)
        .values
    )
    t[0], s[0] = path.t_max, least
    t[1], s[1] = path.t_max, path.t_max / 2
    alpha, sigma = weights(path, t)
    z = torch.randn((n, *shape), generator=g, dtype=torch.float64)
    return column(alpha, z) * MEAN + column(spread(alpha, sigma), z) * z, t, s


def exact_velocity(path, x, t):
    """d/dt of the flow map at s = t, by hand: alpha' mean + S'/S (x - alpha mean)."""
    alpha, sigma = weights(path, t)
    alpha_dot = torch.full_like(t, -1.0 if path.name == "RectifiedFlow" else 0.0)
    square_dot = sigma  # half the derivative of sigma^2
    if path.name == "VariancePreserving":
        alpha_dot, square_dot = -(0.1 + 19.9 * t) / 2 * alpha, (0.1 + 19.9 * t) / 2 * alpha**2
    rate = (alpha * alpha_dot * STD**2 + square_dot) / spread(alpha, sigma) ** 2
    return column(alpha_dot, x) * MEAN + column(rate, x) * (x - column(alpha, x) * MEAN)


# ---------------------------------------------------------------- the boundary


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "build",
    [
        lambda a: MLP(dim=3, hidden=16, layers=2, anchor=a),
        lambda a: UNet(channels=1, size=8, width=8, blocks=1, anchor=a),
    ],
    ids=["MLP", "UNet"],
)
@pytest.mark.parametrize("anchor", [False, True])
def test_jump_to_the_same_time_is_exactly_x(path, dtype, build, anchor):
    for seed in range(3):
        model = FlowMap(randomise(build(anchor), seed).to(dtype), path)
        g = torch.Generator().manual_seed(seed)
        n = 200 if model.data_shape == (3,) else 24
        t = path.t_max * torch.rand(n, generator=g, dtype=dtype) ** 2
        t[0], t[1], t[2], t[3] = 0, path.t_max, 1e-30, math.nextafter(path.t_max, 0)
        x = (1 + path.t_max) * torch.randn((n, *model.data_shape), generator=g, dtype=dtype)
        a = torch.randn(x.shape, generator=g, dtype=dtype) if anchor else None
        t = t.clamp(max=path.t_max)
        assert torch.equal(model.jump(x=x, t=t, s=t, anchor=a), x)
        assert bool((model.integral(x=x, t=t, s=t, anchor=a) == 0).all())
        # it is the boundary that makes it so, not a network that does nothing
        moved = (model.jump(x=x, t=t, s=t / 2, anchor=a) - x).detach().flatten(1).abs().amax(1)
        assert bool((moved[t > 0.01 * path.t_max] > 0).all()) and float(moved.median()) > 1e-3


# ---------------------------------------------------------------- closed form


@paths
@shapes
def test_exact_network_gives_the_exact_flow_map(path, shape):
    model = FlowMap(GaussianNet(shape), path)
    x, t, s = draw(path, shape)
    x_s = gaussian_jump(x, weights(path, t), weights(path, s))
    torch.testing.assert_close(model.jump(x=x, t=t, s=s), x_s, rtol=1e-11, atol=1e-11)
    integral = model.integral(x=x, t=t, s=s)
    torch.testing.assert_close(integral, x - x_s, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(model.average_velocity(x=x, t=t, s=s) * column(t - s, x), integral)


@paths
@shapes
def test_velocity_and_denoiser(path, shape):
    model = FlowMap(GaussianNet(shape), path)
    x, t, _ = draw(path, shape)
    t[2] = 1e-6 if path.name == "VariancePreserving" else 0.0  # its clock has no derivative at 0
    velocity = model.velocity(x=x, t=t)
    torch.testing.assert_close(velocity, exact_velocity(path, x, t), rtol=1e-11, atol=1e-11)
    alpha, sigma = weights(path, t)
    gain = column(alpha * STD**2 / spread(alpha, sigma) ** 2, x)  # the posterior mean of a Gaussian
    torch.testing.assert_close(
        model.denoise(x=x, t=t), MEAN + gain * (x - column(alpha, x) * MEAN), rtol=1e-11, atol=1e-11
    )
    late = t > 1e-3 * path.t_max  # against the jump itself: x moves by h v in a small time h
    x, t, velocity = x[late], t[late], velocity[late]
    h = 1e-6 * path.t_max
    back = (x - model.jump(x=x, t=t, s=t - h)) / h
    torch.testing.assert_close(back, velocity, rtol=1e-3, atol=1e-4)


@paths
def test_average_velocity_tends_to_the_velocity(path):
    """Its limit as s -> t is the velocity, from which it differs by O(t - s); at s == t it is the velocity."""
    model = FlowMap(GaussianNet((2,)), path)
    x, t, _ = draw(path, (2,), least=0.1)
    velocity = model.velocity(x=x, t=t)
    gaps = [
        (model.average_velocity(x=x, t=t, s=t - h) - velocity).detach() for h in (1e-2, 1e-3, 1e-4)
    ]
    errors = [float(gap.abs().max()) for gap in gaps]
    assert errors[0] > 1e-4 and all(8 < a / b < 12 for a, b in pairwise(errors)), errors
    assert torch.equal(model.average_velocity(x=x, t=t, s=t), velocity)
    s = t.clone()
    s[::2] -= 0.05  # a batch in which some pairs are equal and some are not
    mixed = model.average_velocity(x=x, t=t, s=s)
    assert torch.equal(mixed[1::2], velocity[1::2])
    torch.testing.assert_close(
        mixed[::2], (x - gaussian_jump(x, weights(path, t), weights(path, s)))[::2] / 0.05
    )


@paths
def test_average_velocity_keeps_its_digits_in_float32(path):
    model = FlowMap(GaussianNet((2,), torch.float32), path)
    x, t, _ = draw(path, (2,), least=0.1)
    s = t - 1e-3 * t
    x, t, s = x.float(), t.float(), s.float()
    exact = FlowMap(GaussianNet((2,)), path).average_velocity(
        x=x.double(), t=t.double(), s=s.double()
    )
    error = (model.average_velocity(x=x, t=t, s=s) - exact).abs() / (1 + exact.abs())
    assert float(error.max().detach()) < 0.005


@paths
def test_integral_is_the_integral_of_velocity(path):
    """G(t -> s) against quadrature of the velocity over the trajectory, which is solved from the velocity alone."""
    model = FlowMap(GaussianNet((2,)), path)
    x, t, s = (
        torch.tensor([[1.3, -0.4]], dtype=torch.float64),
        *torch.tensor([[0.9], [0.2]], dtype=torch.float64),
    )

    def v(r, y):
        return (
            model.velocity(x=torch.from_numpy(y)[None], t=torch.tensor([r], dtype=torch.float64))[0]
            .detach()
            .numpy()
        )

    run = scipy.integrate.solve_ivp(v, (0.9, 0.2), x[0].numpy(), rtol=1e-11, atol=1e-11)
    assert np.abs(run.y[:, -1] - model.jump(x=x, t=t, s=s)[0].detach().numpy()).max() < 1e-8
    assert (
        np.abs(
            x[0].numpy() - run.y[:, -1] - model.integral(x=x, t=t, s=s)[0].detach().numpy()
        ).max()
        < 1e-8
    )


@paths
def test_jumps_compose(path):
    model = FlowMap(GaussianNet((24,)), path)
    x, t, s = draw(path, (24,))
    middle = (t + s) / 2
    two = model.jump(x=model.jump(x=x, t=t, s=middle), t=middle, s=s)
    torch.testing.assert_close(two, model.jump(x=x, t=t, s=s), rtol=1e-10, atol=1e-10)


class FiniteDataNet(nn.Module):
    """Exact velocity on the line of a finite data set, Gaussian noise: (x - E[x_0 | x]) / t. Ignores s."""

    data_shape = (2,)

    def __init__(self, points):
        super().__init__()
        self.points = points

    def forward(self, x, t, s):
        t = t[:, None]
        logits = -((x[:, None] - (1 - t)[..., None] * self.points) ** 2).sum(-1) / (2 * t**2)
        return (x - logits.softmax(1) @ self.points) / t


@pytest.mark.parametrize("exact", [None, "gaussian"], ids=["finite data", "gaussian"])
def test_trajectories_agree_after_the_change_of_clock(exact):
    """Solve the ODE of ``FlowMap.velocity`` in the VE clock and in the rectified clock: the same curve to 1e-9."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(6, 2, generator=g, dtype=torch.float64)
    net = GaussianNet((2,)) if exact else FiniteDataNet(points)
    start = 80 * torch.randn(6, 2, generator=g, dtype=torch.float64)
    ve, times = VarianceExploding(), [80.0, 3.0, 0.5, 0.1]

    @torch.no_grad()
    def solve(path, x, a, b):
        model = FlowMap(net, path)

        def v(t, y):
            y = torch.from_numpy(y).reshape(x.shape)
            return (
                model.velocity(x=y, t=torch.full((len(y),), t, dtype=torch.float64)).numpy().ravel()
            )

        run = scipy.integrate.solve_ivp(
            v, (a, b), x.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12
        )
        return torch.from_numpy(run.y[:, -1]).reshape(x.shape)

    x, (y, tau) = start, ve.to_line(start, torch.full((6,), 80.0, dtype=torch.float64))
    for a, b in pairwise(times):
        x = solve(ve, x, a, b)
        x_line, tau_b = ve.to_line(x, torch.full((6,), b, dtype=torch.float64))
        y = solve(RectifiedFlow(), y, float(tau[0]), float(tau_b[0]))
        tau = tau_b
        assert float((x_line - y).abs().max()) < 1e-9
        if exact:
            t = torch.full((6,), 80.0, dtype=torch.float64)
            one = torch.ones_like(t)
            truth = gaussian_jump(start, (one, t), (one, torch.full_like(t, b)))
            assert float((x - truth).abs().max()) < 1e-9


# ---------------------------------------------------------------- refusals


METHODS = ["jump", "integral", "average_velocity"]


@paths
@pytest.mark.parametrize("method", METHODS)
def test_bad_times(path, method):
    model = FlowMap(MLP(dim=2, hidden=4, layers=1), path)
    x, ok = torch.randn(3, 2), torch.tensor([0.1, 0.2, 0.3])
    for t, s, words in (
        (ok, ok + 0.1, "s must not be later"),
        (ok + path.t_max, ok, "t is outside this path"),
        (ok, ok - 0.2, "s is outside this path"),
        (ok * math.nan, ok, "t is outside"),
        (ok, ok * math.nan, "s is outside"),
        (ok[:, None], ok, "times must have shape (3,)"),
        (ok[:2], ok[:2], "times must have shape (3,)"),
        (ok, ok[0], "times must have shape (3,)"),
    ):
        with pytest.raises(ValueError) as error:
            getattr(model, method)(x=x, t=t, s=s)
        assert words in one_line(error)


@paths
@pytest.mark.parametrize("method", ["velocity", "denoise"])
def test_bad_single_times(path, method):
    model = FlowMap(MLP(dim=2, hidden=4, layers=1), path)
    x, ok = torch.randn(3, 2), torch.tensor([0.1, 0.2, 0.3])
    for t, words in ((ok + path.t_max, "outside"), (-ok, "outside"), (ok[:2], "(3,)")):
        with pytest.raises(ValueError) as error:
            getattr(model, method)(x=x, t=t)
        assert words in one_line(error)


def test_wrong_shapes_and_arguments():
    t = torch.tensor([0.5, 0.5])
    for net, bad in (
        (MLP(dim=2, hidden=4, layers=1), (2, 3)),
        (MLP(dim=2, hidden=4, layers=1), (2,)),
        (UNet(size=8, width=8), (2, 8, 8)),
        (UNet(size=8, width=8), (2, 3, 8, 8)),
    ):
        model = FlowMap(net, RectifiedFlow())
        for method, times in (("jump", {"t": t, "s": t}), ("velocity", {"t": t})):
            with pytest.raises(ValueError) as error:
                getattr(model, method)(x=torch.zeros(bad), **times)
            assert "x must have shape (B, " in one_line(error) and str(tuple(bad)) in str(
                error.value
            )
    model, x = FlowMap(MLP(dim=2, hidden=4, layers=1), RectifiedFlow()), torch.zeros(2, 2)
    for method in ("jump", "integral", "average_velocity"):
        for bad, words in (
            ({"x": x, "t": 1.0, "s": 0.0}, "t must be a tensor, got float"),
            ({"x": [[0.0, 0.0]], "t": t, "s": t}, "x must be a tensor, got list"),
            ({"x": x.double(), "t": t, "s": t}, "the type of the weights, torch.float32; got"),
            ({"x": x, "t": t.double(), "s": t}, "the type of the weights, torch.float32; got"),
        ):
            with pytest.raises(ValueError) as error:
                getattr(model, method)(**bad)
            assert words in one_line(error)
    wide = FlowMap(GaussianNet(), RectifiedFlow())  # without weights: no type is wrong
    assert wide.jump(x=x.double(), t=t, s=0 * t).dtype == torch.float64
    assert copy.deepcopy(model).double().jump(x=x.double(), t=t, s=0 * t).dtype == torch.float64
    with pytest.raises(TypeError):
        model.jump(torch.zeros(2, 2), t, t)  # keyword-only
    for net, path, words in (
        (MLP(dim=2), "rectified", "path must be a path such as RectifiedFlow(), got str"),
        (MLP(dim=2), RectifiedFlow, "path must be a path such as RectifiedFlow(), got the class"),
        (MLP, RectifiedFlow(), "net must be a network such as MLP(dim=2), got the class MLP"),
        (lambda x, t, s: x, RectifiedFlow(), "net must be a network"),
    ):
        with pytest.raises(ValueError) as error:
            FlowMap(net, path)
        assert words in one_line(error)


class Bare(nn.Module):
    def forward(self, x, t, s):
        return x


def test_a_network_says_what_it_takes():
    """A network without data_shape was accepted, and failed much later."""
    with pytest.raises(ValueError) as error:
        FlowMap(Bare(), RectifiedFlow())
    assert "the network Bare has no data_shape: set self.data_shape" in one_line(error)
    for shape in (3, None, (), "3", (0,), (3, -1), (2.5,), ("3",), (True,)):
        net = Bare()
        net.data_shape = shape
        with pytest.raises(ValueError) as error:
            FlowMap(net, RectifiedFlow())
        assert "data_shape of the network Bare must be the shape of one example" in one_line(error)
        assert repr(shape) in str(error.value)
    for shape in ((3,), [3, 4], torch.Size([3]), np.array([3, 4]), (np.int64(3),)):
        net = Bare()
        net.data_shape = shape
        model = FlowMap(net, RectifiedFlow())
        assert model.data_shape == tuple(int(side) for side in shape)
    for classes in (None, -1, ["a", "b"], 2.5):
        net = Bare()
        net.data_shape, net.classes = (3,), classes
        with pytest.raises(ValueError) as error:
            FlowMap(net, RectifiedFlow())
        assert "classes of the network Bare must be the number of classes" in one_line(error)


def test_what_travels_with_a_model():
    """What it learned and its scale are copied and moved with it, and are no part of its weights."""
    model = FlowMap(MLP(dim=2, hidden=4, layers=1), RectifiedFlow())
    assert model.learned is None and model.scaling is None
    names = list(model.state_dict())
    model.learned, model.scaling = "jump", Standardization(torch.ones(2), 2 * torch.ones(2))
    twin = copy.deepcopy(model).double()
    assert twin.learned == "jump" and list(twin.state_dict()) == names
    assert torch.equal(twin.scaling.undo(torch.zeros(3, 2).double()), torch.ones(3, 2).double())


def test_a_scale_must_make_sense():
    one = torch.ones(2)
    for mean, std, words in (
        (one, torch.ones(3), "one shape"),
        (one, 0 * one, "std must be positive"),
        (one, -one, "std must be positive"),
        (one, math.nan * one, "std must be positive"),
        (one / 0, one, "mean must be finite"),
    ):
        with pytest.raises(ValueError) as error:
            Standardization(mean, std)
        assert words in one_line(error)
    scale = Standardization([5.0, 50.0], [0.5, 10.0])
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(scale.undo(scale.apply(x)), x)
    assert scale.apply(x).dtype == torch.float64
    torch.testing.assert_close(scale.apply(torch.tensor([[5.0, 50.0]])), torch.zeros(1, 2))
    assert scale.config() == {"mean": [5.0, 50.0], "std": [0.5, 10.0]}


def test_compiled_where_that_works(monkeypatch):
    """A model goes on as it was where the compiler fails; its copies are not compiled."""
    calls = []

    def compiler(function, **options):
        calls.append(options)
        return lambda *args, **kwargs: function(*args, **kwargs) + 1

    monkeypatch.setattr(torch, "compile", compiler)
    model = FlowMap(randomise(MLP(dim=2, hidden=4, layers=1)), RectifiedFlow())
    x, t = torch.zeros(3, 2), torch.ones(3)
    plain = model(x, t, 0 * t)
    model.compile(dynamic=False)
    assert torch.equal(model(x, t, 0 * t), plain + 1) and calls == [{"dynamic": False}]
    assert torch.equal(copy.deepcopy(model)(x, t, 0 * t), plain)


def test_a_network_that_returns_another_shape():
    class Wrong(nn.Module):
        data_shape = (3,)

        def forward(self, x, t, s):
            return x[:, :2]

    model = FlowMap(Wrong(), RectifiedFlow())
    with pytest.raises(ValueError) as error:
        model.jump(x=torch.zeros(4, 3), t=torch.ones(4), s=torch.zeros(4))
    assert "the network Wrong returned shape (4, 2) for x of shape (4, 3)" in one_line(error)
