"""Given parts: one network that makes whole examples, or the rest of one where parts are given.

An example is laid out along its last axis as its values, and then flags that say which of them are
given: 1 is given, 0 is to be made.

    a table row (D + C,):    D values of C columns, a flag for each column
    a window (T, C + C):     C channels at T times, a flag for each channel and time

A given part keeps its clean value all along the path: its noise is its data. So on the line it is
constant, ``(1 - t) x_0 + t x_0 = x_0``, and its velocity is 0, on every path. The flags are given
too. ``GivenParts`` trains this, ``WithGiven`` holds given parts still, ``sample_given`` starts from
them. All samplers and every nfe then work as they do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TensorData
from ..model import FlowMap
from ..networks import NETWORKS, register_network
from ..objectives import IntegralIdentity, Objective
from ..objectives.base import Batch, Drawn, Wrapper, check_number, uniform
from ..paths import Path
from ..sampling import initial_noise, sample
from ..training import Callback, Validation
from ..training.callbacks import checked_callbacks
from ..utils import check_int

#: Rows of a network call in ``sample_given``. It is fixed: the last digits of a row may depend on it.
ROWS = 1024


@register_network
class WithGiven(nn.Module):
    """A network whose given parts do not move: where a flag is 1, its average velocity is 0.

    Args:
        net: A network for the whole layout, values and flags, such as ``MLP(dim=D + C)``; or what
            ``NETWORKS.describe`` says of one, as files have it.
        owners: For each value along the last axis, which flag it belongs to, from 0.

    Raises:
        ValueError: If the layout of the network is another one, or a flag has no value.
    """

    owner: Tensor

    def __init__(self, net: nn.Module | Mapping[str, Any], owners: Sequence[int]) -> None:
        super().__init__()
        self.net = net if isinstance(net, nn.Module) else NETWORKS.build(net)
        self.owners = tuple(check_int("an owner", owner, 0) for owner in owners)
        self.values, self.flags = len(self.owners), 1 + max(self.owners, default=-1)
        shape = tuple(self.net.data_shape)  # type: ignore[arg-type]
        if set(self.owners) != set(range(self.flags)) or not self.flags:
            raise ValueError(f"owners must use every flag from 0 on, got {list(self.owners)}")
        if shape[-1] != self.values + self.flags:
            raise ValueError(
                f"the network must take {self.values} values and {self.flags} flags along its last "
                f"axis, so {self.values + self.flags}; its examples have shape {shape}"
            )
        self.data_shape = shape
        self.anchor = bool(getattr(self.net, "anchor", False))
        self.classes = int(getattr(self.net, "classes", 0))
        if hasattr(self.net, "lr"):
            self.lr = self.net.lr
        self.register_buffer("owner", torch.tensor(self.owners), persistent=False)

    def fixed(self, flags: Tensor) -> Tensor:
        """Return which parts do not move, for flags (..., C): a mask (..., D + C)."""
        given = (flags > 0.5).index_select(-1, self.owner)
        return torch.cat([given, torch.ones_like(flags, dtype=torch.bool)], -1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the average velocity on the line, shape of x, 0 where a part is given."""
        keywords = {"anchor": anchor, "labels": labels}
        u = self.net(x, t, s, **{k: v for k, v in keywords.items() if v is not None})
        return torch.where(self.fixed(x[..., self.values :]), torch.zeros_like(u), u)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"net": NETWORKS.describe(self.net), "owners": list(self.owners)}


# ---------------------------------------------------------------------- what is given in training


def any_part(chance: Tensor, rate: Tensor) -> Tensor:
    """Give each flag by itself: of a table row some columns, of a window some cells."""
    return chance < rate


def whole_columns(chance: Tensor, rate: Tensor) -> Tensor:
    """Give whole channels of a window."""
    first = chance.flatten(1, -2)[:, :1] if chance.ndim > 2 else chance
    return (first.reshape(len(chance), *[1] * (chance.ndim - 2), -1) < rate).expand_as(chance)


def the_past(chance: Tensor, rate: Tensor) -> Tensor:
    """Give the first times of a window, in all channels: from one of them to all but one."""
    length = chance.shape[1]
    known = 1 + (rate * (length - 1)).floor()
    return (torch.arange(length, device=rate.device)[:, None] < known).expand_as(chance)


#: Ways to choose what is given, by name: (uniform draws (B, ..., C), rates (B, 1, ..., 1)) -> mask.
PATTERNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "any": any_part,
    "columns": whole_columns,
    "past": the_past,
}


