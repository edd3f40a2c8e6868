"""Closed-form truth for the tests, written without the library.

For data N(mean, std^2) and noise N(0, 1) the marginal at a time with weights (alpha, sigma) is
N(alpha mean, S^2) with S^2 = alpha^2 std^2 + sigma^2, and the flow map carries quantiles to quantiles:

    x_s = alpha_s mean + S_s / S_t (x_t - alpha_t mean).
"""

import torch
from torch import nn

MEAN, STD = 0.7, 0.4
SHAPES = [(2,), (1, 8, 8), (3, 16, 16), (24,)]


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def column(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


def spread(alpha, sigma):
    return (alpha**2 * STD**2 + sigma**2) ** 0.5


def gaussian_jump(x, start, end):
    """Exact flow map between two times given as pairs (alpha, sigma) of tensors (B,)."""
    alpha_t, sigma_t, alpha_s, sigma_s = (r.to(x.dtype) for r in (*start, *end))
    ratio = column(spread(alpha_s, sigma_s) / spread(alpha_t, sigma_t), x)
    return column(alpha_s, x) * MEAN + ratio * (x - column(alpha_t, x) * MEAN)


class GaussianNet(nn.Module):
    """Exact average velocity of that flow map on the line, ``(x_t - x_s) / (t - s)`` with the division done by hand,
    so that s == t gives the velocity. Counts its calls and the rows of the largest one."""

    def __init__(self, shape=(2,), dtype=torch.float64):
        super().__init__()
        self.data_shape, self.calls, self.rows = tuple(shape), 0, 0
        self.gain = nn.Parameter(torch.ones((), dtype=dtype))  # 1 is the truth
        self.shift = nn.Parameter(torch.zeros((), dtype=dtype))  # 0 is the truth
        self.tilt = nn.Parameter(torch.zeros((), dtype=dtype))  # 0 is the truth

    def forward(self, x, t, s):
        self.calls, self.rows = self.calls + 1, max(self.rows, len(x))
        t, s = column(t, x), column(s, x)
        spread_t, spread_s = spread(1 - t, t), spread(1 - s, s)
        slope = (STD**2 * (t + s - 2) + t + s) / (spread_t + spread_s)
        centred = x - (1 - t) * MEAN
        return (
            self.gain * (centred / spread_t * slope - MEAN)
            + self.shift
            + self.tilt * (t - s) * centred
        )


def randomise(net, seed=0, scale=0.3):
    """Non-zero weights everywhere: the networks start at an output of zero, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net
