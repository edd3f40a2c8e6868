"""Paths: every formula against autograd or an independent closed form; path families are one line."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from exact import SHAPES, column, one_line

from iflow_lib.paths import (
    PATHS,
    Path,
    PoissonFlow,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    expand,
    register_path,
)

ALL = [
    RectifiedFlow(),
    VarianceExploding(),
    VariancePreserving(),
    PoissonFlow(aug_dim=8),
    PoissonFlow(aug_dim=128),
]
DTYPES = [torch.float32, torch.float64]
paths = pytest.mark.parametrize("path", ALL, ids=repr)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(path, shape, dtype, n=9, seed=0):
    """Data, noise and times that include both ends of the path."""
    g = torch.Generator().manual_seed(seed)
    x_0, z = torch.randn((2, n, *shape), generator=g, dtype=dtype)
    t = path.t_max * torch.rand(n, generator=g, dtype=dtype) ** 2
    t[0], t[1] = (
        1e-3 if path.name == "VariancePreserving" else 0,
        path.t_max,
    )  # sigma' of VP is infinite at 0
    return x_0, z, t


def close(a, b, dtype):
    torch.testing.assert_close(
        a,
        b,
        rtol=1e-5 if dtype == torch.float32 else 1e-12,
        atol=0 if a.ndim == 1 else 1e-5 if dtype == torch.float32 else 1e-12,
    )


def weights(path, t):
    """alpha and sigma, written anew. VP: from the integral of its rate beta(t) = 0.1 + 19.9 t."""
    if path.name == "VariancePreserving":
        spent = 0.1 * t + 19.9 * t**2 / 2
        return torch.exp(-spent / 2), (-torch.expm1(-spent)).sqrt()
    return (1 - t if path.name == "RectifiedFlow" else torch.ones_like(t)), t


# ---------------------------------------------------------------- formulas


@paths
@dtypes
@shapes
def test_perturb_is_the_path_equation(path, shape, dtype):
    x_0, z, t = draw(path, shape, dtype)
    out = path.perturb(x_0=x_0, t=t, noise=z)
    alpha, sigma = weights(path, t)
    assert out.x_t.dtype == out.velocity.dtype == dtype
    for i in range(len(t)):  # one example at a time: no broadcasting to go wrong
        close(out.x_t[i], alpha[i] * x_0[i] + sigma[i] * z[i], dtype)
    assert t[0] > 0 or torch.equal(out.x_t[0], x_0[0])  # t = 0 is data
    assert torch.equal(out.x_0, x_0) and torch.equal(out.noise, z) and torch.equal(out.t, t)


@paths
@dtypes
@shapes
def test_velocity_is_the_derivative_of_x_t(path, shape, dtype):
    x_0, z, t = draw(path, shape, dtype)
    x_t, dx_t = torch.func.jvp(
        lambda t: path.perturb(x_0=x_0, t=t, noise=z).x_t, (t,), (torch.ones_like(t),)
    )
    out = path.perturb(x_0=x_0, t=t, noise=z)
    close(x_t, out.x_t, dtype)
    close(dx_t, out.velocity, dtype)
    if dtype == torch.float64:  # and against no autograd at all
        t = t.clamp(1e-2, path.t_max - 1e-3)
        ahead, behind = (path.perturb(x_0=x_0, t=t + h, noise=z).x_t for h in (1e-4, -1e-4))
        torch.testing.assert_close(
            (ahead - behind) / 2e-4,
            path.perturb(x_0=x_0, t=t, noise=z).velocity,
            rtol=1e-8,
            atol=1e-8 if path.name != "VariancePreserving" else 1e-4,
        )  # it bends


@paths
def test_alpha_and_sigma_derivatives(path):
    t = torch.linspace(0, path.t_max, 101, dtype=torch.float64)
    for f, f_dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        torch.testing.assert_close(
            torch.func.jvp(f, (t[1:],), (torch.ones(100).double(),))[1],
            f_dot(t[1:]),
            rtol=1e-11,
            atol=0,
        )
    assert path.name == "VariancePreserving" or bool(torch.isfinite(path.sigma_dot(t)).all())
    assert path.alpha(t)[0] == 1 and path.sigma(t)[0] == 0


@paths
@dtypes
@shapes
def test_every_path_is_the_line(path, shape, dtype):
    x_0, z, t = draw(path, shape, dtype)
    x_line, tau = path.to_line(path.perturb(x_0=x_0, t=t, noise=z).x_t, t)
    alpha, sigma = weights(path, t)
    close(tau, sigma / (alpha + sigma), dtype)
    close(x_line, column(1 - tau, x_0) * x_0 + column(tau, x_0) * z, dtype)
    assert x_line.shape == x_0.shape and x_line.dtype == tau.dtype == dtype
    alpha, sigma = weights(path, torch.tensor(path.t_max, dtype=torch.float64))
    assert abs(path.tau_max - sigma / (alpha + sigma)) < 1e-15 and path.t_max == (
        80 if alpha == 1 else 1
    )


@paths
@dtypes
@shapes
def test_to_line_and_back(path, shape, dtype):
    x_0, z, t = draw(path, shape, dtype)
    x = path.perturb(x_0=x_0, t=t, noise=z).x_t
    back, t_back = path.from_line(*path.to_line(x, t))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12  # 1 - tau loses a factor of 81 at t = 80
    torch.testing.assert_close(t_back, t, rtol=tolerance, atol=0)
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    path.check_times(t_back)  # rounding must not carry t_max off the path


@paths
@dtypes
def test_line_ends_map_to_path_ends(path, dtype):
    t = path.time(torch.tensor([0.0, path.tau_max], dtype=dtype))
    assert t[0] == 0 and t[1] <= path.t_max and t[1] > 0.9999 * path.t_max


def test_expand_broadcasts_over_examples_only():
    t = torch.arange(3.0)
    for shape in SHAPES:
        product = expand(t, torch.ones(3, *shape)) * torch.ones(3, *shape)
        assert product.shape == (3, *shape) and all(bool((product[i] == i).all()) for i in range(3))
    square = torch.ones(3, 3)  # B == N must not turn the times to the other axis
    assert torch.equal(expand(t, square) * square, t[:, None].repeat(1, 3))


# ---------------------------------------------------------------- finite data set: exact trajectories


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).standard_normal((6, 2))


def posterior_mean(points, x, alpha, sigma):
    """E[x_0 | x_t = x] of the finite data set under Gaussian noise; x: (B, 2)."""
    distance = ((x[:, None] - alpha * points) ** 2).sum(-1)
    return scipy.special.softmax(-distance / (2 * sigma**2), axis=1) @ points


def solve(velocity, x, times):
    """States at the times after the first, each an end point of its own integration."""
    states = []
    for a, b in pairwise(times):
        run = scipy.integrate.solve_ivp(
            lambda t, y: velocity(y.reshape(-1, 2), t).ravel(),
            (a, b),
            x.ravel(),
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
        )
        assert run.success
        x = run.y[:, -1].reshape(-1, 2)
        states.append(x)
    return states


def test_ve_and_rectified_trajectories_are_the_same_line(points):
    """Both ODEs in their own clocks, from independent formulas; only the change of clock is the library's."""
    ve, rf = VarianceExploding(), RectifiedFlow()
    x_ve = 80 * np.random.default_rng(1).standard_normal((8, 2))
    t_ve = np.array([80.0, 10.0, 2.0, 1.0, 0.5, 0.2, 0.05])
    ve_states = solve(lambda x, t: (x - posterior_mean(points, x, 1.0, t)) / t, x_ve, t_ve)

    def to_line(x, t):
        x, tau = ve.to_line(torch.from_numpy(x), torch.full((len(x),), t, dtype=torch.float64))
        x, t = rf.from_line(x, tau)
        return x.numpy(), float(t[0])

    x_rf, _ = to_line(x_ve, t_ve[0])
    t_rf = [to_line(x_ve, t)[1] for t in t_ve]
    rf_states = solve(lambda x, t: (x - posterior_mean(points, x, 1 - t, t)) / t, x_rf, t_rf)
    for t, a, b in zip(t_ve[1:], ve_states, rf_states):
        assert np.abs(to_line(a, t)[0] - b).max() < 1e-9
    nearest = np.linalg.norm(ve_states[-1][:, None] - points, axis=-1).argmin(1)
    assert len(set(nearest)) > 1  # the trajectories did split: the test is not about one attractor


