"""What the objectives that learn jumps between two times have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Drawn, Objective, check_number, on_line, uniform
from .network_state import compared_rows


@dataclass(frozen=True)
class TwoTimeObjective(Objective):
    """Learn u(x_t, t, s) at pairs of times ``s <= t``: what all objectives that do share.

    Args:
        equal_share: Share of the batch with s = t. It is plain velocity regression, which the rest
            builds on.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data. Both ends together are the
            corner that one-step generation uses, and which a continuous density never hits.
        time_density: Mean and standard deviation of ``logit(tau)``, from which both times are
            drawn, or "uniform". None takes the path's own. The default is MeanFlow's, which needs
            the pairs at both ends: without them it seldom comes near the one jump.
        power: Exponent p of the weight ``1 / (|e|^2 + 1e-3)^p`` of each example, which has no
            gradient (MeanFlow, arXiv 2505.13447, eq. 22). 0 is the plain squared error. A larger
            power tames outliers and biases the mean that is learned. Where the target of a pair
            holds no data (``IntegralAdditivity``, ``TerminalVelocity``), ``|u - v|^2`` stands for
            ``|e|^2`` in the weight, v being the velocity target.
        detail: Weight in ``|e|^2`` of the squared differences between neighbouring pixels of the
            error e, for images. Does not change the minimiser; favours fine detail when capacity is
            limited.
    """

    equal_share: float = 0.5
    start_share: float = 0.3
    end_share: float = 0.3
    time_density: tuple[float, float] | str | None = (-0.4, 1.0)
    power: float = 0.0
    detail: float = 0.0

    learns = "jump"

    def __post_init__(self) -> None:
        for name in ("equal_share", "start_share", "end_share"):
            check_number(name, getattr(self, name), most=1)
        check_number("power", self.power)
        check_number("detail", self.detail)

    def pairs(self, n: int) -> int:
        """Return how many of n rows have s < t: all but the ``equal_share``. They come first."""
        return n - round(self.equal_share * n)

    def times(
        self,
        model: FlowMap,
        n: int,
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        """Draw pairs of line times ``s <= t``.

        Returns:
            t and s, each (n,). All but the first ``pairs(n)`` have s = t.
        """
        path, unequal = model.path, self.pairs(n)
        draws = path.tau(
            path.sample_times(2 * n, density=self.time_density, generator=generator, device=device)
        )
        one, other = draws.reshape(2, n)
        t, s = torch.maximum(one, other), torch.minimum(one, other)
        t[unequal:] = s[unequal:] = one[unequal:]
        chance = uniform(2, unequal, generator=generator, like=t)
        t[:unequal].masked_fill_(chance[0] < self.start_share, path.tau_max)
        s[:unequal].masked_fill_(chance[1] < self.end_share, 0.0)
        return t, s

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); t (B,); s (k,): the others have s = t; labels (B,) or None."""
        n = len(batch.x_0)
        t, s = self.times(model, n, generator, batch.x_0.device)
        return {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "s": s[: self.pairs(n)],
            "labels": batch.labels,
        }

    def require_equal_rows(self, n: int) -> None:
        """Check that a batch teaches the velocity, which a loss without v of its own needs.

        Args:
            n: Rows of the batch.

        Raises:
            ValueError: If none of them has s = t.
        """
        if self.pairs(n) == n:
            raise ValueError(
                f"{self.name} learns nothing without rows with s = t, which say what the velocity is: "
                f"of {n} rows equal_share={self.equal_share:g} makes none, so raise it, or batch_size"
            )

    def on_pairs(
        self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, int, int]:
        """Return what each loss begins with.

        Args:
            model: The model in training.
            x_0: Data (B, ...).
            z: Noise (B, ...).
            t: Line times (B,).
            s: Line times (k,) of the first k examples; the others have s = t.

        Returns:
            x_t (B, ...); s (B,); k; and how many rows a call needs that is made for the first k.
        """
        k, n = len(s), len(t)
        rows = compared_rows(model, k, n) if k else 0
        return on_line(x_0, z, t), torch.cat([s, t[k:]]), k, rows

    def weighted(
        self, error: Tensor, extra: Tensor | None = None, judged_by: Tensor | None = None
    ) -> Tensor:
        """Return the mean over examples of ``|e|^2``, weighted by ``detail`` and ``power``.

        Args:
            error: The error e (B, ...).
            extra: Added to the squares of the first k examples, (k,).
            judged_by: What stands for e in the weight of ``power``, (B, ...). Needed where the
                target of a pair holds no data, so that e falls to zero at pairs and not where s =
                t: by its own e, a pair would weigh a hundred times as much as the regression that
                tells pairs what to agree on, and the model would collapse (docs/findings.md).

        Raises:
            ValueError: If ``detail`` is used and the examples are not images (B, C, H, W).
        """
        square = error.square().flatten(1).sum(1)
        if self.detail:
            if error.ndim != 4:
                raise ValueError(
                    "detail is for images (B, C, H, W); these examples have "
                    f"{error.ndim - 1} dimensions: set detail=0"
                )
            for dim in (2, 3):
                square = square + self.detail * error.diff(dim=dim).square().flatten(1).sum(1)
        if extra is not None:
            square = torch.cat([square[: len(extra)] + extra, square[len(extra) :]])
        size = square if judged_by is None else judged_by.square().flatten(1).sum(1)
        return (square / (size.detach() + 1e-3) ** self.power).mean()
