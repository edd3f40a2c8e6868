"""Parity: the same perturbation, velocity and loss as the neighbouring projects', computed by those projects themselves
(torchcfm, flow_matching), and by the formulas of EDM (arXiv 2206.00364, table 1), which is no package."""

import math

import pytest
import torch
from exact import SHAPES, column, randomise
from flow_matching.path import AffineProbPath, CondOTProbPath
from flow_matching.path.scheduler import VPScheduler
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

from iflow_lib import (
    MLP,
    Batch,
    FlowMap,
    FlowMatching,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape, n=16):
    """Data, noise and times away from the ends, where clocks have no derivative."""
    g = torch.Generator().manual_seed(0)
    x_0, z = torch.randn(2, n, *shape, generator=g, dtype=torch.float64)
    return x_0, z, 0.02 + 0.96 * torch.rand(n, generator=g, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@shapes
def test_rectified_flow_of_torchcfm(shape):
    """There time runs from noise to data: t is 1 - t, and the velocity has the other sign."""
    x_0, z, t = draw(shape)
    _, x_t, velocity = ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(
        z, x_0, t=1 - t
    )
    ours = RectifiedFlow().perturb(x_0=x_0, t=t, noise=z)
    close(ours.x_t, x_t)
    close(ours.velocity, -velocity)


@shapes
def test_variance_preserving_of_torchcfm(shape):
    """The same path, alpha^2 + sigma^2 = 1, on the clock alpha = sin(pi r / 2): seen from it, our velocity is theirs."""
    x_0, z, r = draw(shape)
    path = VariancePreserving()
    r = r.clamp(min=0.05)  # alpha(1) = 0.0066: their clock goes on where ours ends
    _, x_t, velocity = VariancePreservingConditionalFlowMatcher(
        sigma=0.0
    ).sample_location_and_conditional_flow(z, x_0, t=r)

    def our_time(r):
        alpha, sigma = torch.sin(math.pi / 2 * r), torch.cos(math.pi / 2 * r)
        return path.time(sigma / (alpha + sigma))

    t, rate = torch.func.jvp(our_time, (r,), (torch.ones_like(r),))
    ours = path.perturb(x_0=x_0, t=t, noise=z)
    close(ours.x_t, x_t)
    close(ours.velocity * column(rate, x_0), velocity)


@shapes
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (RectifiedFlow(), CondOTProbPath()),
        (
            VariancePreserving(0.1, 19.9),
            AffineProbPath(scheduler=VPScheduler(beta_min=0.1, beta_max=20.0)),
        ),
    ],
    ids=["rectified", "vp"],
)
def test_paths_of_flow_matching(ours, theirs, shape):
    x_0, z, t = draw(shape)
    sample = theirs.sample(t=1 - t, x_0=z, x_1=x_0)  # there x_1 is data
    mine = ours.perturb(x_0=x_0, t=t, noise=z)
    close(mine.x_t, sample.x_t)
    close(mine.velocity, -sample.dx_t)


def test_loss_of_edm():
    """EDM's loss, ``lambda(sigma) |D(x_0 + sigma z; sigma) - x_0|^2`` with its preconditioning and its draws of sigma, is
    FlowMatching on VE for the same network, example by example but for the weight: on the line ``D - x_0`` is
    ``tau ((z - x_0) - u)``."""
    data_std, n = 0.5, 64
    raw = randomise(MLP(dim=3, hidden=16, layers=2)).double()
    x_0 = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def denoiser(x, sigma):  # table 1, "Ours": preconditioning
        skip = data_std**2 / (sigma**2 + data_std**2)
        out = sigma * data_std / (sigma**2 + data_std**2).sqrt()
        scaled = x / column((sigma**2 + data_std**2).sqrt(), x)
        return column(skip, x) * x + column(out, x) * raw(scaled, sigma.log() / 4, sigma.log() / 4)

    class OnTheLine(torch.nn.Module):
        data_shape = (3,)

        def forward(self, x, t, s):
            sigma = t / (1 - t)
            return (x - denoiser(x * column(1 + sigma, x), sigma)) / column(t, x)

    path = VarianceExploding()
    sigma = (-1.2 + 1.2 * torch.randn(n, generator=torch.Generator().manual_seed(3))).exp().double()
    tau = sigma / (1 + sigma)
    weight = (sigma**2 + data_std**2) / (sigma * data_std) ** 2
    edm = column(weight, x_0) * (denoiser(x_0 + column(sigma, x_0) * z, sigma) - x_0).square()
    model = FlowMap(OnTheLine(), path)
    close(
        model.denoise(x=x_0 + column(sigma, x_0) * z, t=sigma),
        denoiser(x_0 + column(sigma, x_0) * z, sigma),
    )
    ours = FlowMatching()(model, Batch(x_0, noise=z), torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        ours, (edm / column(weight * tau**2, x_0)).mean(), rtol=1e-6, atol=1e-6
    )
    other = FlowMatching()(
        model, Batch(x_0, noise=z), torch.Generator().manual_seed(4)
    )  # it could have differed
    assert abs((ours - other).item()) > 1e-3