# ---------------------------------------------------------------- PFGM++'s kernel


def radius(z, aug_dim):
    return z.flatten(1).double().norm(dim=1) / math.sqrt(aug_dim)


@pytest.mark.parametrize("aug_dim", [8, 128])
@pytest.mark.parametrize("shape", [(2,), (24,), (1, 28, 28)], ids=str)
def test_poisson_radius_and_direction(shape, aug_dim):
    n, dim = 4000, math.prod(shape)
    z = PoissonFlow(aug_dim).noise((n, *shape), generator=torch.Generator().manual_seed(0))
    assert z.shape == (n, *shape) and z.dtype == torch.float32
    r2 = radius(z, aug_dim).numpy() ** 2
    beta = scipy.stats.beta(dim / 2, aug_dim / 2)
    assert scipy.stats.kstest(r2 / (1 + r2), beta.cdf).pvalue > 0.01
    # directions: a coordinate of a uniform unit vector has u_1^2 ~ Beta(1/2, (N - 1)/2), either sign, no link to R
    u = torch.nn.functional.normalize(z.flatten(1).double(), dim=1).numpy()
    for i in (0, dim - 1):
        assert (
            scipy.stats.kstest(u[:, i] ** 2, scipy.stats.beta(0.5, (dim - 1) / 2).cdf).pvalue > 0.01
        )
        assert scipy.stats.binomtest(int((u[:, i] > 0).sum()), n).pvalue > 0.01
        assert scipy.stats.spearmanr(np.abs(u[:, i]), r2).pvalue > 0.01
    assert abs(scipy.stats.pearsonr(u[:, 0], u[:, -1]).statistic) < 4 / math.sqrt(n)


