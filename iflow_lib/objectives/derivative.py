"""The derivatives of the average velocity: along a trajectory, and by the end of a jump."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..data import TensorData
from ..model import FlowMap
from ..paths import expand
from ..utils import is_out_of_memory, load_jvp_rules, uses_tf32
from .base import check_choice, check_number
from .network_state import is_pure, model_device, repeatable, trial
from .two_time import TwoTimeObjective

T = TypeVar("T")
DERIVATIVES = ("auto", "jvp", "difference")
#: networks that forward mode could not go through
_WITHOUT_JVP: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class DerivativeObjective(TwoTimeObjective):
    """Learn from a derivative of ``u(x_t, t, s)``: how that is computed.

    It is ``d/dt u`` along the trajectory, or ``d_s u`` by the end of the jump.

    Args:
        derivative: "jvp", exact, in forward mode; "difference", central, in float32 at least: two
            plain network calls, cheaper where forward mode is slow; "auto": the first on CUDA, the
            second elsewhere. A network that forward mode cannot go through (fused attention, batch
            normalisation) takes the difference, with one line of warning.
        step: Half width of the difference.
    """

    derivative: str = "auto"
    step: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("derivative", self.derivative, DERIVATIVES)
        check_number("step", self.step, least=1e-5, most=0.5)  # less is rounding in float32

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run: find out whether forward mode can go through the network."""
        super().prepare(model, data, seed=seed, device=device)
        _WITHOUT_JVP.discard(model.net)
        device = device or model_device(model)
        if self.uses_jvp(model, device):
            self._try_jvp(model, device)
        if not self.uses_jvp(model, device) and uses_tf32(device):
            warnings.warn(
                "the difference of two products in TF32 is mostly rounding: take derivative='jvp' or "
                "precision='float32'",
                RuntimeWarning,
                stacklevel=2,
            )

    def _try_jvp(self, model: FlowMap, device: torch.device) -> None:
        """Note it if forward mode cannot go through the network, by a small call of a copy."""
        with trial(model, device) as (twin, inputs):
            try:
                self.rehearse(twin, *inputs)
            except Exception:
                return  # a network that takes no small batch, or is at fault: the first step tells
            if twin.net in _WITHOUT_JVP:
                _WITHOUT_JVP.add(model.net)

    def rehearse(
        self,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        """Take the derivative once, as ``loss`` does: so ``prepare`` sees how it can be computed.

        The arguments are those of a call of the model, of a few rows.
        """
        with torch.no_grad():
            self.total_derivative(model, x, t, s, x, anchor, labels)

    def uses_jvp(self, model: FlowMap, device: torch.device) -> bool:
        """Return whether the derivative is taken in forward mode."""
        wanted = self.derivative == "jvp" or (self.derivative == "auto" and device.type == "cuda")
        return wanted and model.net not in _WITHOUT_JVP

    def total_derivative(
        self,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        velocity: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Compute ``d/dt u(x_t, t, s) = (d_t + velocity . grad_x) u`` with s and the anchor held.

        Args:
            model: The model whose u is differentiated.
            x: Points (B, ...) at the times t.
            t: Line times (B,).
            s: Line times (B,), at most t.
            velocity: dx/dt (B, ...).
            anchor: What an anchored network is given, (B, ...).
            labels: Classes (B,).

        Returns:
            The derivative, shape of x.
        """

        def u(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, s, anchor, labels)

        def forward_mode() -> Tensor:
            return _forward_mode(model, u, (x, t), (velocity, torch.ones_like(t)))[1]

        def difference() -> Tensor:
            # past t = 1 by a step at most: a one-sided difference would bias just that corner
            ahead = t + self.step
            behind = torch.maximum(t - self.step, s)
            # the difference of two bfloat16 numbers would be noise
            with torch.autocast(x.device.type, enabled=False):
                plus = u(x + expand(ahead - t, x) * velocity, ahead)
                minus = u(x + expand(behind - t, x) * velocity, behind)
            return (plus - minus) / expand((ahead - behind).clamp(min=1e-6), x)

        return self._either(model, x.device, forward_mode, difference)

    def end_derivative(
        self, model: FlowMap, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute ``u(x_t, t, s)`` and ``d_s u``, its derivative by the end s, both with gradient.

        Args:
            model: The model whose u is differentiated.
            x: Points (B, ...) at the times t.
            t: Line times (B,).
            s: Line times (B,), at most t.
            labels: Classes (B,).

        Returns:
            The value and the derivative, shape of x.
        """

        def u(s: Tensor) -> Tensor:
            return model(x, t, s, labels=labels)

        def forward_mode() -> tuple[Tensor, Tensor]:
            return _forward_mode(model, u, (s,), (torch.ones_like(s),))

        def difference() -> tuple[Tensor, Tensor]:
            # before s = 0 by a step at most: a one-sided difference would bias just that corner
            ahead, behind = torch.minimum(s + self.step, t), s - self.step
            with torch.autocast(x.device.type, enabled=False):
                plus, minus = u(ahead), u(behind)
            rate = (plus - minus) / expand(ahead - behind, x)
            return minus + expand(s - behind, x) * rate, rate

        return self._either(model, x.device, forward_mode, difference)

    def _either(
        self,
        model: FlowMap,
        device: torch.device,
        forward_mode: Callable[[], T],
        difference: Callable[[], T],
    ) -> T:
        """Take the derivative in the way of the settings, or by a difference where that fails."""
        with repeatable(model, hold_statistics=True):
            if not self.uses_jvp(model, device):
                return difference()
            if torch.compiler.is_compiling():
                return forward_mode()
            load_jvp_rules()
            try:
                return forward_mode()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = error
            found = difference()  # a network that is at fault itself raises here
        self.give_up_jvp(model, reason)
        return found

    def give_up_jvp(self, model: FlowMap, reason: RuntimeError) -> None:
        """Note, with one line of warning, that forward mode cannot go through the network."""
        _WITHOUT_JVP.add(model.net)
        said = str(reason).strip().split("\n")[0][:120]
        warnings.warn(
            f"forward mode cannot go through {type(model.net).__name__} ({said}): "
            "using derivative='difference'",
            RuntimeWarning,
            stacklevel=4,
        )


def _forward_mode(
    model: FlowMap,
    u: Callable[..., Tensor],
    at: tuple[Tensor, ...],
    along: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Return ``u(*at)`` and its derivative along a direction."""
    if torch.compiler.is_compiling() or is_pure(model):
        # torch compiles no linear layer of a point that is part of a batch, with a tangent that is not
        at = tuple(map(torch.clone, at))
        along = tuple(torch.empty_like(a).copy_(b) for a, b in zip(at, along))
        value, rate = torch.func.jvp(u, at, along)[:2]
        return value, rate
    # dual numbers draw the dropout masks of a plain call; torch.func draws others where memory has another order
    with forward_ad.dual_level():
        value, rate = forward_ad.unpack_dual(u(*map(forward_ad.make_dual, at, along)))
        return value, torch.zeros_like(value) if rate is None else rate
