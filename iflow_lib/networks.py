"""Networks: ``net(x, t, s, anchor=None, labels=None)`` returns an average velocity on the line.

Every network here, and any module of your own that works in a ``FlowMap``, is called with

    x: points on the line, (B, ...);  t, s: line times (B,), ``0 <= s <= t <= 1``;
    anchor: an estimate of x_0, shape of x, only if the network's attribute ``anchor`` is true;
    labels: classes (B,), -1 where none is told, only if its attribute ``classes`` is positive,

and returns a tensor of the shape of x. Its attribute ``data_shape`` is the shape of one example.
``register_network`` lets its models be saved. All layers here are smooth and support forward-mode
differentiation, which the integral identity needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import Registry
from .utils import check_int

NetworkClass = TypeVar("NetworkClass", bound="type[nn.Module]")

#: Networks by name, for models on disk.
NETWORKS = Registry("network", nn.Module, "torch.nn.Module")


def register_network(cls: NetworkClass) -> NetworkClass:
    """Register a class of networks, so that models with it are saved and loaded; a class decorator.

    Args:
        cls: A ``torch.nn.Module`` whose method ``config()`` returns its constructor's arguments as
            a dict of JSON values.

    Returns:
        The class itself.

    Raises:
        ValueError: If it is not such a class, has no ``config()``, or its name is taken.
    """
    return NETWORKS.add(cls)


def time_features(
    t: Tensor, s: Tensor, frequencies: int, gap_frequencies: int | None = None
) -> Tensor:
    """Return what a network is told of its two times.

    They are t, t - s, and sines and cosines of both, at frequencies pi/2, pi, 2 pi, ... The
    frequencies are kept low, above all those of t - s: the identity differentiates the network in
    both times, and a high frequency w multiplies that derivative, and its noise, by w.

    Args:
        t: Line times, (B,).
        s: Target line times, (B,).
        frequencies: Number of octaves for t.
        gap_frequencies: Number of octaves for t - s, at most as many; None takes as many.

    Returns:
        The features, (B, 2 + 2 (frequencies + gap_frequencies)).
    """
    # stacked: a view of t itself could not be differentiated in forward mode where it is compiled
    times = torch.stack([t, t - s], dim=1)
    w = math.pi / 2 * 2 ** torch.arange(frequencies, dtype=t.dtype, device=t.device)
    angles = (times[:, :, None] * w).flatten(1)
    if gap_frequencies is not None:
        angles = angles[:, : frequencies + gap_frequencies]
    return torch.cat([times, angles.sin(), angles.cos()], dim=1)


def _gap_frequencies(given: int, frequencies: int) -> int:
    """Return the checked number of octaves of t - s, of which there are no more than of t."""
    number = check_int("gap_frequencies", given, 0)
    if number > frequencies:
        raise ValueError(f"gap_frequencies must be from 0 to {frequencies}, got {number}")
    return number


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _check_anchor(anchored: bool, x: Tensor, anchor: Tensor | None) -> None:
    if anchored and (anchor is None or anchor.shape != x.shape):
        got = None if anchor is None else tuple(anchor.shape)
        raise ValueError(
            f"this network was built with anchor=True: give an anchor of shape {tuple(x.shape)}, got {got}"
        )
    if not anchored and anchor is not None:
        raise ValueError("this network takes no anchor: build it with anchor=True to use one")


def _class_table(classes: int, width: int) -> nn.Embedding | None:
    """Return a vector for each class and, last, one for "not told"; None without classes."""
    if not classes:
        return None
    table = nn.Embedding(classes + 1, width)
    nn.init.zeros_(table.weight)
    return table


def _class_vectors(table: nn.Embedding | None, labels: Tensor | None, x: Tensor) -> Tensor | float:
    """Return what is added to an embedding (B, width): 0 without classes."""
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


@register_network
class MLP(nn.Module):
    """A plain network for vectors, x: (B, dim).

    Args:
        dim: Data dimension.
        hidden: Width.
        layers: Number of hidden layers.
        anchor: Whether an estimate of x_0 is concatenated to the input.
        classes: Number of classes, 0 for data without labels.
        features: Number of octaves of sines and cosines of each coordinate beside x (w x, w = 1, 2,
            4, ...), which help with fine structure in few dimensions (arXiv 2006.10739). None takes 3
            in one and two dimensions, and none in more, where they did not help.
        frequencies: Octaves of sines and cosines of t, see ``time_features``. The best candidates
            of the search in the plane have two (docs/findings.md).
        gap_frequencies: Octaves of those of t - s, at most as many; None takes as many.

    Its ``lr``, the learning rate of ``fit`` where none is given, is 0.9 / hidden.

    Raises:
        ValueError: If a number is not a whole number in range.
    """

    #: arguments that older files lack
    unsaved = {"features": 0, "frequencies": 4, "gap_frequencies": 4}

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        layers: int = 4,
        anchor: bool = False,
        classes: int = 0,
        features: int | None = None,
        frequencies: int = 2,
        gap_frequencies: int | None = None,
    ) -> None:
        super().__init__()
        dim, hidden = check_int("dim", dim), check_int("hidden", hidden)
        layers = check_int("layers", layers)
        classes = check_int("classes", classes, 0)
        features = 3 * (dim <= 2) if features is None else check_int("features", features, 0)
        self.lr = 0.9 / hidden
        self.frequencies = check_int("frequencies", frequencies, 0)
        gap_frequencies = self.frequencies if gap_frequencies is None else gap_frequencies
        self.gap_frequencies = _gap_frequencies(gap_frequencies, self.frequencies)
        self.anchor, self.classes, self.features = bool(anchor), classes, features
        self.data_shape = (dim,)
        self._config = dict(
            dim=dim,
            hidden=hidden,
            layers=layers,
            anchor=self.anchor,
            classes=classes,
            features=features,
            frequencies=self.frequencies,
            gap_frequencies=self.gap_frequencies,
        )
        times = 2 + 2 * (self.frequencies + self.gap_frequencies)
        inputs = dim * (1 + 2 * features + self.anchor) + times
        sizes = [inputs] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.table = _class_table(classes, hidden)
        self.out = nn.Linear(hidden, dim)
        _start_at_zero(self.out)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the average velocity on the line, shape of x; see the module for the arguments."""
        _check_anchor(self.anchor, x, anchor)
        times = time_features(t, s, self.frequencies, self.gap_frequencies)
        inputs = [x, times] + ([] if anchor is None else [anchor])
        if self.features:
            w = 2 ** torch.arange(self.features, dtype=x.dtype, device=x.device)
            angles = (x[:, :, None] * w).flatten(1)
            inputs += [angles.sin(), angles.cos()]
        h = F.silu(self.hidden[0](torch.cat(inputs, dim=1)) + _class_vectors(self.table, labels, x))
        for layer in self.hidden[1:]:
            h = h + F.silu(layer(h))  # residual: deeper nets keep training well
        return self.out(h)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return self._config