@dataclass(frozen=True)
class GivenParts(Wrapper):
    """Train an objective with parts of the examples given.

    In every batch some rows have nothing given, and the others a random choice of their parts, at a
    rate that is uniform in [0, 1] for each row. Noise and data agree on given parts and on flags,
    so that the base sees a velocity of 0 there; with a ``WithGiven`` network only the rest counts.

    Optimal-transport pairing (``TrainConfig(coupling="ot")``) holds for rows with nothing given. The
    others keep noise of their own: paired noise would depend on what is given, and that of a sample
    does not.

    Args:
        base: The objective, with ``draw`` and ``loss``, such as ``IntegralIdentity()``. An
            ``EnergyMatching`` goes inside: its samples then have the given parts of the batch.
        free: Share of the rows with nothing given.
        patterns: How parts are chosen for the others, names in ``PATTERNS``. Each row takes one.
            "any": flags one by one; "columns": whole channels of a window; "past": its first times.
        always: Flags that are given in every row, such as those of calendar features.

    Raises:
        ValueError: For a setting out of its range, or a base without ``draw`` and ``loss``.
    """

    base: Objective = IntegralIdentity()
    free: float = 0.5
    patterns: tuple[str, ...] = ("any",)
    always: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        base = self.base
        if not isinstance(base, Objective) or type(base).__call__ is not Objective.__call__:
            raise ValueError(
                "base must be an objective with draw and loss, such as IntegralIdentity(), got "
                f"{getattr(base, 'name', type(base).__name__)}"
            )
        check_number("free", self.free, most=1)
        patterns = tuple(self.patterns) if isinstance(self.patterns, (tuple, list)) else ()
        if not patterns or not set(patterns) <= set(PATTERNS):
            raise ValueError(f"patterns must be some of {list(PATTERNS)}, got {self.patterns!r}")
        always = tuple(check_int("a flag in always", flag, 0) for flag in self.always)
        self.__dict__.update(patterns=patterns, always=always, learns=base.learns)

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run.

        Raises:
            ValueError: If the network is no ``WithGiven``, a flag of ``always`` is not there, or the
                base cannot train this model.
        """
        net = model.net
        if not isinstance(net, WithGiven):
            raise ValueError(
                f"GivenParts needs a network that holds given parts still: WithGiven(net, owners), not "
                f"{type(net).__name__}"
            )
        if max(self.always, default=0) >= net.flags:
            raise ValueError(f"always must name flags below {net.flags}, got {list(self.always)}")
        if "past" in self.patterns and (len(net.data_shape) < 2 or net.data_shape[0] < 2):
            raise ValueError(f'"past" is for windows of two times or more, not {net.data_shape}')
        self.base.prepare(model, data, seed=seed, device=device)

    def check_noise(self, path: Path, given: bool, paired: bool) -> None:
        """Check that the base takes noise that comes with the examples; ValueError if not."""
        if getattr(self.base, "velocity", None) == "batch":
            raise ValueError(
                'velocity="batch" needs noise that is drawn independently of the data, and that of given '
                'parts is their data: take velocity="pair"'
            )

    def choose(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw which parts are given.

        Args:
            like: Flags of a batch, (B, ..., C), for their shape, type and device.
            generator: Source of chance.

        Returns:
            A mask of the shape of the flags.
        """
        n, ones = len(like), (1,) * (like.ndim - 1)
        free, rate, kind = (
            a.reshape(n, *ones) for a in uniform(3, n, generator=generator, like=like)
        )
        chance = uniform(*like.shape, generator=generator, like=like)
        given = torch.zeros_like(like, dtype=torch.bool)
        for i, name in enumerate(self.patterns):
            mine = (kind * len(self.patterns)).floor() == i
            given = torch.where(mine, PATTERNS[name](chance, rate), given)
        given = given & (free >= self.free)
        for flag in self.always:
            given[..., flag] = True
        return given

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw which parts are given, and what the base draws for such examples and noise."""
        net = model.net
        assert isinstance(net, WithGiven)
        values = batch.x_0[..., : net.values]
        given = self.choose(batch.x_0[..., net.values :], generator)
        x_0 = torch.cat([values, given.to(values)], -1)
        z = batch.draw_noise(model, generator)
        if batch.pair is not None:
            own = model.path.noise(x_0.shape, generator=generator, device=x_0.device).to(x_0)
            some = given.flatten(1).any(1).reshape(-1, *[1] * (x_0.ndim - 1))
            z = torch.where(some, own, z)
        fixed = net.fixed(x_0[..., net.values :])
        whole = replace(batch, x_0=x_0, noise=torch.where(fixed, x_0, z), pair=None)
        drawn = self.base.checked_draw(self.base.draw(model, whole, generator))
        ends = drawn.get("ends_noise")
        if ends is not None:  # EnergyMatching starts its samples from tau_max times this
            drawn = {**drawn, "ends_noise": torch.where(fixed, x_0 / model.path.tau_max, ends)}
        return drawn

    def loss(self, model: FlowMap, **drawn: Any) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the base, and what it returns beside it."""
        return self.base.checked_loss(self.base.loss(model, **drawn))


# ---------------------------------------------------------------------- sampling