@pytest.mark.parametrize("dim, aug_dim", [(1, 3), (2, 8), (3, 16), (24, 128)])
def test_poisson_perturbation_kernel(dim, aug_dim):
    """x given y has density proportional to (|x - y|^2 + r^2)^(-(N + aug_dim)/2), r = sigma sqrt(aug_dim): the
    distance |x - y| from that formula, normalised numerically."""
    n, sigma = 20_000, 3.0
    y = torch.full((n, dim), 1.5, dtype=torch.float64)
    t = torch.full((n,), sigma, dtype=torch.float64)
    x = PoissonFlow(aug_dim).perturb(x_0=y, t=t, generator=torch.Generator().manual_seed(0)).x_t
    r = sigma * math.sqrt(aug_dim)
    grid = np.linspace(0, 400 * sigma, 2_000_001)[1:]
    log_density = (dim - 1) * np.log(grid) - (dim + aug_dim) / 2 * np.log(grid**2 + r**2)
    mass = scipy.integrate.cumulative_trapezoid(
        np.exp(log_density - log_density.max()), grid, initial=0
    )
    cdf = np.interp((x - y).norm(dim=1).numpy(), grid, mass / mass[-1])
    assert scipy.stats.kstest(cdf, "uniform").pvalue > 0.01


def test_poisson_tends_to_ve():
    n, dim = 4000, 24
    distances = []
    for aug_dim in (4, 16, 64, 1024):
        z = PoissonFlow(aug_dim).noise((n, dim), generator=torch.Generator().manual_seed(3))
        distances.append(
            scipy.stats.kstest(z.norm(dim=1).numpy(), scipy.stats.chi(dim).cdf).statistic
        )
    assert all(b < 0.7 * a for a, b in pairwise(distances)), distances
    gauss = VarianceExploding().noise((n, dim), generator=torch.Generator().manual_seed(3))
    errors = []
    for aug_dim in (1e4, 1e6, 1e8):
        z = PoissonFlow(aug_dim).noise((n, dim), generator=torch.Generator().manual_seed(3))
        errors.append(float(((z - gauss).norm(dim=1) / gauss.norm(dim=1)).max()))
    assert (
        errors[2] < 1e-3 and errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5
    )  # like 1 / sqrt(aug_dim)


