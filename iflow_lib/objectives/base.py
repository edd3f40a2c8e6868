"""What every training objective has: the batch that it sees, and the two halves of a loss.

``draw`` takes from the generator all that is random in a step, one row for each example. ``loss``
is a pure function of what was drawn, so that ``fit`` can compile it, and give each of several GPUs
its own rows.

On the line (see ``paths``) the path is ``x_t = (1 - t) x_0 + t z`` and its conditional velocity is
``z - x_0``. All times here are line times. The family of the path enters through ``model.path``
alone: noise law, training times, ``tau_max``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from ..paths import Path, expand
from .network_state import examine, is_pure

#: The arguments of a loss by name. A tensor has one row for each example. Values that only some
#: examples need have fewer rows: they belong to the first k examples, as ``s`` in TwoTimeObjective.
Drawn = dict[str, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """What an objective sees of one step.

    Attributes:
        x_0: Data (B, ...).
        labels: Classes (B,), -1 where the class is withheld, or None.
        index: Rows of the data set (B,), or None.
        noise: The z that belongs to each x_0 (B, ...), for coupled data (``reflow``). None draws it
            from the path's law.
        pair: Puts drawn noise (B, ...) in the order of the examples that it is paired with
            (``TrainConfig(coupling="ot")``), or None. ``draw_noise`` calls it.
        step: Number of this gradient step, from 0.
        steps: Number of all gradient steps.
        epoch: Number of passes over the data so far.
    """

    x_0: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None
    noise: Tensor | None = None
    pair: Callable[[Tensor], Tensor] | None = None
    step: int = 0
    steps: int = 1
    epoch: int = 0

    @classmethod
    def of(cls, batch: Batch | Tensor) -> Batch:
        """Return ``batch`` itself, or make one from a tensor of data (B, ...)."""
        return batch if isinstance(batch, cls) else cls(batch)  # type: ignore[arg-type]

    def draw_noise(self, model: FlowMap, generator: torch.Generator | None) -> Tensor:
        """Return the batch's noise, of the shape of x_0, or draw it by the path's law and pair it."""
        z, x_0 = self.noise, self.x_0
        if z is None:
            z = model.path.noise(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
            z = z if self.pair is None else self.pair(z)
        return in_layout_of(x_0, z) if z.is_cuda else z  # on a CPU it would only be a copy


#: What an objective may say of what a model learns from it.
LEARNS = ("velocity", "jump", "jump_to_data", "refinement", None)


class Objective:
    """A training loss. Subclass it for your own.

    Write ``draw`` and ``loss``::

        @dataclass(frozen=True)
        class Velocity(ifl.Objective):
            learns = "velocity"

            def draw(self, model, batch, generator):
                t = torch.rand(len(batch.x_0), generator=generator).to(batch.x_0)
                return {"x_0": batch.x_0, "z": batch.draw_noise(model, generator), "t": t}

            def loss(self, model, x_0, z, t):
                x_t = on_line(x_0, z, t)
                return (model(x_t, t, t) - (z - x_0)).square().mean(), None

    Or override ``__call__`` alone: then the loss is neither compiled nor recorded as a CUDA graph
    nor spread over several GPUs. A dataclass gets ``config`` for free; other classes return their
    settings from it. A loss that compares several calls of the network makes them within
    ``repeatable(model)``: see ``network_state``.

    Attributes:
        learns: What a model learns from it, which decides how ``sample`` uses the model: "velocity"
            (many steps of a solver), "jump" (any jump t -> s), "jump_to_data" (jumps to s = 0
            alone), "refinement" (an estimate of x_0 that is fed back as an anchor), or None where
            that is unknown.
    """

    learns: str | None = None

    def __post_init__(self) -> None:
        """Check the settings: dataclasses do so here, each those of its own, and then call this."""

    def __call__(
        self, model: FlowMap, batch: Batch | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the loss of one batch, by hand.

        ``fit`` makes these three calls itself, so that it can compile ``loss`` and spread it over
        several processes.

        Args:
            model: The model in training.
            batch: A ``Batch``, or a tensor of data (B, ...).
            generator: Source of all times and noise. None takes torch's global generator.

        Returns:
            The loss, a scalar with gradient.
        """
        batch = Batch.of(batch)
        drawn = self.draw(model, batch, generator)
        loss, estimate = self.checked_loss(self.loss(model, **self.checked_draw(drawn)))
        self.update_state(batch, drawn, loss, estimate)
        return loss

    def suited(self, shape: Sequence[int]) -> Objective:
        """Return this objective with the values of settings that depend on the data.

        Args:
            shape: Of an example, such as ``model.data_shape``.
        """
        return self

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw the arguments of ``loss``.

        Args:
            model: The model in training.
            batch: The examples.
            generator: Source of all that is random. None takes torch's global generator.

        Returns:
            The arguments by name, see ``Drawn``.
        """
        raise NotImplementedError

    def loss(self, model: FlowMap, **drawn: Any) -> tuple[Tensor, Tensor | None]:
        """Compute the loss from what ``draw`` returned, and from nothing else that is random.

        Returns:
            The mean over the examples, a scalar; and what ``update_state`` is to be given, (B, ...)
            without gradient, or None.
        """
        raise NotImplementedError

    def checked_draw(self, drawn: Any) -> Drawn:
        """Return what ``draw`` returned; ValueError unless it is a dict."""
        if not isinstance(drawn, dict):
            raise ValueError(
                f"draw of {self.name} must return a dict, the arguments of loss by name; got a "
                f"{type(drawn).__name__}"
            )
        return drawn

    def checked_loss(self, out: Any) -> tuple[Tensor, Tensor | None]:
        """Return what ``loss`` returned; ValueError unless it is a pair."""
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise ValueError(
                f"loss of {self.name} must return a pair, the loss and None (or what update_state is given), "
                f"as in return loss, None; got a {type(out).__name__}"
            )
        loss = out[0]
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
            given = f"{loss!r:.60}"
            if isinstance(loss, Tensor):
                given = f"a tensor of shape {tuple(loss.shape)}"
                if loss.ndim == 0:
                    given = "one without: is something detached, or under torch.no_grad()?"
            raise ValueError(
                f"loss of {self.name} must be one number with a gradient, such as a mean; got {given}"
            )
        return loss, out[1]

    def update_state(
        self, batch: Batch, drawn: Drawn, loss: Tensor, estimate: Tensor | None
    ) -> None:
        """Keep what the next step needs. It is called after ``loss``.

        Args:
            batch: All rows of the batch, on every process.
            drawn: What ``draw`` returned.
            loss: The mean over all rows.
            estimate: What ``loss`` returned beside it, of all rows.
        """

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run, before its first step: check model and data, and begin with fresh state.

        Args:
            model: The model to be trained.
            data: The whole data set.
            seed: Seed of the state that the objective keeps.
            device: Where the run computes. None takes the model's device.

        Raises:
            ValueError: If this model cannot be trained with this objective on these data.
        """
        examine(model, device)

    def check_noise(self, path: Path, given: bool, paired: bool) -> None:
        """Check that the loss can do with a run's noise; of a run, before ``prepare``.

        Args:
            path: The path of the model, which has the law of noise that is drawn.
            given: Whether the data bring their own noise.
            paired: Whether noise is paired with examples.

        Raises:
            ValueError: If it cannot.
        """

    def compiles(self, model: FlowMap) -> bool:
        """Return whether ``loss`` may be compiled for this model.

        A network with dropout or running statistics is not compiled: see ``network_state``.
        """
        return is_pure(model)

    def captures(self) -> bool:
        """Return whether a step may be recorded as a CUDA graph.

        What is recorded is never read again: ``loss`` must see the same in every step but for its
        arguments, and tensors of the device that are changed in place. That holds for a class that
        is itself a frozen dataclass, whose attributes cannot be set. Override it where you know
        that it holds, or that it does not.
        """
        made_by = vars(type(self)).get("__dataclass_params__")  # a subclass may set attributes
        return made_by is not None and made_by.frozen

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep of this objective."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned. Called after ``prepare``."""

    @property
    def name(self) -> str:
        """The name of the class, for tables and manifests."""
        return type(self).__name__

    def config(self) -> dict[str, Any]:
        """Return the settings as JSON values, for manifests."""
        if not is_dataclass(self):
            raise ValueError(
                f"{self.name} is no dataclass, so its settings are not known: write config(), which returns "
                "them as a dict, or decorate the class with @dataclass(frozen=True)"
            )
        return asdict(self)


