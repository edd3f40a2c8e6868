"""Decoding as tensors: what ``columns`` and ``scales`` do with numpy, for files that other runtimes run.

Every module here holds its tables as buffers, and uses only operations that ONNX and onnxruntime
have for float64 and int64. Two are missing there: ``searchsorted`` is written out as a bisection,
for all columns at once, and the normal distribution function as a quadrature from the last knot on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from .columns import ColumnCode, Encoder, OneHot, Order, Ranks
from .leftout import LeftOut
from .scales import ChannelScale
from .storage import Storage

#: Where infinite knots are put. A number beyond is below one in 10^18.
FARTHEST = 9.0
#: Nodes of the quadrature of the normal density.
NODES = 8


def _buffer(values: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.as_tensor(np.array(values), dtype=dtype)


@dataclass(frozen=True)
class Curve:
    """A curve through knots: where they are (K,), in order, their values (K,), and rises (K,) from each on.

    Of several knots at one place the last counts. A rise is per unit of x, or of probability.
    """

    x: np.ndarray
    y: np.ndarray
    rise: np.ndarray

    @classmethod
    def through(cls, x: np.ndarray, y: np.ndarray, along: np.ndarray | None = None) -> Curve:
        """Return the curve of ``np.interp(along, ...)``, looked up by x; along is x itself where None."""
        width, rise = np.diff(x if along is None else along), np.diff(y)
        slope = np.divide(rise, width, out=np.zeros_like(rise), where=width > 0)
        return cls(x, y, np.append(slope, 0.0))

    @classmethod
    def stairs(cls, edges: np.ndarray, below: bool = False) -> Curve:
        """Return the number of edges at or below x: ``searchsorted(edges, x, "right")``.

        With ``below`` an edge itself does not count, as with "left".
        """
        x = np.append(-np.inf, np.nextafter(edges, np.inf) if below else edges)
        return cls(x, np.arange(len(x), dtype=np.float64), np.zeros(len(x)))


class Curves(nn.Module):
    """Some curves at once, a column each.

    Args:
        curves: The curves (C,).
        normal: Whether their rises are per probability of a standard normal.
    """

    x: Tensor
    y: Tensor
    rise: Tensor
    column: Tensor
    nodes: Tensor
    weights: Tensor

    def __init__(self, curves: Sequence[Curve], normal: bool = False) -> None:
        super().__init__()
        self.normal = normal
        self.size = size = 1 << max(len(curve.x) for curve in curves).bit_length()
        for name, beyond in (("x", np.inf), ("y", 0.0), ("rise", 0.0)):
            table = np.full((len(curves), size), beyond)
            for row, curve in zip(table, curves):
                row[: len(curve.x)] = getattr(curve, name)
            self.register_buffer(name, _buffer(table.ravel()))
        starts = np.arange(len(curves)) * size
        self.register_buffer("column", _buffer(starts))
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        self.register_buffer("nodes", _buffer((1 + nodes) / 2))
        self.register_buffer("weights", _buffer(weights / 2 / (2 * np.pi) ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the values (..., C), float64, at numbers (..., C), float64, below FARTHEST in size."""
        found = torch.zeros_like(x, dtype=torch.int64) + self.column
        step = self.size // 2
        while step:  # a bisection: the number of steps is fixed, as a graph needs it
            ahead = found + step
            found = torch.where(self.x[ahead - 1] <= x, ahead, found)
            step //= 2
        knot = torch.maximum(found - 1, self.column)
        start = self.x[knot].clamp(-FARTHEST, FARTHEST)
        along = (x - start).clamp(min=0.0)
        if (
            self.normal
        ):  # Phi(x) - Phi(start), by Gauss and Legendre: onnxruntime has no erf of float64
            points = start[..., None] + along[..., None] * self.nodes
            along = along * (torch.exp(-0.5 * points * points) * self.weights).sum(-1)
        return self.y[knot] + self.rise[knot] * along


def ranks_curve(ranks: Ranks) -> Curve:
    """Return the curve from normal scores to places among the levels, or to values less ``ranks.base``."""
    if not ranks.between:
        return Curve.stairs(ndtri(ranks.high[:-1]))
    middle = (ranks.low + ranks.high) / 2
    ends = [np.where(ranks.heavy, end, middle) for end in (ranks.low, ranks.high)]
    share = np.stack(ends, axis=1).ravel()
    return Curve.through(ndtri(share), np.repeat(_offsets(ranks), 2), share)


def _offsets(ranks: Ranks) -> np.ndarray:
    return (ranks.levels - ranks.base).astype(np.float64)