# ---------------------------------------------------------------- noise, prior, times


@paths
@dtypes
def test_noise_is_seeded_and_prior_scales_it(path, dtype):
    g = torch.Generator()
    z, again, other = (
        path.noise((50, 3), generator=g.manual_seed(s), dtype=dtype) for s in (0, 0, 1)
    )
    assert torch.equal(z, again) and not torch.equal(z, other) and z.dtype == dtype
    torch.manual_seed(1)
    prior = path.prior((50, 3), generator=g.manual_seed(0), dtype=dtype)
    sigma_max = weights(path, torch.tensor(path.t_max, dtype=torch.float64))[1]
    close(prior, float(sigma_max) * z, dtype)
    drawn = path.perturb(
        x_0=torch.zeros(50, 3, dtype=dtype),
        t=torch.full((50,), path.t_max, dtype=dtype),
        generator=g.manual_seed(0),
    )
    close(drawn.x_t, prior, dtype)


@paths
def test_training_times_follow_the_stated_density(path):
    t = path.sample_times(4000, generator=torch.Generator().manual_seed(0)).double()
    assert t.shape == (4000,) and bool(((t >= 0) & (t <= path.t_max)).all())
    log_ratio = torch.logit(path.tau(t)).numpy()
    below = log_ratio < math.log(80)  # times are cut at t_max
    mean, std = path.time_density
    law = (
        scipy.stats.truncnorm(-np.inf, (math.log(80) - mean) / std, mean, std)
        if path.t_max == 80
        else scipy.stats.norm(mean, std)
    )
    chosen = log_ratio[below] if path.t_max == 80 else log_ratio
    assert scipy.stats.kstest(chosen, law.cdf).pvalue > 0.01
    assert torch.equal(
        t.float(), path.sample_times(4000, generator=torch.Generator().manual_seed(0))
    )


