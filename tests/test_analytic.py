"""analytic: each closed form against another that shares nothing with it: quadrature, derivatives, brute force."""

import math

import pytest
import torch
from exact import MEAN, SHAPES, STD, column, gaussian_jump, one_line

from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving

GAUSSIAN = [RectifiedFlow(), VarianceExploding(), VariancePreserving()]
ALL = [*GAUSSIAN, PoissonFlow(aug_dim=8)]
gaussian_paths = pytest.mark.parametrize("path", GAUSSIAN, ids=lambda p: p.name)
paths = pytest.mark.parametrize("path", ALL, ids=lambda p: p.name)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def times(path, n=7, seed=0):
    """s < t in the middle of the path."""
    g = torch.Generator().manual_seed(seed)
    tau = (
        0.05
        + 0.9 * torch.rand(2, n, generator=g, dtype=torch.float64).sort(0, descending=True).values
    )
    return path.time(tau * path.tau_max)


def correlated(path, shape=(3,)):
    g, dim = torch.Generator().manual_seed(1), math.prod(shape)
    a = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    return GaussianFlow(path, torch.linspace(-1, 1, dim).double().reshape(shape), a @ a.T / dim)


def points(shape=(2,), n=5):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def near(path, flow, t, n=7):
    """Points that the path visits at times t."""
    g = torch.Generator().manual_seed(3)
    x_0 = torch.randn(n, *flow.shape, generator=g, dtype=torch.float64)
    return path.perturb(x_0=x_0, t=t, generator=g).x_t


@gaussian_paths
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_gaussian_jump_carries_quantiles(path, shape):
    n = torch.Size(shape).numel()
    flow = GaussianFlow(path, torch.full(shape, MEAN).double(), STD**2 * torch.eye(n).double())
    t, s = times(path)
    x = near(path, flow, t)
    weights = [(path.alpha(r), path.sigma(r)) for r in (t, s)]
    torch.testing.assert_close(
        flow.jump(x=x, t=t, s=s), gaussian_jump(x, *weights), rtol=1e-7, atol=1e-7
    )  # MEAN: float32


@gaussian_paths
@shapes
@dtypes
def test_gaussian_velocity_is_the_derivative_of_the_jump(path, shape, dtype):
    flow = correlated(path, shape)
    t, _ = times(path)
    x = near(path, flow, t).to(dtype)  # any float in, float64 out
    _, slope = torch.func.jvp(
        lambda s: flow.jump(x=x, t=t, s=s), (t.clone(),), (torch.ones_like(t),)
    )
    torch.testing.assert_close(slope, flow.velocity(x=x, t=t), rtol=1e-10, atol=1e-10)


@gaussian_paths
@shapes
@dtypes
def test_mean_flow_identity(path, shape, dtype):
    """``u = v - (t - s) du/dt`` along the trajectory, du/dt by a central difference: no autograd, no library."""
    flow = correlated(path, shape)
    t, s = times(path)
    x, h = near(path, flow, t).to(dtype), 1e-4 * (t - s)
    moved = [flow.average_velocity(x=flow_forward(flow, x, t, r), t=r, s=s) for r in (t + h, t - h)]
    rate = (moved[0] - moved[1]) / column(2 * h, x)
    expected = flow.velocity(x=x, t=t) - column(t - s, x) * rate
    torch.testing.assert_close(flow.average_velocity(x=x, t=t, s=s), expected, rtol=1e-5, atol=1e-6)


def flow_forward(flow, x, t, r):
    """The exact flow also runs towards later times: the formula does not ask for s <= t."""
    a, y = (
        [(flow.path.alpha(q)[:, None], flow.path.sigma(q)[:, None]) for q in (t, r)],
        x.double().flatten(1),
    )
    spread = [(alpha**2 * flow.variances + sigma**2).sqrt() for alpha, sigma in a]
    y = (
        a[1][0] * flow.mean
        + ((y - a[0][0] * flow.mean) @ flow.axes * spread[1] / spread[0]) @ flow.axes.T
    )
    return y.reshape(x.shape)


@gaussian_paths
def test_reference_solver_meets_the_closed_form(path):
    flow = correlated(path)
    x = near(path, flow, torch.full((7,), path.t_max).double())
    for s in (path.t_max / 3, 0.0):
        exact = flow.jump(x=x, t=torch.full((7,), path.t_max), s=torch.full((7,), s))
        torch.testing.assert_close(
            flow.flow_map(x=x, t=path.t_max, s=s), exact, rtol=1e-7, atol=1e-7
        )