class RanksDecoder(nn.Module):
    """The rest of ``Ranks.decode``, after the curve.

    Args:
        ranks: The encoder.
    """

    levels: Tensor

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks, self.whole = ranks, ranks.levels.dtype == np.int64
        if not ranks.between:
            self.register_buffer("levels", _buffer(ranks.levels))
        elif ranks.beyond:
            middle = (ranks.low + ranks.high) / 2
            ends = [np.where(ranks.heavy, end, middle) for end in (ranks.low, ranks.high)]
            self.slope, self.first, self.last = ranks.tail(np.stack(ends), _offsets(ranks))

    def forward(self, found: Tensor, z: Tensor) -> Tensor:
        """Return the values (B,), int64 or float64.

        Args:
            found: What the curve says (B,), float64.
            z: The normal scores (B,), float64.
        """
        ranks = self.ranks
        if not ranks.between:
            return self.levels[found.to(torch.int64)]
        if ranks.beyond:
            out = (z - self.first).clamp(max=0.0) + (z - self.last).clamp(min=0.0)
            found = found + self.slope * out
        first, last = ranks.levels[0].item(), ranks.levels[-1].item()
        if self.whole:
            found = first + torch.round(found / ranks.step).to(torch.int64) * ranks.step
        else:
            found = _on_decimals(found, ranks)
        low, high = ranks.limits if ranks.beyond else (first, last)
        return found if np.isinf(low) else found.clamp(low, high)


def _on_decimals(values: Tensor, ranks: Ranks) -> Tensor:
    """Return numbers on the grid of the data, if there is one: multiples of a step of decimals."""
    if ranks.grid is None:
        return values
    decimals, steps = ranks.grid
    base = round(float(ranks.levels[0]) * 10**decimals)
    return (base + torch.round((values * 10**decimals - base) / steps) * steps) / 10**decimals