@paths
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_grid(path, steps):
    grid = path.grid(steps)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert grid[0] == path.t_max and grid[-1] == 0 and bool((grid.diff() < 0).all())
    if path.t_max == 1:
        expected = [1 - i / steps for i in range(steps + 1)]
    else:  # EDM, eq. 5
        expected = [
            (80 ** (1 / 7) + i / max(steps - 1, 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
            for i in range(steps)
        ] + [0]
    torch.testing.assert_close(
        grid, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


@paths
def test_both_grids_on_every_path(path):
    """The rho grid is the same set of noise levels, whatever the clock: the line's own."""
    rho = path.tau(path.grid(20, "rho"))[1:]
    torch.testing.assert_close(
        path.tau(path.grid(20, "uniform")),
        path.tau(torch.linspace(path.t_max, 0, 21).double()),
        rtol=1e-6,
        atol=1e-9,
    )
    ratio = torch.tensor(
        [(80 ** (1 / 7) + i / 19 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(1, 20)]
        + [0]
    )
    torch.testing.assert_close(rho / (1 - rho), ratio.double(), rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match='"uniform" or "rho", got \'cosine\''):
        path.grid(4, "cosine")


@paths
def test_uniform_times_and_unknown_densities(path):
    t = path.sample_times(
        4000, density="uniform", generator=torch.Generator().manual_seed(0)
    ).numpy()
    assert scipy.stats.kstest(t, scipy.stats.uniform(0, path.t_max).cdf).pvalue > 0.01
    for density in ("log", (1.0,), (0.0, -1.0)):
        with pytest.raises(ValueError, match="density must be"):
            path.sample_times(4, density=density)


@pytest.mark.parametrize(
    "arguments", [(0, 19.9), (-0.1, 1), (0.1, -1), (float("nan"), 1), (0.1, float("inf"))]
)
def test_vp_needs_positive_rates(arguments):
    with pytest.raises(ValueError, match="beta_min > 0"):
        VariancePreserving(*arguments)


# ---------------------------------------------------------------- identity and errors


def test_paths_compare_by_what_they_are():
    assert (
        PoissonFlow(8) == PoissonFlow(8) != PoissonFlow(9)
        and VarianceExploding() != RectifiedFlow()
    )
    assert (
        hash(PoissonFlow(8)) == hash(PoissonFlow(8))
        and repr(PoissonFlow(8)) == "PoissonFlow(aug_dim=8)"
    )
    for path in ALL:
        assert PATHS[path.name](**path.config()) == path and isinstance(path, Path)


@paths
def test_perturb_refuses_bad_arguments(path):
    x, t = torch.randn(4, 2), torch.rand(4)
    for bad, words in (
        (torch.rand(3), "shape (4,)"),
        (torch.rand(4, 1), "shape (4,)"),
        (torch.rand(()), "shape (4,)"),
        (-t - 0.1, "outside"),
        (t + path.t_max, "outside"),
        (t * math.nan, "outside"),
    ):
        with pytest.raises(ValueError) as error:
            path.perturb(x_0=x, t=bad)
        assert words in one_line(error)
    for bad in (torch.randn(4, 3), torch.randn(1, 2), torch.randn(2)):
        with pytest.raises(ValueError) as error:
            path.perturb(x_0=x, t=t, noise=bad)
        assert "(4, 2)" in one_line(error)
    with pytest.raises(TypeError):
        path.perturb(x, t)  # keyword-only: nobody swaps them unnoticed


@pytest.mark.parametrize("aug_dim", [0, -1, math.inf, math.nan])
def test_aug_dim_must_be_positive(aug_dim):
    with pytest.raises(ValueError) as error:
        PoissonFlow(aug_dim)
    assert "aug_dim" in one_line(error)


# ---------------------------------------------------------------- paths of one's own


@pytest.fixture
def registry():
    before = dict(PATHS)
    yield PATHS
    PATHS.clear()
    PATHS.update(before)


def test_a_path_of_one_s_own(registry):
    @register_path
    class Trigonometric(RectifiedFlow):
        """``x_t = cos(pi t / 2) x_0 + sin(pi t / 2) z``."""

    assert registry["Trigonometric"] is Trigonometric
    assert register_path(Trigonometric) is Trigonometric  # a cell that is run again
    assert PATHS["Trigonometric"]() == Trigonometric() != RectifiedFlow()


def test_what_cannot_be_a_path(registry):
    class WithoutConfig(Path):
        def __init__(self, power: float):
            self.power = power

    other = type("PoissonFlow", (Path,), {})
    for given, words in (
        (other, "the name PoissonFlow is taken by the path iflow_lib.paths.PoissonFlow"),
        (WithoutConfig, "the path WithoutConfig has no config(): give it one that returns its"),
        (dict, "register_path decorates a class that extends ifl.Path, not dict"),
        (RectifiedFlow(), "register_path decorates a class that extends ifl.Path, not a Rectified"),
        ("VP", "register_path decorates a class that extends ifl.Path, not a str"),
    ):
        with pytest.raises(ValueError) as error:
            register_path(given)
        assert words in one_line(error)
    assert registry["PoissonFlow"] is PoissonFlow and len(registry) == 4


def test_numbers_of_any_kind():
    path = PoissonFlow(np.int64(8))
    assert path == PoissonFlow(8) == PoissonFlow(8.0) and type(path.aug_dim) is int
    assert hash(path) == hash(PoissonFlow(8.0))  # equal paths are one key
    assert type(VariancePreserving(np.float32(0.5)).config()["beta_min"]) is float
    assert torch.equal(path.grid(np.int64(3)), path.grid(3))
    for make in (lambda: PoissonFlow("8"), lambda: PoissonFlow(None), lambda: path.grid(0)):
        with pytest.raises(ValueError) as error:
            make()
        one_line(error)
