"""The derivative of the average velocity along a trajectory, which the identity needs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
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

DERIVATIVES = ("auto", "jvp", "difference")
#: networks that forward mode could not go through
_WITHOUT_JVP: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class DerivativeObjective(TwoTimeObjective):
    """Learn from ``d/dt u(x_t, t, s)`` along the trajectory: how that derivative is computed.

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
        with trial(model, device) as (twin, (x, t, s, anchor, labels)), torch.no_grad():
            try:
                self.total_derivative(twin, x, t, s, x, anchor, labels)
            except Exception:
                return  # a network that takes no small batch, or is at fault: the first step tells
            if twin.net in _WITHOUT_JVP:
                _WITHOUT_JVP.add(model.net)

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
        given = (model, x, t, s, velocity, anchor, labels)
        with repeatable(model, hold_statistics=True):
            if not self.uses_jvp(model, x.device):
                return self._difference(*given)
            if torch.compiler.is_compiling():
                return _forward_mode(*given)
            load_jvp_rules()
            try:
                return _forward_mode(*given)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                said = str(error).strip().split("\n")[0][:120]
            rate = self._difference(*given)  # a network that is at fault itself raises here
        _WITHOUT_JVP.add(model.net)
        warnings.warn(
            f"forward mode cannot go through {type(model.net).__name__} ({said}): "
            "using derivative='difference'",
            RuntimeWarning,
            stacklevel=2,
        )
        return rate

    def _difference(
        self,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        velocity: Tensor,
        anchor: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        # past t = 1 by a step at most: a one-sided difference would bias just that corner
        ahead = t + self.step
        behind = torch.maximum(t - self.step, s)
        # the difference of two bfloat16 numbers would be noise
        with torch.autocast(x.device.type, enabled=False):
            plus = model(x + expand(ahead - t, x) * velocity, ahead, s, anchor, labels)
            minus = model(x + expand(behind - t, x) * velocity, behind, s, anchor, labels)
        return (plus - minus) / expand((ahead - behind).clamp(min=1e-6), x)


def _forward_mode(
    model: FlowMap,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    velocity: Tensor,
    anchor: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    one = torch.ones_like(t)
    if torch.compiler.is_compiling() or is_pure(model):

        def u(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, s, anchor, labels)

        return torch.func.jvp(u, (x, t), (velocity, one))[1]
    # dual numbers draw the dropout masks of a plain call; torch.func draws others where memory has another order
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(x, velocity), forward_ad.make_dual(t, one)
        rate = forward_ad.unpack_dual(model(*moving, s, anchor, labels)).tangent
        return torch.zeros_like(x) if rate is None else rate
