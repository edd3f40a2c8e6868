"""Decoding as tensors: what ``columns`` and ``scales`` do with numpy, for files that other runtimes run.

Every module here holds its tables as buffers, and uses only operations that ONNX and onnxruntime
have for float64 and int64. Two are missing there: ``searchsorted`` is written out as a bisection,
for all columns at once, and the normal distribution function as a quadrature from the last knot on.
Whole numbers are not compared, because onnxruntime does not do so right for all of int64.
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

    edges: Tensor
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
        tables = {name: np.zeros((len(curves), size)) for name in ("x", "y", "rise")}
        edges = np.full((len(curves), size), np.inf)
        for i, curve in enumerate(curves):
            knots = len(curve.x)
            tables["x"][i, :knots] = curve.x.clip(-FARTHEST, FARTHEST)
            tables["y"][i, :knots], tables["rise"][i, :knots] = curve.y, curve.rise
            edges[i, :knots] = curve.x
        edges[:, 0] = -np.inf  # so that every number has a knot before it
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        _keep(self, {name: table.ravel() for name, table in tables.items()})
        _keep(self, {"edges": edges.ravel(), "column": np.arange(len(curves)) * size})
        _keep(self, {"nodes": (1 + nodes) / 2, "weights": weights / 2 / (2 * np.pi) ** 0.5})

    def forward(self, x: Tensor) -> Tensor:
        """Return the values (..., C), float64, at numbers (..., C), float64."""
        found = torch.zeros_like(x, dtype=torch.int64) + self.column
        step = self.size // 2
        while step:  # a bisection: the number of steps is fixed, as a graph needs it
            ahead = found + step
            found = torch.where(self.edges[ahead] <= x, ahead, found)
            step //= 2
        start = self.x[found]
        along = (x - start).clamp(min=0.0)
        if (
            self.normal
        ):  # Phi(x) - Phi(start), by Gauss and Legendre: onnxruntime has no erf of float64
            points = start[..., None] + along[..., None] * self.nodes
            along = along * (torch.exp(-0.5 * points * points) * self.weights).sum(-1)
        return self.y[found] + self.rise[found] * along


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
    step: Tensor
    ends: Tensor
    tail: Tensor
    grid: Tensor

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks, self.whole = ranks, ranks.levels.dtype == np.int64
        levels = ranks.levels[:1] if ranks.between else ranks.levels
        buffers: dict[str, Any] = {"levels": levels, "step": np.int64(ranks.step)}
        low, high = ranks.limits if ranks.beyond else (ranks.levels[0], ranks.levels[-1])
        self.limited = bool(np.isfinite(low))
        if self.whole:  # in steps from the first level
            low, high = -((ranks.base - low) // ranks.step), (high - ranks.base) // ranks.step
        if self.limited:
            buffers["ends"] = np.array([low, high], dtype=np.float64)
        if ranks.grid is not None:
            buffers["grid"] = _grid(ranks)
        if ranks.between and ranks.beyond:
            middle = (ranks.low + ranks.high) / 2
            sides = [np.where(ranks.heavy, end, middle) for end in (ranks.low, ranks.high)]
            buffers["tail"] = ranks.tail(np.stack(sides), _offsets(ranks))
        _keep(self, buffers)

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
            slope, first, last = self.tail
            found = found + slope * ((z - first).clamp(max=0.0) + (z - last).clamp(min=0.0))
        if self.whole:
            found = torch.round(found / self.step.double())
        elif ranks.grid is not None:
            found = _on_grid(found, self.grid)
        # in float64: onnxruntime's minimum of large int64 is wrong (its issues 25280 and 32475)
        found = _within(found, self.ends) if self.limited else found
        return self.levels[0] + found.to(torch.int64) * self.step if self.whole else found


def _keep(module: nn.Module, buffers: dict[str, Any]) -> None:
    """Register arrays as buffers of their own type: as plain numbers, ONNX would round some to float32."""
    for name, values in buffers.items():
        module.register_buffer(name, _buffer(values))


def _within(values: Tensor, ends: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(values, ends[0]), ends[1])


def _grid(ranks: Ranks) -> list[float]:
    """Return the grid of the data: ticks of one unit, its first tick, and steps of ticks."""
    assert ranks.grid is not None
    decimals, steps = ranks.grid
    return [10.0**decimals, float(round(float(ranks.levels[0]) * 10**decimals)), float(steps)]


def _on_grid(values: Tensor, grid: Tensor) -> Tensor:
    """Return numbers on a grid, which ``_grid`` describes."""
    unit, first, steps = grid
    return (first + torch.round((values * unit - first) / steps) * steps) / unit


class OneHotDecoder(nn.Module):
    """``OneHot.decode``: the most likely codes.

    Args:
        code: The encoder.
    """

    seen: Tensor
    share: Tensor
    scale: Tensor

    def __init__(self, code: OneHot) -> None:
        super().__init__()
        self.two = len(code.seen) == 2
        _keep(self, {"seen": code.seen, "share": code.share[-code.width :], "scale": code.scale})

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
    ends: Tensor
    spread: Tensor
    grid: Tensor

    def __init__(self, scale: ChannelScale) -> None:
        super().__init__()
        self.scale = scale
        levels = scale.ranks.levels.astype(np.float64)
        buffers = {
            "levels": levels[[0, -1]] if scale.ranks.between else levels,
            "ends": scale.scores[[0, -1]],
            "spread": [scale.mean, scale.std],
        }
        if scale.ranks.grid is not None:
            buffers["grid"] = _grid(scale.ranks)
        _keep(self, buffers)

    def forward(self, found: Tensor, z: Tensor) -> Tensor:
        """Return the values, float64, of what the curve says and of the numbers, float64."""
        ranks, (mean, std) = self.scale.ranks, self.spread
        if not ranks.between:
            return self.levels[found.to(torch.int64)]
        values = found
        if self.scale.kind == "standard":
            values = z * std + mean
        elif ranks.beyond:
            first, last = self.ends
            values = values + std * ((z - first).clamp(max=0.0) + (z - last).clamp(min=0.0))
        values = values if ranks.grid is None else _on_grid(values, self.grid)
        return values if ranks.beyond else _within(values, self.levels)


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