class OneHotDecoder(nn.Module):
    """``OneHot.decode``: the most likely codes.

    Args:
        code: The encoder.
    """

    seen: Tensor
    share: Tensor

    def __init__(self, code: OneHot) -> None:
        super().__init__()
        self.scale, self.two = code.scale, len(code.seen) == 2
        self.register_buffer("seen", _buffer(code.seen, torch.int64))
        self.register_buffer("share", _buffer(code.share[-code.width :], torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """Return the codes (B,), int64, of numbers (B, width), float64."""
        indicators = z / self.scale + self.share
        best = (indicators[:, 0] > 0.5).to(torch.int64) if self.two else indicators.argmax(1)
        return self.seen[best]


class TableDecoder(nn.Module):
    """The numbers of rows as columns in their units.

    Its outputs are, each only where there is such a column: ``numbers`` (B, a), float64; ``whole``
    (B, b), int64: whole numbers, ticks of dates since 1970, and codes of labels; ``missing`` (B, c),
    bool, for the columns that may be missing.

    Args:
        codes: How the columns are encoded.

    Attributes:
        columns: Where each column is found and what its numbers stand for, as JSON values.
        outputs: Names of the outputs.
    """

    def __init__(self, codes: Sequence[ColumnCode]) -> None:
        super().__init__()
        self.codes = list(codes)
        self.flags = nn.ModuleList(
            OneHotDecoder(code.missing) if isinstance(code.missing, OneHot) else nn.Identity()
            for code in codes
        )
        values = [_value_decoder(code.value) for code in codes]
        self.values = nn.ModuleList(values)
        # those that look up a curve do so all at once
        self.ranked = [i for i, value in enumerate(values) if isinstance(value, RanksDecoder)]
        curves = [ranks_curve(value.ranks) for value in values if isinstance(value, RanksDecoder)]
        self.curves = Curves(curves, normal=True) if curves else nn.Identity()
        self.columns: list[dict[str, Any]] = []
        found: dict[str, int] = {"numbers": 0, "whole": 0, "missing": 0}
        for code in codes:
            whole = not isinstance(code.value, Ranks) or code.value.levels.dtype == np.int64
            output = "whole" if whole else "numbers"
            entry = {"name": code.name, "output": output, "at": found[output]}
            found[output] += 1
            if code.missing is not None:
                entry["missing"] = found["missing"]
                found["missing"] += 1
            self.columns.append(entry | _stored(code.storage))
        self.outputs = [name for name, count in found.items() if count]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of rows (B, D)."""
        x = x.double()
        parts: dict[str, list[Tensor]] = {name: [] for name in self.outputs}
        numbers: list[Tensor] = []
        at = 0
        for code, flag in zip(self.codes, self.flags):
            if code.missing is not None:
                parts["missing"].append(flag(x[:, at : at + code.missing.width]) == 1)
            numbers.append(x[:, at + code.width - code.value.width : at + code.width])
            at += code.width
        scores = torch.cat([numbers[i] for i in self.ranked], 1) if self.ranked else x
        found = self.curves(scores)
        for i, (column, decode) in enumerate(zip(self.columns, self.values)):
            if i in self.ranked:
                place = self.ranked.index(i)
                value = decode(found[:, place], scores[:, place])
            else:
                value = decode(numbers[i])
            parts[column["output"]].append(value)
        return tuple(torch.stack(parts[name], dim=1) for name in self.outputs)


def _value_decoder(value: Encoder) -> OneHotDecoder | RanksDecoder:
    if isinstance(value, OneHot):
        return OneHotDecoder(value)
    if isinstance(value, Order):  # its ranks are of places in the order
        return RanksDecoder(replace(value.ranks, levels=value.order[value.ranks.levels]))
    return RanksDecoder(value)


def _stored(storage: Storage) -> dict[str, Any]:
    """Return what the numbers of a column stand for: labels, or a type of numpy, and a date's form."""
    if storage.labels is not None:
        return {"labels": storage.labels}
    if storage.style is not None:
        return {"dtype": "datetime64[ns]", "style": storage.style}
    return {"dtype": storage.numpy_dtype}


def left_out(columns: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """Return how columns are written that the model leaves out, as JSON values.

    Args:
        columns: These columns.

    Returns:
        For a constant ``{"name", "value"}``; for an identifier ``{"name", "first", "prefix",
        "digits"}``, the number of the first row, and what stands before it, None where it is a
        number itself; a text is a constant that is missing.
    """
    out: list[dict[str, Any]] = []
    for column in columns:
        if column.kind != "identifier":
            value = column.make(0, 1).astype(object).iloc[0]
            missing = column.missing or column.kind == "text"
            plain = value.item() if isinstance(value, np.generic) else value
            written = plain if isinstance(plain, (str, int, float)) else str(plain)
            out.append({"name": column.name, "value": None if missing else written})
            continue
        text = isinstance(column.make(0, 1).iloc[0], str)
        prefix = column.prefix if text else None
        out.append(
            {"name": column.name, "first": column.value, "prefix": prefix, "digits": column.digits}
        )
    return out


def scale_curve(scale: ChannelScale) -> Curve:
    """Return the curve from the numbers of a channel to places among its levels, or to values."""
    scores = scale.scores
    if not scale.ranks.between:
        return Curve.stairs((scores[1:] + scores[:-1]) / 2, below=True)
    return Curve.through(scores, scale.ranks.levels.astype(np.float64))


class ScaleDecoder(nn.Module):
    """The rest of ``ChannelScale.decode``, after the curve.

    Args:
        scale: The scale of the channel.
    """

    levels: Tensor

    def __init__(self, scale: ChannelScale) -> None:
        super().__init__()
        self.scale, scores = scale, scale.scores
        self.first, self.last = float(scores[0]), float(scores[-1])
        if not scale.ranks.between:
            self.register_buffer("levels", _buffer(scale.ranks.levels, torch.float64))

    def forward(self, found: Tensor, z: Tensor) -> Tensor:
        """Return the values, float64, of what the curve says and of the numbers, float64."""
        scale, ranks = self.scale, self.scale.ranks
        if not ranks.between:
            return self.levels[found.to(torch.int64)]
        values = found
        if scale.kind == "standard":
            values = z * scale.std + scale.mean
        elif ranks.beyond:
            out = (z - self.first).clamp(max=0.0) + (z - self.last).clamp(min=0.0)
            values = values + scale.std * out
        values = _on_decimals(values, ranks)
        ends = float(ranks.levels[0]), float(ranks.levels[-1])
        return values if ranks.beyond else values.clamp(*ends)


class SeriesDecoder(nn.Module):
    """The numbers of windows as values in their units: one output ``values`` (B, T, C), float64.

    Args:
        scales: The scale of each channel.
    """

    outputs = ("values",)

    def __init__(self, scales: Sequence[ChannelScale]) -> None:
        super().__init__()
        self.channels = len(scales)
        self.curves = Curves([scale_curve(scale) for scale in scales])
        self.scales = nn.ModuleList(ScaleDecoder(scale) for scale in scales)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the values of numbers (B, T, C)."""
        x = x.double()
        found = self.curves(x)
        parts = [s(found[..., i], x[..., i]) for i, s in enumerate(self.scales)]
        return (torch.stack(parts, dim=2),)