def on_line(x_0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Return ``x_t = (1 - t) x_0 + t z``.

    Args:
        x_0: Data (B, ...).
        z: Noise (B, ...).
        t: Line times (B,).
    """
    return (1 - expand(t, x_0)) * x_0 + expand(t, x_0) * z


def in_layout_of(x: Tensor, other: Tensor) -> Tensor:
    """Return ``other`` as x lies in memory, if x is a batch of images in channels_last order."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return other.contiguous(memory_format=torch.channels_last)
    return other


def first(k: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the first k rows of each tensor. None stays None."""
    return tuple(None if a is None else a[:k] for a in tensors)


def uniform(*shape: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Draw from [0, 1) on the generator's device, then move to that of ``like`` and its type."""
    source = generator.device if generator is not None else "cpu"
    return torch.rand(*shape, generator=generator, device=source).to(like)


def check_number(name: str, value: Any, most: float = math.inf, least: float = 0.0) -> None:
    """Raise ValueError unless ``value`` is a finite number from ``least`` to ``most``."""
    number = isinstance(value, (int, float, np.number)) and math.isfinite(value)
    if not (number and least <= value <= most):
        wanted = f"in [{least:g}, {most:g}]"
        if most == math.inf:
            wanted = f"at least {least:g}" if least > -math.inf else "a finite number"
        shown = value if isinstance(value, (int, float, np.number)) else f"a {type(value).__name__}"
        raise ValueError(f"{name} must be {wanted}, got {shown}")


def check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


class Wrapper(Objective):
    """An objective around another one, ``self.base``: what a subclass leaves out, the base does.

    A subclass is a dataclass with a field ``base``, and sets ``learns`` to that of the base.
    """

    base: Objective

    def suited(self, shape: Sequence[int]) -> Objective:
        """Return this objective with a base that is suited to examples of a shape."""
        base = self.base.suited(shape)
        return self if base is self.base else replace(self, base=base)  # type: ignore[type-var]

    def update_state(
        self, batch: Batch, drawn: Drawn, loss: Tensor, estimate: Tensor | None
    ) -> None:
        """Let the base keep what it needs."""
        self.base.update_state(batch, drawn, loss, estimate)

    def state(self) -> dict[str, Tensor]:
        """Return what the base must keep."""
        return self.base.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned."""
        self.base.load_state(state)

    def compiles(self, model: FlowMap) -> bool:
        """Return whether the loss of the base may be compiled for this model."""
        return self.base.compiles(model)

    def captures(self) -> bool:
        """Return whether a step of the base may be recorded."""
        return super().captures() and self.base.captures()

    def config(self) -> dict[str, Any]:
        """Return the settings; of the base, its name and its own."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "base"}  # type: ignore[arg-type]
        return {"base": {"name": self.base.name, **self.base.config()}, **own}