class _GroupNorm(nn.GroupNorm):
    """torch's, written out where it is compiled: the fused one cannot be traced in forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        x = x.float() if x.dtype == torch.bfloat16 else x
        groups, places = x.unflatten(1, (self.num_groups, -1)), [1] * (x.ndim - 2)
        within = tuple(range(2, groups.ndim))
        variance, mean = torch.var_mean(groups, dim=within, correction=0, keepdim=True)
        even = ((groups - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return even * self.weight.view(-1, *places) + self.bias.view(-1, *places)


class _Block(nn.Module):
    """A residual block: twice norm, SiLU, conv; the embedding scales and shifts the second norm."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
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


class _UShape(nn.Module):
    """One resolution of a U-Net and, within it, the coarser ones."""

    def add_levels(self, width: int, blocks: int, embedding: int, halvings: int) -> None:
        """Build blocks on the way down, a coarser middle, and blocks on the way up.

        Args:
            width: Channels at this resolution; the next one has twice as many.
            blocks: Residual blocks on each way.
            embedding: Width of the embedding of times and classes.
            halvings: How often the resolution is halved, at least once.
        """
        self.down = nn.ModuleList(_Block(width, width, embedding) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(
            (_Block(2 * width, 2 * width, embedding) for _ in range(blocks + 1))
            if halvings == 1
            else [_Level(2 * width, blocks, embedding, halvings - 1)]
        )
        self.grow = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.up = nn.ModuleList(
            _Block(2 * width if i == 0 else width, width, embedding) for i in range(blocks)
        )

    def go_down(self, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of this resolution and of the coarser one, after its middle."""
        for block in self.down:
            h = block(h, e)
        skip, h = h, self.shrink(h)
        for block in self.middle:
            h = block(h, e)
        return skip, h

    def go_up(self, skip: Tensor, h: Tensor, e: Tensor) -> Tensor:
        """Return the features of this resolution, made of both."""
        h = torch.cat([self.grow(h), skip], dim=1)
        for block in self.up:
            h = block(h, e)
        return h


class _Level(_UShape):
    """The coarser resolutions of a U-Net for large images."""

    def __init__(self, width: int, blocks: int, embedding: int, halvings: int) -> None:
        super().__init__()
        self.add_levels(width, blocks, embedding, halvings)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.go_up(*self.go_down(h, e), e)


def _image_plan(size: int | Sequence[int]) -> tuple[tuple[int, int], int, int]:
    """Return (height, width), the fold, and the number of halvings."""
    if isinstance(size, Sequence) and not isinstance(size, str):
        sides = tuple(size)
    else:
        sides = (size, size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number or a pair (height, width), got {size!r}")
    height, width = (check_int("size", side) for side in sides)
    longest, fold = max(height, width), 2
    if min(height, width) < 16:
        fold = 1
    elif longest > 64:
        fold = 4
    halvings = 1 if longest <= 32 * fold else 2
    unit = fold * 2**halvings
    for side in (height, width):
        if not 8 <= side <= 256:
            raise ValueError(f"size must be from 8 to 256 on each side, got {size!r}")
        if side % unit:
            fits = [near for near in (side // unit * unit, side // unit * unit + unit) if near >= 8]
            raise ValueError(
                f"size {size!r} does not fit: at this size both sides must be multiples of {unit}, so "
                f"{' or '.join(map(str, fits))} instead of {side}"
            )
    return (height, width), fold, halvings


@register_network
class UNet(_UShape):
    """One compact U-Net for images from 8x8 to 256x256, x: (B, channels, height, width).

    Images of 16x16 and more are first folded 2x2 into channels (a lossless PixelUnshuffle), so that
    a 28x28 image is worked on at 14x14 and 7x7: about four times cheaper than at full size, which
    is what makes CPUs enough. Images with a side above 64 are folded 4x4, and those above 128 are
    worked on at three resolutions instead of two: 256x256 at 64x64, 32x32 and 16x16.

    Args:
        channels: 1 or 3; any number works.
        size: The side of square images, or a pair (height, width). Sides are from 8 to 256 and
            multiples of 4, of 8 where one is above 64, of 16 where one is above 128; small images
            of sides below 16 need multiples of 2.
        width: Channels at the highest resolution, a multiple of 8; twice as many at each coarser
            one.
        blocks: Residual blocks at each resolution.
        anchor: Whether an estimate of x_0 is concatenated to the input.
        classes: Number of classes, 0 for data without labels.
        gap_frequencies: Octaves of sines and cosines of t - s, see ``time_features``: with more
            than two, several jumps train badly (docs/findings.md).
        frequencies: Octaves of those of t, at least as many.

    Its ``lr``, the learning rate of ``fit`` where none is given, is 0.064 / width: 4e-3 at width 16.

    Raises:
        ValueError: If a size does not fit, or a number is not a whole number in range.
    """

    #: arguments that older files lack
    unsaved = {"frequencies": 6}

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 28,
        width: int = 48,
        blocks: int = 2,
        anchor: bool = False,
        classes: int = 0,
        gap_frequencies: int = 2,
        frequencies: int = 6,
    ) -> None:
        super().__init__()
        sides, fold, halvings = _image_plan(size)
        channels, blocks = check_int("channels", channels), check_int("blocks", blocks)
        classes = check_int("classes", classes, 0)
        self.frequencies = check_int("frequencies", frequencies, 0)
        self.gap_frequencies = _gap_frequencies(gap_frequencies, self.frequencies)
        width = check_int("width", width)
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        self.lr = 0.064 / width
        self.anchor, self.classes, self.data_shape = bool(anchor), classes, (channels, *sides)
        self._config = dict(
            channels=channels,
            size=sides[0] if sides[0] == sides[1] else list(sides),
            width=width,
            blocks=blocks,
            anchor=self.anchor,
            classes=classes,
            gap_frequencies=self.gap_frequencies,
            frequencies=self.frequencies,
        )
        e, folded = 4 * width, channels * fold**2
        times = 2 + 2 * (self.frequencies + self.gap_frequencies)
        self.embed = nn.Sequential(nn.Linear(times, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.table = _class_table(classes, e)
        self.fold, self.unfold = nn.PixelUnshuffle(fold), nn.PixelShuffle(fold)
        self.stem = nn.Conv2d(folded * (2 if anchor else 1), width, 3, padding=1)
        self.add_levels(width, blocks, e, halvings)
        self.norm, self.out = _GroupNorm(8, width), nn.Conv2d(width, folded, 3, padding=1)
        _start_at_zero(self.out)

    def _down(
        self, x: Tensor, t: Tensor, s: Tensor, anchor: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embedding of times and classes, and the features of both resolutions."""
        _check_anchor(self.anchor, x, anchor)
        times = time_features(t, s, self.frequencies, self.gap_frequencies)
        e = self.embed(times) + _class_vectors(self.table, labels, x)
        h = self.stem(self.fold(x if anchor is None else torch.cat([x, anchor], dim=1)))
        return e, *self.go_down(h, e)

    def features_at(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the features of the lower resolution, which the self-perceptual loss compares.

        Arguments are those of a call; the result has shape (B, 2 width, rows, columns).
        """
        return self._down(x, t, s, anchor, labels)[2]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the average velocity on the line, shape of x; see the module for the arguments."""
        e, skip, h = self._down(x, t, s, anchor, labels)
        return self.unfold(self.out(F.silu(self.norm(self.go_up(skip, h, e)))))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return self._config


class _Block1d(nn.Module):
    """A residual block on series (B, channels, steps): as ``_Block``, with dropout in it."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _GroupNorm(8, inputs), nn.Conv1d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _GroupNorm(8, outputs), nn.Conv1d(outputs, outputs, 3, padding=1)
        self.times = nn.Linear(embedding, 2 * outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h)))
        scale, shift = self.times(e)[:, :, None].chunk(2, dim=1)
        inner = self.dropout(F.silu(self.norm2(inner) * (1 + scale) + shift))
        return self.skip(h) + self.conv2(inner)


class _Blocks1d(nn.ModuleList):
    """Some blocks, one after the other."""

    def __init__(
        self, count: int, inputs: int, outputs: int, embedding: int, dropout: float
    ) -> None:
        widths = [inputs] + [outputs] * count
        super().__init__(_Block1d(a, b, embedding, dropout) for a, b in zip(widths, widths[1:]))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        for block in self:
            h = block(h, e)
        return h


@register_network
class UNet1d(nn.Module):
    """A compact U-Net for series, x: (B, length, channels), the layout of ``Transformer``.

    It looks at the series at several resolutions, each with half the steps of the one before; one
    of an odd number of steps has half of them rounded up. The finest has ``width`` channels, the
    others twice as many. A vector that is learned for each step says where in the window it lies.

    Args:
        length: Steps of a series, at least 4.
        channels: Values at each step; a plain series has 1, and shape (B, length, 1).
        width: Channels at the finest resolution, a multiple of 8.
        blocks: Residual blocks at each resolution.
        anchor: Whether an estimate of x_0 is concatenated to the input.
        classes: Number of classes, 0 for data without labels.
        gap_frequencies: Octaves of sines and cosines of t - s, see ``time_features``.
        frequencies: Octaves of those of t, at least as many.
        halvings: How often the number of steps is halved. None halves until at most 8 are left,
            five times at most.
        dropout: Share of the features that each block drops in training, in [0, 1), which helps
            where data are few.

    Its ``lr``, the learning rate of ``fit`` where none is given, is 0.064 / width.

    Raises:
        ValueError: If a number is not a whole number in range.
    """

    def __init__(
        self,
        length: int,
        channels: int = 1,
        width: int = 32,
        blocks: int = 2,
        anchor: bool = False,
        classes: int = 0,
        gap_frequencies: int = 2,
        frequencies: int = 4,
        halvings: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        length, channels = check_int("length", length, 4), check_int("channels", channels)
        width, blocks = check_int("width", width), check_int("blocks", blocks)
        classes = check_int("classes", classes, 0)
        self.frequencies = check_int("frequencies", frequencies, 0)
        self.gap_frequencies = _gap_frequencies(gap_frequencies, self.frequencies)
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        if halvings is None:
            halvings = min(5, max(1, math.ceil(math.log2(length / 8))))
        halvings = check_int("halvings", halvings)
        if 2**halvings > length:
            raise ValueError(
                f"halvings must leave a step of {length}: give at most {int(math.log2(length))}, got {halvings}"
            )
        if isinstance(dropout, bool) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a share in [0, 1), got {dropout!r}")
        self.lr = 0.064 / width
        self.anchor, self.classes, self.data_shape = bool(anchor), classes, (length, channels)
        self._config = dict(
            length=length,
            channels=channels,
            width=width,
            blocks=blocks,
            anchor=self.anchor,
            classes=classes,
            gap_frequencies=self.gap_frequencies,
            frequencies=self.frequencies,
            halvings=halvings,
            dropout=float(dropout),
        )
        e, times = 4 * width, 2 + 2 * (self.frequencies + self.gap_frequencies)
        self.embed = nn.Sequential(nn.Linear(times, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.table = _class_table(classes, e)
        self.stem = nn.Conv1d(channels * (2 if anchor else 1), width, 3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(width, length))
        widths = [width] + [2 * width] * halvings
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(_Blocks1d(blocks, a, a, e, dropout) for a, _ in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.middle = _Blocks1d(blocks + 1, widths[-1], widths[-1], e, dropout)
        self.grow = nn.ModuleList(nn.Conv1d(b, a, 3, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(_Blocks1d(blocks, 2 * a, a, e, dropout) for a, _ in pairs)
        self.norm, self.out = _GroupNorm(8, width), nn.Conv1d(width, channels, 3, padding=1)
        _start_at_zero(self.out)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the average velocity on the line, shape of x; see the module for the arguments."""
        _check_anchor(self.anchor, x, anchor)
        times = time_features(t, s, self.frequencies, self.gap_frequencies)
        e = self.embed(times) + _class_vectors(self.table, labels, x)
        h = x if anchor is None else torch.cat([x, anchor], dim=2)
        h = self.stem(h.transpose(1, 2)) + self.place
        skips = []
        for blocks, shrink in zip(self.down, self.shrink):
            skips.append(blocks(h, e))
            h = shrink(skips[-1])
        h = self.middle(h, e)
        for skip, grow, blocks in reversed(list(zip(skips, self.grow, self.up))):
            # each step twice, without the last where their number is odd
            doubled = h[:, :, :, None].expand(-1, -1, -1, 2).flatten(2)[:, :, : skip.shape[2]]
            h = blocks(torch.cat([grow(doubled), skip], dim=1), e)
        return self.out(F.silu(self.norm(h))).transpose(1, 2)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return self._config


class _LayerNorm(nn.LayerNorm):
    """torch's, written out where it is compiled, as ``_GroupNorm``."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        x = x.float() if x.dtype == torch.bfloat16 else x
        variance, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        even = (x - mean) * torch.rsqrt(variance + self.eps)
        return even if self.weight is None else even * self.weight + self.bias


class _TransformerLayer(nn.Module):
    """Attention and two linear layers, each after a norm, with scale and shift by the embedding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = _LayerNorm(width, elementwise_affine=False)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = _LayerNorm(width, elementwise_affine=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.times = nn.Linear(width, 4 * width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.times(e)[:, None].chunk(4, dim=2)
        q, k, v = (
            a.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for a in self.qkv(self.norm1(h) * (1 + scale1) + shift1).chunk(3, dim=2)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
        h = h + self.merge((weights @ v).transpose(1, 2).flatten(2))
        return h + self.narrow(F.silu(self.wide(self.norm2(h) * (1 + scale2) + shift2)))


@register_network
class Transformer(nn.Module):
    """A small transformer for sequences, x: (B, length, channels); every time step is a token.

    Attention is written out, because forward-mode differentiation has no rule for the fused
    kernels.

    Args:
        length: Length of the sequence.
        channels: Values at each step; a plain series has 1, and shape (B, length, 1).
        width: Width of a token, a multiple of heads.
        layers: Number of layers.
        heads: Attention heads of a layer.
        anchor: Whether an estimate of x_0 is concatenated to the input.
        classes: Number of classes, 0 for data without labels.
        frequencies: Octaves of sines and cosines of the times, see ``time_features``.

    Raises:
        ValueError: If a number is not a whole number in range, or width is not a multiple of heads.
    """

    #: arguments that older files lack
    unsaved = {"frequencies": 4}

    def __init__(
        self,
        length: int,
        channels: int = 1,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        anchor: bool = False,
        classes: int = 0,
        frequencies: int = 4,
    ) -> None:
        super().__init__()
        self.frequencies = check_int("frequencies", frequencies, 0)
        length, channels = check_int("length", length), check_int("channels", channels)
        width = check_int("width", width)
        layers, heads = check_int("layers", layers), check_int("heads", heads)
        classes = check_int("classes", classes, 0)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width}, heads {heads}")
        self.anchor, self.classes, self.heads = bool(anchor), classes, heads
        self.data_shape = (length, channels)
        self._config = dict(
            length=length,
            channels=channels,
            width=width,
            layers=layers,
            heads=heads,
            anchor=self.anchor,
            classes=classes,
            frequencies=self.frequencies,
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
        self.layers = nn.ModuleList(_TransformerLayer(width, heads) for _ in range(layers))
        self.norm, self.out = _LayerNorm(width), nn.Linear(width, channels)
        _start_at_zero(self.out)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the average velocity on the line, shape of x; see the module for the arguments."""
        _check_anchor(self.anchor, x, anchor)
        times = time_features(t, s, self.frequencies)
        e = self.embed(times) + _class_vectors(self.table, labels, x)
        h = self.stem(x if anchor is None else torch.cat([x, anchor], dim=2)) + self.place
        for layer in self.layers:
            h = layer(h, e)
        return self.out(self.norm(h))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return self._config