@paths
@shapes
@dtypes
def test_exact_integrals_add_up(path, shape, dtype):
    """G(t -> s) = G(t -> m) + G(m -> s), for a data set by the reference solver and for a Gaussian in closed form."""
    flow = MixtureFlow(path, points(shape), std=0.0)
    x = near(path, flow, torch.full((7,), path.t_max).double()).to(dtype)
    end, middle = 0.1 * path.t_max, 0.5 * path.t_max
    whole = x - flow.flow_map(x=x, t=path.t_max, s=end)
    early = x - flow.flow_map(x=x, t=path.t_max, s=middle)
    late = (x - early) - flow.flow_map(x=x - early, t=middle, s=end)
    scale = float(path.scale(torch.tensor(path.t_max)))
    torch.testing.assert_close(whole, early + late, rtol=1e-8, atol=1e-8 * scale)
    assert float((early - late).abs().max()) > 0.01
    if path in GAUSSIAN:
        flow = correlated(path, shape)
        t, m, s = (torch.full((7,), r).double() for r in (path.t_max, middle, end))
        x_m = flow.jump(x=x, t=t, s=m)
        parts = (x - x_m) + (x_m - flow.jump(x=x_m, t=m, s=s))
        torch.testing.assert_close(x - flow.jump(x=x, t=t, s=s), parts, rtol=1e-8, atol=1e-8)


@gaussian_paths
def test_one_gaussian_is_a_mixture_of_one(path):
    mean = torch.tensor([0.3, -1.0]).double()
    one, other = (
        GaussianFlow(path, mean, 0.25 * torch.eye(2).double()),
        MixtureFlow(path, mean[None], std=0.5),
    )
    t, _ = times(path)
    x = near(path, one, t)
    for name in ("posterior_mean", "velocity"):
        torch.testing.assert_close(
            getattr(one, name)(x=x, t=t), getattr(other, name)(x=x, t=t), rtol=1e-10, atol=1e-10
        )


@paths
@pytest.mark.parametrize("std", [0.0, 0.4])
def test_mixture_posterior_by_brute_force(path, std):
    """E[x_0 | x] by weighting a million draws of x_0 with the kernel as the papers state it."""
    weights = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0])
    y, t = points(), path.time(torch.tensor([0.5]).double())
    x = torch.tensor([[0.4, -0.2]]).double() * path.scale(t)
    g = torch.Generator().manual_seed(4)
    which = torch.multinomial(weights, 1_000_000, replacement=True, generator=g)
    x_0 = y[which] + std * torch.randn(len(which), 2, generator=g, dtype=torch.float64)
    square = (x - path.alpha(t) * x_0).square().sum(1)
    sigma = path.sigma(t)
    if path.name == "PoissonFlow":
        log_p = -(2 + path.aug_dim) / 2 * torch.log(square + path.aug_dim * sigma**2)
    else:
        log_p = -square / (2 * sigma**2)
    expected = torch.softmax(log_p, 0) @ x_0
    found = MixtureFlow(path, y, std=std, weights=weights).posterior_mean(x=x, t=t)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_poisson_tends_to_ve(std):
    y, t = points(), torch.tensor([0.2, 1.0, 30.0]).double()
    x = near(VarianceExploding(), MixtureFlow(VarianceExploding(), y), t, n=3)
    ve = MixtureFlow(VarianceExploding(), y, std=std).velocity(x=x, t=t)
    gaps = [
        float((MixtureFlow(PoissonFlow(d), y, std=std).velocity(x=x, t=t) - ve).abs().max())
        for d in (10, 100, 1000, 10_000)
    ]
    assert gaps[0] > 1e-3 and all(
        later < 0.15 * earlier for earlier, later in zip(gaps, gaps[1:])
    ), gaps


def test_poisson_quadrature_meets_the_closed_form():
    """std -> 0 of the quadrature is the closed kernel."""
    y, t = points(), torch.tensor([0.3, 2.0, 50.0]).double()
    path = PoissonFlow(aug_dim=8)
    x = near(path, MixtureFlow(path, y), t, n=3)
    a, b = (MixtureFlow(path, y, std=std).velocity(x=x, t=t) for std in (0.0, 1e-6))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_data_set_is_reached_from_noise():
    """The flow of a finite data set ends on its points, which shares nothing with the velocity's formula."""
    y = points()
    for path in ALL:
        flow = MixtureFlow(path, y)
        x = path.prior((6, 2), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        end = flow.flow_map(x=x, t=path.t_max, s=0.0)
        assert float(torch.cdist(end, y).amin(1).max()) < 1e-7


def test_bad_input():
    mean, eye = torch.zeros(2), torch.eye(2)
    for make, words in [
        (lambda: GaussianFlow(PoissonFlow(8), mean, eye), "Gaussian noise"),
        (lambda: GaussianFlow(RectifiedFlow(), mean, torch.eye(3)), "shape (2, 2)"),
        (lambda: GaussianFlow(RectifiedFlow(), mean, -eye), "positive semi-definite"),
        (lambda: MixtureFlow(RectifiedFlow(), torch.zeros(0, 2)), "at least one point"),
        (lambda: MixtureFlow(RectifiedFlow(), torch.zeros(3, 2), std=-1), "std >= 0"),
        (
            lambda: MixtureFlow(RectifiedFlow(), torch.zeros(3, 2), weights=torch.zeros(3)),
            "positive numbers",
        ),
        (
            lambda: MixtureFlow(RectifiedFlow(), torch.zeros(3, 2)).velocity(
                x=torch.zeros(1, 3), t=torch.ones(1)
            ),
            "x must have",
        ),
        (
            lambda: MixtureFlow(RectifiedFlow(), torch.zeros(3, 2)).velocity(
                x=torch.zeros(1, 2), t=torch.full((1,), 2.0)
            ),
            "outside this path",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            make()
        assert words in one_line(error)
