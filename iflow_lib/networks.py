"""Networks: ``net(x, t, s, anchor=None) -> average velocity``, all on the canonical line.

``x``: (B, ...); ``t, s``: line times (B,), ``0 <= s <= t <= 1``; ``anchor``: an estimate of x_0, shaped like x, for
networks built with ``anchor=True``. Any module with this call works in a ``FlowMap``. All layers are smooth and
support forward-mode differentiation, which the integral identity needs.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def time_features(t: Tensor, s: Tensor, frequencies: int) -> Tensor:
    """(B,), (B,) -> (B, 4 * frequencies + 2): t, t - s and their sines and cosines.

    Frequencies pi/2, pi, 2 pi, ... are kept low: the identity differentiates the network in t, and a high frequency
    w multiplies that derivative, and its noise, by w.
    """
    times = torch.stack([t, t - s], dim=1)
    w = math.pi / 2 * 2 ** torch.arange(frequencies, dtype=t.dtype, device=t.device)
    angles = (times[:, :, None] * w).flatten(1)
    return torch.cat([times, angles.sin(), angles.cos()], dim=1)


def _check_anchor(net: nn.Module, x: Tensor, anchor: Tensor | None) -> None:
    if net.anchor and (anchor is None or anchor.shape != x.shape):
        got = None if anchor is None else tuple(anchor.shape)
        raise ValueError(f"this network was built with anchor=True: give an anchor of shape {tuple(x.shape)}, got {got}")
    if not net.anchor and anchor is not None:
        raise ValueError("this network takes no anchor: build it with anchor=True to use one")


class MLP(nn.Module):
    """A plain network for vectors, x: (B, dim).

    dim: data dimension; hidden: width; layers: hidden layers; anchor: concatenate an estimate of x_0 to the input.
    """

    frequencies = 4

    def __init__(self, dim: int, hidden: int = 256, layers: int = 4, anchor: bool = False):
        super().__init__()
        if min(dim, hidden, layers) < 1:
            raise ValueError(f"dim, hidden and layers must be positive, got {dim}, {hidden}, {layers}")
        self.anchor, self.data_shape = anchor, (dim,)
        self._config = dict(dim=dim, hidden=hidden, layers=layers, anchor=anchor)
        sizes = [dim * (2 if anchor else 1) + 4 * self.frequencies + 2] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, anchor: Tensor | None = None) -> Tensor:
        _check_anchor(self, x, anchor)
        inputs = [x, time_features(t, s, self.frequencies)] + ([anchor] if self.anchor else [])
        h = F.silu(self.hidden[0](torch.cat(inputs, dim=1)))
        for layer in self.hidden[1:]:
            h = h + F.silu(layer(h))  # residual: deeper nets keep training well
        return self.out(h)

    def config(self) -> dict:
        return self._config


class _Block(nn.Module):
    """Residual block: norm, SiLU, conv, scale and shift by the time embedding, SiLU, conv."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.times = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.times(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """One compact U-Net for images of 8x8 to 32x32, x: (B, channels, size, size).

    Images of 16x16 and more are first folded 2x2 into channels (a lossless PixelUnshuffle), so that a 28x28 image is
    worked on at 14x14 and 7x7: about four times cheaper than at full size, which is what makes CPUs enough.

    channels: 1 or 3 (any number works); size: 8 to 32, divisible by 4 (by 2 below 16); width: channels at the higher
    resolution, a multiple of 8; blocks: residual blocks at each stage; anchor: concatenate an estimate of x_0.
    """

    frequencies = 6

    def __init__(self, channels: int = 1, size: int = 28, width: int = 48, blocks: int = 2, anchor: bool = False):
        super().__init__()
        fold = 2 if size >= 16 else 1
        if not 8 <= size <= 32 or size % (2 * fold):
            raise ValueError(f"size must be from 8 to 32 and divisible by {2 * fold}, got {size}")
        if channels < 1 or blocks < 1 or width < 8 or width % 8:
            raise ValueError(f"need channels, blocks >= 1, width a multiple of 8; got {channels}, {blocks}, {width}")
        self.anchor, self.data_shape = anchor, (channels, size, size)
        self._config = dict(channels=channels, size=size, width=width, blocks=blocks, anchor=anchor)
        e, folded = 4 * width, channels * fold**2
        self.embed = nn.Sequential(nn.Linear(4 * self.frequencies + 2, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.fold, self.unfold = nn.PixelUnshuffle(fold), nn.PixelShuffle(fold)
        self.stem = nn.Conv2d(folded * (2 if anchor else 1), width, 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width, e) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(2 * width, 2 * width, e) for _ in range(blocks + 1))
        self.grow = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.up = nn.ModuleList(_Block(2 * width if i == 0 else width, width, e) for i in range(blocks))
        self.norm, self.out = nn.GroupNorm(8, width), nn.Conv2d(width, folded, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, anchor: Tensor | None = None) -> Tensor:
        _check_anchor(self, x, anchor)
        e = self.embed(time_features(t, s, self.frequencies))
        h = self.stem(self.fold(torch.cat([x, anchor], dim=1) if self.anchor else x))
        for block in self.down:
            h = block(h, e)
        skip, h = h, self.shrink(h)
        for block in self.middle:
            h = block(h, e)
        h = torch.cat([self.grow(h), skip], dim=1)
        for block in self.up:
            h = block(h, e)
        return self.unfold(self.out(F.silu(self.norm(h))))

    def config(self) -> dict:
        return self._config


NETWORKS: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet}
