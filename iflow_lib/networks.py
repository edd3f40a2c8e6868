"""Networks: ``net(x, t, s, anchor=None, labels=None) -> average velocity``, all on the canonical line.

``x``: (B, ...); ``t, s``: line times (B,), ``0 <= s <= t <= 1``; ``anchor``: an estimate of x_0, shaped like x, for
networks built with ``anchor=True``; ``labels``: classes (B,) in [0, classes), -1 for "not told", for networks built with
``classes``. Any module with this call works in a ``FlowMap``. All layers are smooth and
support forward-mode differentiation, which the integral identity needs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def time_features(
    t: Tensor, s: Tensor, frequencies: int, gap_frequencies: int | None = None
) -> Tensor:
    """(B,), (B,) -> (B, 2 + 2 (frequencies + gap_frequencies)): t, t - s, their sines and cosines, at pi/2, pi, 2 pi, ...

    frequencies: of t; gap_frequencies: of t - s, at most as many (None). They are kept low, above all those of t - s: the
    identity differentiates the network in both, and a high frequency w multiplies that derivative, and its noise, by w.
    """
    times = torch.stack(
        [t, t - s], dim=1
    )  # a view of t itself could not be differentiated forward where it is compiled
    w = math.pi / 2 * 2 ** torch.arange(frequencies, dtype=t.dtype, device=t.device)
    angles = (times[:, :, None] * w).flatten(1)
    if gap_frequencies is not None:
        angles = angles[:, : frequencies + gap_frequencies]
    return torch.cat([times, angles.sin(), angles.cos()], dim=1)


def _check_anchor(net: nn.Module, x: Tensor, anchor: Tensor | None) -> None:
    if net.anchor and (anchor is None or anchor.shape != x.shape):
        got = None if anchor is None else tuple(anchor.shape)
        raise ValueError(
            f"this network was built with anchor=True: give an anchor of shape {tuple(x.shape)}, got {got}"
        )
    if not net.anchor and anchor is not None:
        raise ValueError("this network takes no anchor: build it with anchor=True to use one")


def _class_table(classes: int, width: int) -> nn.Embedding | None:
    """One vector for each class and, last, one for "not told"; zero at first. None without classes."""
    if not isinstance(classes, int) or classes < 0:
        raise ValueError(f"classes must be a whole number, 0 for none; got {classes!r}")
    if not classes:
        return None
    table = nn.Embedding(classes + 1, width)
    nn.init.zeros_(table.weight)
    return table


def _class_vectors(table: nn.Embedding | None, labels: Tensor | None, x: Tensor) -> Tensor | float:
    """(B, width) to add to an embedding, 0 without classes. ValueError for labels that do not fit."""
    if table is None:
        if labels is not None:
            raise ValueError("this network takes no labels: build it with classes=... to use them")
        return 0.0
    last = table.num_embeddings - 1
    if labels is None:
        return table.weight[last]
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be whole numbers of shape ({len(x)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    return table(torch.where(labels < 0, last, labels))


class MLP(nn.Module):
    """A plain network for vectors, x: (B, dim).

    dim: data dimension; hidden: width; layers: hidden layers; anchor: concatenate an estimate of x_0 to the input;
    classes: number of classes, 0 for data without labels; features: that many octaves of sines and cosines of each
    coordinate beside x (w x, w = 1, 2, 4, ...), which help with fine structure in few dimensions (arXiv 2006.10739).
    """

    frequencies = 4

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        layers: int = 4,
        anchor: bool = False,
        classes: int = 0,
        features: int = 0,
    ):
        super().__init__()
        if min(dim, hidden, layers, features + 1) < 1:
            raise ValueError(
                f"dim, hidden and layers must be positive, features not negative; got {dim}, {hidden}, "
                f"{layers}, {features}"
            )
        self.anchor, self.classes, self.features, self.data_shape = (
            anchor,
            classes,
            features,
            (dim,),
        )
        self._config = dict(
            dim=dim, hidden=hidden, layers=layers, anchor=anchor, classes=classes, features=features
        )
        sizes = [dim * (1 + 2 * features + anchor) + 4 * self.frequencies + 2] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.table = _class_table(classes, hidden)
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        _check_anchor(self, x, anchor)
        inputs = [x, time_features(t, s, self.frequencies)] + ([anchor] if self.anchor else [])
        if self.features:
            angles = (
                x[:, :, None] * 2 ** torch.arange(self.features, dtype=x.dtype, device=x.device)
            ).flatten(1)
            inputs += [angles.sin(), angles.cos()]
        h = F.silu(self.hidden[0](torch.cat(inputs, dim=1)) + _class_vectors(self.table, labels, x))
        for layer in self.hidden[1:]:
            h = h + F.silu(layer(h))  # residual: deeper nets keep training well
        return self.out(h)

    def config(self) -> dict:
        return self._config


class _GroupNorm(nn.GroupNorm):
    """torch's; written out where it is compiled, because the fused one cannot be traced in forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        x = x.float() if x.dtype == torch.bfloat16 else x
        groups = x.unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
        even = ((groups - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return even * self.weight[:, None, None] + self.bias[:, None, None]


class _Block(nn.Module):
    """Residual block: norm, SiLU, conv, scale and shift by the time embedding, SiLU, conv."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = _GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.times = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.times(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """One compact U-Net for images of 8x8 to 64x64, x: (B, channels, size, size).

    Images of 16x16 and more are first folded 2x2 into channels (a lossless PixelUnshuffle), so that a 28x28 image is
    worked on at 14x14 and 7x7: about four times cheaper than at full size, which is what makes CPUs enough.

    channels: 1 or 3 (any number works); size: 8 to 64, divisible by 4 (by 2 below 16); width: channels at the higher
    resolution, a multiple of 8; blocks: residual blocks at each stage; anchor: concatenate an estimate of x_0; classes:
    number of classes, 0 for data without labels; gap_frequencies: octaves of sines and cosines of t - s, see
    ``time_features``: with more than two, several jumps train badly (docs/findings.md).
    """

    frequencies = 6

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        width: int = 48,
        blocks: int = 2,
        anchor: bool = False,
        classes: int = 0,
        gap_frequencies: int = 2,
    ):
        super().__init__()
        fold = 2 if size >= 16 else 1
        if not 8 <= size <= 64 or size % (2 * fold):
            raise ValueError(f"size must be from 8 to 64 and divisible by {2 * fold}, got {size}")
        if not 0 <= gap_frequencies <= self.frequencies:
            raise ValueError(
                f"gap_frequencies must be from 0 to {self.frequencies}, got {gap_frequencies}"
            )
        if channels < 1 or blocks < 1 or width < 8 or width % 8:
            raise ValueError(
                f"need channels, blocks >= 1, width a multiple of 8; got {channels}, {blocks}, {width}"
            )
        self.anchor, self.classes, self.data_shape = anchor, classes, (channels, size, size)
        self._config = dict(
            channels=channels,
            size=size,
            width=width,
            blocks=blocks,
            anchor=anchor,
            classes=classes,
            gap_frequencies=gap_frequencies,
        )
        self.gap_frequencies, e, folded = gap_frequencies, 4 * width, channels * fold**2
        times = 2 + 2 * (self.frequencies + gap_frequencies)
        self.embed = nn.Sequential(nn.Linear(times, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.table = _class_table(classes, e)
        self.fold, self.unfold = nn.PixelUnshuffle(fold), nn.PixelShuffle(fold)
        self.stem = nn.Conv2d(folded * (2 if anchor else 1), width, 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width, e) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(2 * width, 2 * width, e) for _ in range(blocks + 1))
        self.grow = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.up = nn.ModuleList(
            _Block(2 * width if i == 0 else width, width, e) for i in range(blocks)
        )
        self.norm, self.out = _GroupNorm(8, width), nn.Conv2d(width, folded, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _down(
        self, x: Tensor, t: Tensor, s: Tensor, anchor: Tensor | None, labels: Tensor | None
    ) -> list[Tensor]:
        """What times and classes tell, and the features of both stages."""
        _check_anchor(self, x, anchor)
        e = self.embed(
            time_features(t, s, self.frequencies, self.gap_frequencies)
        ) + _class_vectors(self.table, labels, x)
        h = self.stem(self.fold(torch.cat([x, anchor], dim=1) if self.anchor else x))
        for block in self.down:
            h = block(h, e)
        skip, h = h, self.shrink(h)
        for block in self.middle:
            h = block(h, e)
        return [e, skip, h]

    def hidden(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Features of the lower resolution (B, 2 width, height, width); arguments as of a call."""
        return self._down(x, t, s, anchor, labels)[2]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        e, skip, h = self._down(x, t, s, anchor, labels)
        h = torch.cat([self.grow(h), skip], dim=1)
        for block in self.up:
            h = block(h, e)
        return self.unfold(self.out(F.silu(self.norm(h))))

    def config(self) -> dict:
        return self._config


class Transformer(nn.Module):
    """A small transformer for sequences, x: (B, length, channels); every time step is a token.

    length: of the sequence; channels: values at each step (1 for a plain series, which is then (B, length, 1)); width:
    of a token, a multiple of heads; layers; heads; anchor: concatenate an estimate of x_0; classes: 0 for none.
    Attention is written out: forward-mode differentiation has no rule for the fused kernels.
    """

    frequencies = 4

    def __init__(
        self,
        length: int,
        channels: int = 1,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        anchor: bool = False,
        classes: int = 0,
    ):
        super().__init__()
        if min(length, channels, width, layers, heads) < 1 or width % heads:
            raise ValueError(
                f"need positive sizes and width a multiple of heads; got length {length}, "
                f"channels {channels}, width {width}, layers {layers}, heads {heads}"
            )
        self.anchor, self.classes, self.data_shape, self.heads = (
            anchor,
            classes,
            (length, channels),
            heads,
        )
        self._config = dict(
            length=length,
            channels=channels,
            width=width,
            layers=layers,
            heads=heads,
            anchor=anchor,
            classes=classes,
        )
        self.stem = nn.Linear(channels * (2 if anchor else 1), width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.embed = nn.Sequential(
            nn.Linear(4 * self.frequencies + 2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.table = _class_table(classes, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, elementwise_affine=False),
                    "qkv": nn.Linear(width, 3 * width),
                    "merge": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width, elementwise_affine=False),
                    "wide": nn.Linear(width, 4 * width),
                    "narrow": nn.Linear(4 * width, width),
                    "times": nn.Linear(width, 4 * width),
                }
            )
            for _ in range(layers)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        _check_anchor(self, x, anchor)
        e = self.embed(time_features(t, s, self.frequencies)) + _class_vectors(
            self.table, labels, x
        )
        h = self.stem(torch.cat([x, anchor], dim=2) if self.anchor else x) + self.place
        for layer in self.layers:
            scale1, shift1, scale2, shift2 = layer["times"](e)[:, None].chunk(4, dim=2)
            q, k, v = (
                a.unflatten(2, (self.heads, -1)).transpose(1, 2)
                for a in layer["qkv"](layer["norm1"](h) * (1 + scale1) + shift1).chunk(3, dim=2)
            )
            weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
            h = h + layer["merge"]((weights @ v).transpose(1, 2).flatten(2))
            h = h + layer["narrow"](
                F.silu(layer["wide"](layer["norm2"](h) * (1 + scale2) + shift2))
            )
        return self.out(self.norm(h))

    def config(self) -> dict:
        return self._config


NETWORKS: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet, "Transformer": Transformer}