def sample_given(
    model: FlowMap,
    n: int,
    *,
    nfe: int | None = None,
    seed: int = 0,
    values: Tensor | None = None,
    flags: Tensor | None = None,
    labels: Tensor | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Draw samples in blocks, with parts given.

    A row depends on the seed, its number and what is given in it, and not on n: more samples only
    add to the end. Memory is that of a block.

    Args:
        model: A model, whose network is a ``WithGiven`` if anything is given.
        n: Number of samples.
        nfe: Network calls for each; see ``sample``.
        seed: Seed of the noise.
        values: Values (n, ..., D), of which those count whose flag is 1; or (1, ..., D) for all.
            None where nothing is given.
        flags: Flags (n, ..., C) or (1, ..., C), 1 where given. None where nothing is given.
        labels: Classes (n,), for a network with classes; None where there are none.
        **options: Of ``sample``, such as method.

    Yields:
        Blocks of at most ROWS samples, (<= ROWS, ...), values and flags, on the CPU. Given parts
        are what was given, to the bit.

    Raises:
        ValueError: If values and flags do not fit the network, or an argument does not fit ``sample``.
    """
    n, net = check_int("n", n), model.net
    if flags is not None and not isinstance(net, WithGiven):
        raise ValueError(
            "this model was trained without given parts, so nothing can be given to it"
        )
    known, fixed = _known(net, n, values, flags) if isinstance(net, WithGiven) else (None, None)
    noise = initial_noise(model, -(-n // ROWS) * ROWS, seed)
    parts: list[Tensor] = []
    begin = 0
    for part in noise:
        parts.append(part)
        if sum(map(len, parts)) < ROWS:
            continue
        start, parts = torch.cat(parts), []
        rows = min(ROWS, n - begin)
        if known is not None and fixed is not None:
            mine = slice(begin, begin + rows) if len(known) > 1 else slice(None)
            start[:rows] = torch.where(fixed[mine], known[mine], start[:rows])
            start[rows:] = start[:1]  # they fill up the call
        classes = None
        if labels is not None:
            classes = labels[:1].repeat(ROWS)
            classes[:rows] = labels[begin : begin + rows]
        made = sample(model, ROWS, nfe, start=start, batch_size=ROWS, labels=classes, **options)
        out = made.x[:rows]
        if known is not None and fixed is not None:
            out = torch.where(fixed[mine], known[mine], out)
        yield out
        begin += rows


def draw_like(
    model: FlowMap, like: TensorData, n: int, nfe: int | None, seed: int, original_scale: bool
) -> Tensor:
    """Draw samples with what is given in held-out examples: ``draw_like`` of ``Validation``.

    Args:
        model: The model.
        like: Examples, values and flags, of which sample i has what is given in example i, or in
            example i - m, ... where there are m; and its class.
        n: Number of samples.
        nfe: Network calls for each.
        seed: Seed of the noise.
        original_scale: As for ``sample``.

    Returns:
        The samples (n, ...), values and flags.
    """
    values = flags = labels = None
    rows = torch.arange(n) % len(like)
    if isinstance(model.net, WithGiven):
        values, flags = like.x[rows].split([model.net.values, model.net.flags], -1)
    if model.classes and like.labels is not None:
        labels = like.labels[rows]
    blocks = sample_given(
        model,
        n,
        nfe=nfe,
        seed=seed,
        values=values,
        flags=flags,
        labels=labels,
        original_scale=original_scale,
    )
    return torch.cat(list(blocks))


@contextmanager
def held_out_frames(
    callbacks: Sequence[Callback], encode: Callable[[Any], TensorData]
) -> Iterator[None]:
    """Let every ``Validation`` read its data as a flow reads a frame, within a ``with`` block.

    Args:
        callbacks: Callbacks of any kind.
        encode: Makes examples, values and flags, of held-out data.
    """
    found = [one for one in checked_callbacks(callbacks) if isinstance(one, Validation)]
    before = [(one.encode, one.draw) for one in found]
    for one in found:
        one.encode, one.draw = encode, draw_like
    try:
        yield
    finally:
        for one, (how, draw) in zip(found, before):
            one.encode, one.draw = how, draw


def _known(
    net: WithGiven, n: int, values: Tensor | None, flags: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return examples (n or 1, ...) with what is given in them, and the mask of it."""
    lead = net.data_shape[:-1]
    if flags is None:
        flags = torch.zeros(1, *lead, net.flags)
    if values is None:
        values = torch.zeros(len(flags), *lead, net.values)
    for name, tensor, last in (("values", values, net.values), ("flags", flags, net.flags)):
        if tensor.shape not in ((n, *lead, last), (1, *lead, last)):
            shape = ", ".join(map(str, (*lead, last)))
            raise ValueError(
                f"{name} must have shape ({n}, {shape}) or (1, {shape}), got {tuple(tensor.shape)}"
            )
    rows = max(len(values), len(flags))
    both = [a.float().expand(rows, *a.shape[1:]) for a in (values, flags)]
    fixed = net.fixed(both[1])
    known = torch.cat(both, -1)
    if not bool(known[fixed].isfinite().all()):
        raise ValueError("given values must be finite: expected a number where a flag is 1")
    return known, fixed
