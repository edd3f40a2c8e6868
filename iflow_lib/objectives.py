"""Training objectives. Each is a callable ``objective(model, batch, generator) -> loss`` on the canonical line.

It has two halves: ``draw`` takes from the generator all that is random in a step, one row for each example, and ``loss``
is a pure function of what was drawn. So ``fit`` can compile the second, and give each of several GPUs its rows.

On the line (see ``paths``) the path is ``x_t = (1 - t) x_0 + t z``, its conditional velocity ``z - x_0``, and all
times here are line times. The family enters through ``model.path`` alone: noise law, training times, ``tau_max``.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from .checkpoints import weights_digest
from .flow_map import FlowMap
from .paths import expand
from .speed import load_jvp_rules


@dataclass(frozen=True)
class Batch:
    """What an objective sees of one step.

    x_0: data (B, ...); labels: classes (B,) or None, -1 where the class is withheld; index: rows of the data set (B,) or
    None; noise: the z that belongs to each x_0 (reflow), or None: drawn; step, steps: number of this gradient step and
    of all of them; epoch: passes over the data so far.
    """

    x_0: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None
    noise: Tensor | None = None
    step: int = 0
    steps: int = 1
    epoch: int = 0

    @classmethod
    def of(cls, batch: Batch | Tensor) -> Batch:
        return batch if isinstance(batch, cls) else cls(batch)

    def draw_noise(self, model: FlowMap, generator: torch.Generator | None) -> Tensor:
        """The batch's own noise, or a fresh draw from the path's law. Shape of x_0."""
        if self.noise is not None:
            return self.noise
        return model.path.noise(self.x_0.shape, generator=generator, device=self.x_0.device, dtype=self.x_0.dtype)


class Objective:
    """A loss. ``config()`` gives its settings for manifests. Your own has ``draw`` and ``loss``, or ``__call__`` alone:
    then it is neither compiled nor spread over several GPUs."""

    def __call__(self, model: FlowMap, batch: Batch | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch (a ``Batch``, or a tensor of data): a scalar."""
        batch = Batch.of(batch)
        drawn = self.draw(model, batch, generator)
        loss, estimate = self.loss(model, **drawn)
        self.learn(batch, drawn, loss, estimate)
        return loss

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """The arguments of ``loss``: tensors whose rows are the examples (or the first k of them), or None."""
        raise NotImplementedError

    def loss(self, model: FlowMap, **drawn) -> tuple[Tensor, Tensor | None]:
        """The mean loss of the rows, a scalar, and what ``learn`` is to be told, (B, ...) without gradient, or None."""
        raise NotImplementedError

    def learn(self, batch: Batch, drawn: dict, loss: Tensor, estimate: Tensor | None) -> None:
        """Called after ``loss``, with all rows of the batch whatever the number of GPUs."""

    def prepare(self, model: FlowMap, data, folder=None, seed: int = 0, team=None) -> None:
        """Called by ``fit`` before the first step, with its ``TensorData`` and the ``Team`` of processes that share the
        run. ValueError if this cannot be trained."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of this objective, beside what ``save_files`` writes."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` gave."""

    def save_files(self, folder) -> None:
        """Write what is too large for ``state`` into the folder of a checkpoint."""

    def load_files(self, folder) -> None:
        """Take back what ``save_files`` wrote."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def config(self) -> dict:
        return asdict(self)


def on_line(x_0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """``(1 - t) x_0 + t z``, shape of x_0."""
    return (1 - expand(t, x_0)) * x_0 + expand(t, x_0) * z


def first(k: int, *tensors: Tensor | None):  # the first k rows of each tensor; None stays None
    return tuple(None if a is None else a[:k] for a in tensors)


def energy(x: Tensor, y: Tensor) -> Tensor:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` of two sets (n, ...), n >= 2, unbiased, a scalar that can be trained. Pairs of
    the same row are left out, since one may have been made from the other."""
    between = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    xx, yy, xy = (torch.cdist(a.flatten(1), b.flatten(1)) for a, b in ((x, x), (y, y), (x, y)))
    return ((2 * xy - xx - yy) * between).sum() / between.sum()


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Velocity regression (arXiv 2210.02747, 2209.03003): ``E |u(x_t, t, t) - (z - x_0)|^2``.

    Converges to the velocity ``E[z - x_0 | x_t]``: 1-Rectified Flow on ``RectifiedFlow``, a probability-flow model on
    ``VarianceExploding``, PFGM++ on ``PoissonFlow``. Sample it with a solver ("euler", "heun"); its one-step jump is
    the mean of the data, not a sample.
    """

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        x_0, path = batch.x_0, model.path
        t = path.tau(path.sample_times(len(x_0), generator=generator, device=x_0.device))
        return {"x_0": x_0, "z": batch.draw_noise(model, generator), "t": t, "labels": batch.labels}

    def loss(self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        return (model(on_line(x_0, z, t), t, t, labels=labels) - (z - x_0)).square().mean(), None


@dataclass(frozen=True)
class Triangle(Objective):
    """What the two objectives that learn G share: pairs of times ``s <= t``, half of them equal.

    equal_share: share of the batch with s = t, plain velocity regression, which is what the rest leans on.
    start_share, end_share: shares of the other pairs with t at the start of sampling, and with s at the data (s = 0):
        the corner that one-step generation uses and that a continuous density never hits.
    time_density: mean and standard deviation of ``logit(tau)``, from which both times are drawn, or "uniform"; None takes
        the path's own. Wider than a velocity model's, because jumps are learned over the whole triangle s <= t.
    power: loss ``|e|^2 / (|e|^2 + 1e-3)^power`` per example, the weight without gradient (MeanFlow, eq. 22). 0 is the
        plain squared error; a larger power tames outliers and biases the mean that is learned.
    detail: of images, weight in ``|e|^2`` of the squared differences between neighbouring pixels of the error e. What
        minimizes it is the same, but a network that cannot reach that is more exact in fine detail, and less in the rest.
    """

    equal_share: float = 0.5
    start_share: float = 0.1
    end_share: float = 0.1
    time_density: tuple[float, float] | str | None = (0.0, 1.6)
    power: float = 0.0
    detail: float = 0.0

    def __post_init__(self):
        for name in ("equal_share", "start_share", "end_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if not 0 <= self.detail < math.inf:
            raise ValueError(f"detail must be at least 0, got {self.detail!r}")

    def times(self, model: FlowMap, n: int, generator: torch.Generator | None, device) -> tuple[Tensor, Tensor]:
        """Pairs of line times ``s <= t``, each (n,); all but the first ``n - round(equal_share n)`` have s = t."""
        path, unequal = model.path, n - round(self.equal_share * n)
        draws = path.tau(path.sample_times(2 * n, density=self.time_density, generator=generator, device=device))
        first, second = draws.reshape(2, n)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        t[unequal:] = s[unequal:] = first[unequal:]
        source = generator.device if generator is not None else "cpu"
        chance = torch.rand(2, unequal, generator=generator, device=source).to(device)
        t[:unequal][chance[0] < self.start_share] = path.tau_max
        s[:unequal][chance[1] < self.end_share] = 0.0
        return t, s

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """x_0, z: (B, ...); t: (B,); s: (k,), of the first k examples, the others have s = t; labels."""
        n = len(batch.x_0)
        t, s = self.times(model, n, generator, batch.x_0.device)
        return {"x_0": batch.x_0, "z": batch.draw_noise(model, generator), "t": t,
                "s": s[: n - round(self.equal_share * n)], "labels": batch.labels}

    def weighted(self, error: Tensor, extra: Tensor | None = None) -> Tensor:
        """Mean over examples of the squared error (B, ...), weighted by ``detail`` and ``power``; extra: (k,), added to
        the squares of the first k. ValueError for a detail of what are not images (B, C, H, W)."""
        square = error.square().flatten(1).sum(1)
        if self.detail:
            if error.ndim != 4:
                raise ValueError(f"detail is of images (B, C, H, W); these examples have {error.ndim - 1} dimensions")
            for dim in (2, 3):
                square = square + self.detail * error.diff(dim=dim).square().flatten(1).sum(1)
        if extra is not None:
            square = torch.cat([square[: len(extra)] + extra, square[len(extra):]])
        return (square / (square.detach() + 1e-3) ** self.power).mean()


@dataclass(frozen=True)
class IntegralIdentity(Triangle):
    """Integration Flow that works: learn G from the identity its derivative obeys.

    G(x_t; t -> s) = (t - s) u(x_t, t, s). Differentiate along the trajectory, ``d/dt G = v``, and solve for u:

        u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s),       d/dt = d_t + v . grad_x,

    the MeanFlow identity (arXiv 2505.13447, eq. 6). The regression target is the right side without gradient, its
    first ``v`` replaced by the conditional velocity ``z - x_0``, whose mean given ``x_t`` is v. Converges to the exact
    average velocity, so that one jump is a solution of the ODE. Shares, times, power, detail: see ``Triangle``.

    anchor: None; or "self", for a network built with ``anchor=True``: it also sees its own estimate of x_0, the end of its
        unanchored jump, ``a = x_t - t u(x_t, t, 0; no anchor)``. The end of a trajectory does not change along it, so a is
        held in ``d/dt``. Half of the examples train without an anchor (zeros), or there would be no first estimate.
    tangent: what ``v . grad_x`` uses: "network", the model's own ``u(x_t, t, t)``, one more call without gradient; or
        "conditional", ``z - x_0`` as MeanFlow does. Both have the right mean, the first less noise (arXiv 2512.02012).
    teacher: a ``FlowMap`` with a trained velocity, on the same path: its ``u(x, t, t)`` stands for the velocity in target
        and tangent. Targets are then without noise, and what is learned is the teacher's flow map, without integrating it.
        Start from the teacher's weights. ``fit`` moves it to its device.
    perceptual: with a teacher whose network has ``hidden`` (``UNet``), weight in ``|e|^2`` of what the error does to the
        teacher's hidden features h at the end of the jump, the self-perceptual loss of arXiv 2401.00110:

            |h(x_t - (t - s) u, s) - h(x_t - (t - s) target, s)|^2 / max(t - s, 0.02)^2.

        What minimizes the loss is the same; a network that cannot reach that errs where the teacher sees it least.
    matching: with such a teacher, weight of how far the ends y of jumps to s = 0 are from the data x_0 *as a
        distribution*: the energy distance (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143) of the teacher's hidden
        features h(., 0), and of their means over places,

            2 E|h(y) - h(x_0)| - E|h(y) - h(y')| - E|h(x_0) - h(x_0')|,        y = x_t - t u(x_t, t, 0),

        over the pairs of a batch (of its rows in one process), as moment matching networks do (arXiv 1502.02761): three
        fifths of it jump from t_max, the others from half of it. The exact map of an exact velocity minimizes both terms;
        of two maps that are inexact it prefers the one whose samples are distributed as the data. For a model that has
        learned to jump: earlier it is in the way.
    derivative: "jvp", exact, forward mode; "difference", central with half width ``step``, in float32 at least: two plain
        network calls, cheaper where forward mode is slow (benchmarks/speed.py); "auto": the first on CUDA, else the second.
    """

    anchor: str | None = None
    tangent: str = "network"
    derivative: str = "auto"
    step: float = 1e-3
    teacher: FlowMap | None = None
    perceptual: float = 0.0
    matching: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("perceptual", "matching"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")
            if getattr(self, name) and not hasattr(getattr(self.teacher, "net", None), "hidden"):
                raise ValueError(f"{name} needs a teacher whose network has hidden features, as UNet does")
        if self.teacher is not None and self.anchor is not None:
            raise ValueError("a teacher's velocity knows nothing of anchors: use teacher or anchor, not both")
        for name, allowed in (("anchor", (None, "self")), ("tangent", ("network", "conditional")),
                              ("derivative", ("auto", "jvp", "difference"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {getattr(self, name)!r}")

    def prepare(self, model: FlowMap, data, folder=None, seed: int = 0, team=None) -> None:
        if (self.anchor is not None) != model.anchored:
            raise ValueError(f"IntegralIdentity(anchor={self.anchor!r}) needs a network built with "
                             f"anchor={self.anchor is not None}")
        if self.teacher is not None:
            theirs, ours = ((m.path.name, m.path.config(), m.data_shape) for m in (self.teacher, model))
            if self.teacher is model or theirs != ours:
                raise ValueError(f"the teacher must be another model, on the same path and data: {theirs}, not {ours}")
            self.teacher.to(team.device if team else next(model.parameters()).device).eval().requires_grad_(False)

    def config(self) -> dict:
        """The settings; of a teacher its network and a digest of its weights."""
        known = self.teacher and {"network": type(self.teacher.net).__name__, "sha256": weights_digest(self.teacher)}
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"teacher": known}

    def total_derivative(self, model: FlowMap, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor,
                         anchor: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """``d/dt u(x_t, t, s)`` along ``velocity`` with s and the anchor fixed. x, velocity: (B, ...); t, s: (B,)."""
        if self.derivative == "jvp" or self.derivative == "auto" and x.is_cuda:
            if not torch.compiler.is_compiling():
                load_jvp_rules()
            tangents = (velocity, torch.ones_like(t))
            return torch.func.jvp(lambda x, t: model(x, t, s, anchor, labels), (x, t), tangents)[1]
        ahead = t + self.step  # past t = 1 by a step at most: a one-sided difference would bias just that corner
        behind = torch.maximum(t - self.step, s)
        with torch.autocast(x.device.type, enabled=False):  # the difference of two bfloat16 numbers would be noise
            plus = model(x + expand(ahead - t, x) * velocity, ahead, s, anchor, labels)
            minus = model(x + expand(behind - t, x) * velocity, behind, s, anchor, labels)
        return (plus - minus) / expand((ahead - behind).clamp(min=1e-6), x)

    def estimate(self, model: FlowMap, x: Tensor, t: Tensor, labels: Tensor | None, known: Tensor) -> Tensor:
        """Anchors (B, ...): the model's own estimate of x_0 where ``known`` (B,), else zeros."""
        with torch.no_grad():
            end = x - expand(t, x) * model(x, t, torch.zeros_like(t), torch.zeros_like(x), labels)
        return torch.where(expand(known, x), end, torch.zeros_like(x))

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """As ``Triangle``, and with an anchor ``known`` (B,): which examples see it."""
        drawn = super().draw(model, batch, generator)
        if self.anchor is None:
            return drawn
        source = generator.device if generator is not None else "cpu"
        known = torch.rand(len(batch.x_0), generator=generator, device=source).to(batch.x_0.device) < 0.5
        return {**drawn, "known": known}

    def loss(self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None,
             known: Tensor | None = None) -> tuple[Tensor, None]:
        x_t, velocity, k = on_line(x_0, z, t), z - x_0, len(s)
        anchor = None if known is None else self.estimate(model, x_t, t, labels, known)
        if self.teacher is not None:
            with torch.no_grad():
                velocity = self.teacher(x_t, t, t, labels=labels)
        target, s = velocity, torch.cat([s, t[k:]])
        if k:
            x, now, then, a, c = first(k, x_t, t, s, anchor, labels)
            with torch.no_grad():
                own = self.tangent == "network" and self.teacher is None
                along = model(x, now, now, a, c) if own else velocity[:k]
                gap = expand(now - then, x)
                slope = gap * self.total_derivative(model, x, now, then, along, a, c)
                target = torch.cat([velocity[:k] - slope, velocity[k:]])
        error, extra = model(x_t, t, s, anchor, labels) - target, None
        if k and self.perceptual:
            seen = self.seen(x - gap * target[:k], gap * error[:k], then, c)
            extra = self.perceptual * seen / (now - then).clamp(min=0.02) ** 2
        loss = self.weighted(error, extra)
        return loss + self.matching * self.apart(model, x_0, z, labels) if self.matching else loss, None

    def apart(self, model: FlowMap, x_0: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """Energy distances between the teacher's features of the ends of jumps and those of ``x_0``, a scalar."""
        n, far = len(x_0), len(x_0) - 2 * len(x_0) // 5
        if n < 5:
            raise ValueError(f"matching compares distributions: give at least five examples, not {n}")
        t, s = torch.full_like(z.flatten(1)[:, 0], model.path.tau_max), torch.zeros_like(z.flatten(1)[:, 0])
        t[far:] /= 2
        x_t = on_line(x_0, z, t)
        y = x_t - expand(t, x_t) * model(x_t, t, s, labels=labels)
        with torch.no_grad():
            real = self.teacher.net.hidden(x_0, s, s, labels=labels).to(z.dtype)  # not that of autocast
        ours = self.teacher.net.hidden(y, s, s, labels=labels).to(z.dtype)
        return sum((stop - start) / n * (energy(ours[start:stop], real[start:stop])
                                         + energy(*(h[start:stop].flatten(2).mean(2) for h in (ours, real))))
                   for start, stop in ((0, far), (far, n)))

    def seen(self, x: Tensor, error: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Squared distance (k,) of the teacher's hidden features at ``x`` and at ``x - error``."""
        with torch.no_grad():
            right = self.teacher.net.hidden(x, s, s, labels=labels)
        return (self.teacher.net.hidden(x - error, s, s, labels=labels) - right).square().flatten(1).sum(1)


@dataclass(frozen=True)
class IntegralAdditivity(Triangle):
    """Learn G from the one thing every integral does: it adds up.

        G(x_t; t -> s) = G(x_t; t -> m) + G(x_m; m -> s),        s <= m <= t,   x_m = x_t - G(x_t; t -> m),

    where the two parts, without gradient, make the target of the whole. For s = t, velocity regression as in
    ``FlowMatching``, which is what the integrals are made of. Two plain network calls a step and no derivative: it
    compiles anywhere. Cf. shortcut models (arXiv 2410.12557) and SplitMeanFlow (arXiv 2507.16884, eq. 9).
    Converges to the exact average velocity, more slowly than the identity: a jump is only as right as its halves.
    Shares, times, power, detail: see ``Triangle``; m is uniform between s and t.
    """

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """As ``Triangle``, and ``share`` (k,): where m lies between s (0) and t (1)."""
        drawn = super().draw(model, batch, generator)
        source = generator.device if generator is not None else "cpu"
        return {**drawn, "share": torch.rand(len(drawn["s"]), generator=generator, device=source).to(batch.x_0)}

    def loss(self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None,
             share: Tensor) -> tuple[Tensor, None]:
        x_t, target, k = on_line(x_0, z, t), z - x_0, len(s)
        s = torch.cat([s, t[k:]])
        if k:
            x, now, then, c = first(k, x_t, t, s, labels)
            with torch.no_grad():
                early = model(x, now, then + share * (now - then), labels=c)
                middle = then + share * (now - then)
                late = model(x - expand(now - middle, x) * early, middle, then, labels=c)
                target = torch.cat([expand(1 - share, x) * early + expand(share, x) * late, target[k:]])
        return self.weighted(model(x_t, t, s, labels=labels) - target), None
