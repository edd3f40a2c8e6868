"""Sampling: one jump, several jumps, or a solver; every network call is counted."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from .data import TensorData
from .model import FlowMap, writes_into_input
from .registry import first_line
from .utils import check_int, check_seed, pick_device, to_device

#: Noise is drawn in blocks of this many samples, whatever the batch size of the network.
NOISE_BLOCK = 256

SamplerClass = TypeVar("SamplerClass", bound="type[Sampler]")


@dataclass(frozen=True)
class SampleResult:
    """What ``sample`` returns.

    Args:
        x: Samples (n, ...) on the CPU.
        nfe: Network calls per sample.
        trajectory: The points on the way, (points, n, ...), in the path's own scale and the units
            of x; for "anchor", the anchors; None if it was not asked for.
        times: Their times in the path's clock, (points,); None for anchors.
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    times: Tensor | None = None

    def __repr__(self) -> str:
        """Return the shapes in place of the numbers."""
        known = {"x": self.x, "trajectory": self.trajectory, "times": self.times}
        shapes = {k: tuple(v.shape) for k, v in known.items() if v is not None}
        said = [f"{name}: {shape}" for name, shape in shapes.items()]
        return f"SampleResult({', '.join([*said, f'nfe: {self.nfe}'])})"


class AverageVelocity:
    """The network during sampling: with its labels and guidance, and with a count of its calls.

    Args:
        model: The model.
        labels: Classes of the batch, (B,), or None.
        guidance: The weight w in ``u = u_free + w (u_class - u_free)`` (arXiv 2207.12598).

    Attributes:
        count: Network calls so far.
    """

    def __init__(self, model: FlowMap, labels: Tensor | None = None, guidance: float = 1.0) -> None:
        self.model, self.labels, self.guidance, self.count = model, labels, guidance, 0

    def __call__(self, x: Tensor, t: float, s: float, anchor: Tensor | None = None) -> Tensor:
        """Return ``u(x, t, s)`` on the line; where t == s it is the velocity.

        Args:
            x: Points on the line, (B, ...).
            t: Their line time, one for all.
            s: The target line time, one for all.
            anchor: An estimate of x_0, shape of x; None gives an anchored network zeros, which
                stand for "no anchor".

        Returns:
            The average velocity, shape of x.
        """
        rows = x.shape[0]  # len(x) would be a plain number in an exported graph
        times = x.new_full((rows,), t), x.new_full((rows,), s)
        if anchor is None and self.model.anchored:
            anchor = torch.zeros_like(x)
        self.count += 1
        watched = not (torch.compiler.is_compiling() or x.is_inference())
        version = x._version if watched else 0
        u = self.model(x, *times, anchor, self.labels)
        if watched and x._version != version:
            raise writes_into_input(self.model.net)
        if self.guidance == 1 or self.labels is None:
            return u
        self.count += 1
        free = self.model(x, *times, anchor, torch.full_like(self.labels, -1))
        return free + self.guidance * (u - free)


# ---------------------------------------------------------------------- samplers


@dataclass(frozen=True)
class SamplerRequest:
    """What is asked of a sampler.

    Args:
        model: The model, in evaluation mode and where it runs.
        n: Number of samples.
        seed: Seed of their noise.
        evaluations: How often ``u`` is evaluated for each sample; with guidance, each time is two
            network calls.
        times: The caller's grid of line times, (steps + 1,) in float64, in place of the sampler's
            own, or None.
        tolerance: Largest absolute and relative error of a step, for adaptive solvers.
        start: Points on the line at ``tau_max`` to start from, (n, ...), in place of noise by the
            seed, or None.
    """

    model: FlowMap
    n: int
    seed: int
    evaluations: int
    times: Tensor | None = None
    tolerance: float = 1e-5
    start: Tensor | None = None


class Sampler:
    """A loop over line times, with one step to override.

    A sampler of your own sets ``calls`` and gives ``step``; ``register_sampler`` gives it a name::

        @ifl.register_sampler("midpoint")
        class Midpoint(ifl.Sampler):
            calls = 2

            def step(self, u, x, t, s):
                middle = (t + s) / 2
                half = x - (t - middle) * u(x, t, t)
                return x - (t - s) * u(half, middle, middle)

    Args:
        plan: What is asked for.

    Attributes:
        times: The line times of the points that ``points`` yields, in float64, or None where they
            have none.
    """

    #: Evaluations of ``u`` in one step.
    calls: int = 1
    #: How many of them the last step, to the data, does without.
    spared: int = 0
    #: The nfe where none is asked for, without guidance; None means that the caller has to say it.
    default_nfe: int | None = None
    #: Whether nfe decides how many steps are made.
    counts_steps: bool = True
    #: Whether the caller may give a grid.
    takes_times: bool = True

    times: Tensor | None

    def __init__(self, plan: SamplerRequest) -> None:
        self.plan = plan
        self.times = self.grid(plan) if plan.times is None else plan.times

    def grid(self, plan: SamplerRequest) -> Tensor:
        """Return the line times of the steps, from ``tau_max`` down to 0.

        Solvers use the path's own grid in its own clock: uniform for the rectified path, EDM's for
        VE and PFGM++.

        Args:
            plan: What is asked for.

        Returns:
            The line times, (steps + 1,), float64.
        """
        path = plan.model.path
        return path.tau(path.grid(self.steps(plan.evaluations)))

    @classmethod
    def steps(cls, evaluations: int) -> int:
        """Return how many steps so many evaluations of ``u`` make."""
        return (evaluations + cls.spared) // cls.calls

    @classmethod
    def evaluations(cls, steps: int) -> int:
        """Return how many evaluations of ``u`` so many steps take."""
        return steps * cls.calls - cls.spared

    def points(self, u: AverageVelocity, x: Tensor) -> Iterator[Tensor]:
        """Yield the points of a batch from the start to the samples: the loop.

        Args:
            u: The network.
            x: The start on the line, (B, ...).

        Yields:
            The start and the point after each step, on the line, shape of x.
        """
        yield x
        for t, s in pairwise([] if self.times is None else self.times.tolist()):
            x = self.step(u, x, t, s)
            yield x

    def step(self, u: AverageVelocity, x: Tensor, t: float, s: float) -> Tensor:
        """Move a batch from line time t to line time s.

        Args:
            u: The network: ``u(x, t, s)`` is the average velocity on the line, ``u(x, t, t)`` the
                velocity.
            x: Points at t, (B, ...).
            t: The line time of x.
            s: The line time to reach, ``0 <= s < t``.

        Returns:
            The points at s, shape of x.
        """
        raise NotImplementedError(
            f"the sampler {type(self).__name__} has no step: give it step(self, u, x, t, s), which "
            "returns the points at s"
        )


#: Samplers by name: what ``sample(method=...)`` knows.
SAMPLERS: dict[str, type[Sampler]] = {}


def register_sampler(name: str) -> Callable[[SamplerClass], SamplerClass]:
    """Register a class of samplers as a method of ``sample``; a class decorator.

    A notebook's cell can be run again: a class of the same module and qualified name takes the
    place of the earlier one.

    Args:
        name: What ``sample(method=...)`` calls it.

    Returns:
        The decorator, which returns the class itself.

    Raises:
        ValueError: If the name is taken or is no name, the class does not extend ``Sampler``, its
            ``calls`` are not a whole number of at least 1, or it spares all of them.
    """
    if not isinstance(name, str) or name in ("", "auto"):
        raise ValueError(
            f'register_sampler takes a name, as in @ifl.register_sampler("midpoint"); got {name!r}'
        )

    def add(cls: SamplerClass) -> SamplerClass:
        if not (isinstance(cls, type) and issubclass(cls, Sampler)):
            raise ValueError(
                f"register_sampler({name!r}) decorates a class that extends ifl.Sampler, not {cls!r}"
            )
        check_int(f"calls of the sampler {cls.__name__}", cls.calls)
        if cls.spared not in range(cls.calls):
            raise ValueError(
                f"spared of the sampler {cls.__name__} must be a whole number from 0 to "
                f"{cls.calls - 1}, fewer than its calls, got {cls.spared!r}"
            )
        known = SAMPLERS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"the name {name!r} is taken by the sampler {known.__module__}.{known.__qualname__}: "
                "choose another name"
            )
        SAMPLERS[name] = cls
        return cls

    return add


@register_sampler("map")
class Jumps(Sampler):
    """Jumps of a model that learned the integral: ``x_s = x_t - (t - s) u(x_t, t, s)``.

    They need no accuracy from their grid and use equal parts of the line. An anchored model spends
    its first call of several on the anchor: the end of a jump from the start.
    """

    default_nfe = 1

    def __init__(self, plan: SamplerRequest) -> None:
        if plan.times is not None and plan.model.anchored:
            raise ValueError("map takes no times with an anchored network")
        self.finds_anchor = plan.model.anchored and plan.evaluations > 1
        self.anchor: Tensor | None = None
        super().__init__(plan)

    def grid(self, plan: SamplerRequest) -> Tensor:
        """Return equal parts of the line."""
        jumps = plan.evaluations - self.finds_anchor
        return torch.linspace(plan.model.path.tau_max, 0.0, jumps + 1, dtype=torch.float64)

    def points(self, u: AverageVelocity, x: Tensor) -> Iterator[Tensor]:
        """Yield the start and the end of each jump, after the anchor is found."""
        start = u.model.path.tau_max
        self.anchor = x - start * u(x, start, 0.0) if self.finds_anchor else None
        yield from super().points(u, x)

    def step(self, u: AverageVelocity, x: Tensor, t: float, s: float) -> Tensor:
        """Jump from t to s."""
        return x - (t - s) * u(x, t, s, self.anchor)


@register_sampler("euler")
class Euler(Sampler):
    """Euler's method; on the line it is the exponential integrator's (DDIM's) step of a path."""

    def step(self, u: AverageVelocity, x: Tensor, t: float, s: float) -> Tensor:
        """Follow the velocity at t."""
        return x - (t - s) * u(x, t, t)


@register_sampler("heun")
class Heun(Sampler):
    """Heun's method of second order, which ends with a step of Euler (arXiv 2206.00364, algorithm 1).

    A step of Heun looks at the velocity at both of its ends. The last step ends at the data, and
    there it does not look: hardly a training example has the time 0, so that ``u(x, 0, 0)`` is
    hardly trained, and EDM's own velocity, ``(x - D(x)) / sigma``, is not defined there. So k steps
    are 2 k - 1 evaluations. A single step of Euler is wrong by the square of its length, so the
    order stays 2 where the last step gets shorter as the others do. VP's even grid leaves it long:
    there, with an exact velocity, the order is 1.
    """

    calls, spared = 2, 1

    def step(self, u: AverageVelocity, x: Tensor, t: float, s: float) -> Tensor:
        """Follow the mean of the velocities at both ends of an Euler step; at the data, Euler's."""
        v = u(x, t, t)
        if s > 0:
            v = (v + u(x - (t - s) * v, s, s)) / 2
        return x - (t - s) * v


@register_sampler("rk45")
class RK45(Sampler):
    """Dormand and Prince's pair of order 5(4), adaptive, by scipy; one step for the batch."""

    counts_steps = takes_times = False

    def grid(self, plan: SamplerRequest) -> Tensor:
        """Return both ends of the line: the steps between them are not recorded."""
        return torch.tensor([plan.model.path.tau_max, 0.0], dtype=torch.float64)

    def points(self, u: AverageVelocity, x: Tensor) -> Iterator[Tensor]:
        """Yield the start and the end; RuntimeError if the solver stops before it."""
        from scipy.integrate import solve_ivp

        def velocity(tau: float, y: Any) -> Any:
            point = torch.from_numpy(y).reshape(x.shape).to(x)
            return u(point, tau, tau).double().cpu().numpy().ravel()

        yield x
        solution = solve_ivp(
            velocity,
            (u.model.path.tau_max, 0.0),
            x.double().cpu().numpy().ravel(),
            method="RK45",
            rtol=self.plan.tolerance,
            atol=self.plan.tolerance,
        )
        if not solution.success:
            raise RuntimeError(f"rk45 stopped before the end: {solution.message}")
        yield torch.from_numpy(solution.y[:, -1].copy()).reshape(x.shape).to(x)


@register_sampler("anchor")
class Refinement(Sampler):
    """The published sampler (arXiv 2504.20179): refine an anchor at one noise, again and again.

    ``a <- x - t u(x, t, 0; a)`` from a Gaussian anchor a. Anchors are estimates of the data, all at
    the same time.
    """

    default_nfe = 1
    takes_times = False

    def __init__(self, plan: SamplerRequest) -> None:
        if not plan.model.anchored:
            raise ValueError('method="anchor" needs a network built with anchor=True')
        super().__init__(plan)
        self.times: Tensor | None = None
        self.anchors = torch.cat(list(initial_anchors(plan.model, plan.n, plan.seed)))

    def points(self, u: AverageVelocity, x: Tensor) -> Iterator[Tensor]:
        """Yield the first anchor and each refined one."""
        start, anchor = u.model.path.tau_max, self.anchors[: len(x)].to(x)
        self.anchors = self.anchors[len(x) :]  # the next batch goes on with the rest
        yield anchor
        for _ in range(self.plan.evaluations):
            anchor = x - start * u(x, start, 0.0, anchor)
            yield anchor


# ---------------------------------------------------------------------- noise


def initial_noise(model: FlowMap, n: int, seed: int = 0) -> Iterator[Tensor]:
    """Draw the starting points on the line, on the CPU and in float32.

    The same seed gives the same noise on every device and for every batch size; more samples only
    add to the end.

    Args:
        model: The model that is sampled; only its path and the shape of its data count.
        n: How many points.
        seed: A whole number of at least 0.

    Yields:
        Blocks of at most NOISE_BLOCK points, (<= NOISE_BLOCK, ...).
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    tau_max = model.path.tau_max
    for start in range(0, n, NOISE_BLOCK):
        # always a whole block: torch's numbers depend on how many are asked for at once
        z = model.path.noise(
            (NOISE_BLOCK, *model.data_shape), generator=generator, dtype=torch.float32
        )
        yield tau_max * z[: n - start]


def initial_anchors(model: FlowMap, n: int, seed: int = 0) -> Iterator[Tensor]:
    """Draw the Gaussian anchors that ``method="anchor"`` starts from, in blocks as the noise.

    Their generator is seeded with a hash of the seed, so that they are not the noise of another
    seed that somebody uses. An offset would not do: torch's generator on the CPU reads only the
    lower 32 bits of its seed.

    Args:
        model: The model that is sampled; only the shape of its data counts.
        n: How many anchors.
        seed: The seed of the samples.

    Yields:
        Blocks of at most NOISE_BLOCK anchors, (<= NOISE_BLOCK, ...).
    """
    digest = hashlib.sha256(f"anchors of seed {check_seed(seed)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    for start in range(0, n, NOISE_BLOCK):
        yield torch.randn((NOISE_BLOCK, *model.data_shape), generator=generator)[: n - start]


# ---------------------------------------------------------------------- the entry points


def sample(
    model: FlowMap,
    n: int,
    nfe: int | None = None,
    method: str = "auto",
    seed: int = 0,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    trajectory: bool = False,
    labels: Any = None,
    guidance: float = 1.0,
    times: Any = None,
    tolerance: float = 1e-5,
    original_scale: bool = True,
    start: Tensor | None = None,
) -> SampleResult:
    """Draw ``n`` samples with exactly ``nfe`` network calls each.

    Args:
        model: A ``FlowMap``, such as ``fit(...).model``. It stays where it is and as it is.
        n: Number of samples.
        nfe: Network calls per sample. None is one jump for a model that jumps, and one refinement
            for one that refines, of two calls each with guidance; a solver has to be told.
        method: "auto" does what the model was trained for (``FlowMap.learned``): jumps where it
            learned jumps or nobody said; a single jump where it learned to jump to the data only;
            Euler's steps with a velocity, where nfe has to be given; refinements where it learned
            these. Otherwise a name in ``SAMPLERS``:

            - "map": ``nfe`` jumps. An anchored model spends its first call of several on the
              anchor.
            - "euler": ``nfe`` steps. On the line an Euler step is the exponential integrator (DDIM)
              step of every path.
            - "heun": ``(nfe + 1) / 2`` steps of two calls, but for the last, to the data, which is
              Euler's. An even nfe is an error, because nothing is rounded.
            - "rk45": adaptive, to ``tolerance``. The argument nfe is ignored; the result's is what
              it took, the mean over batches rounded up.
            - "anchor": ``nfe`` refinements of a Gaussian anchor at the same noise and ``t_max``, as
              published (arXiv 2504.20179), for an anchored model.
        seed: Seed of the noise. The same seed gives the same noise everywhere: see
            ``initial_noise``.
        batch_size: Samples at a time. It bounds memory and changes neither noise nor anchors. The
            last batch of a compiled model is filled up, so that nothing is compiled for its size.
        device: Where the network runs; None is where the model is. On another device a copy of the
            model runs, which takes the model's memory once more, there and for a moment here.
        trajectory: Whether the points on the way are kept.
        labels: Classes, n whole numbers, or one for all.
        guidance: The weight w in ``u = u_free + w (u_class - u_free)`` (arXiv 2207.12598); unless
            it is 1, every evaluation is two network calls.
        times: For methods that step along a grid, your own in the path's clock, from ``t_max`` down
            to 0, in place of the default one with as many steps.
        tolerance: Absolute and relative error of a step of "rk45".
        original_scale: Whether a standardization by ``data.standardize`` is undone, in x and in the
            trajectory, so that both have the units of the original data, in float64 where float32
            could not hold them (see ``Standardization``). False leaves them as the network sees
            them.
        start: Points on the line at ``tau_max``, (n, ...), to start from in place of the noise of
            the seed: as ``initial_noise`` draws them, and as the network sees them. Whoever gives
            them answers for their law.

    Returns:
        The samples on the CPU, with the number of network calls and, if asked for, the trajectory.
        A RuntimeWarning says so if some are not finite.

    Raises:
        ValueError: If an argument is out of range, nfe is missing or does not divide, labels do not
            fit the network, or times are not a grid.
    """
    _check_model(model)
    n, batch_size, seed = check_int("n", n), check_int("batch_size", batch_size), check_seed(seed)
    guided = _check_number("guidance", guidance) != 1
    method, nfe = _choose(model, method, nfe, 2 if guided else 1)
    kind = SAMPLERS[method]
    if not _check_number("tolerance", tolerance) > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    labels = None if labels is None else _check_labels(model, labels, n)
    if guided and labels is None:
        raise ValueError("guidance needs labels")
    without = labels is None or guided or bool((labels < 0).any())
    if model.classes and without and model.knows_no_class is False:
        raise ValueError(
            "this model was trained with label_dropout=0, so it knows no samples without a class: give "
            "labels, and no guidance"
        )
    evaluations = _evaluations(kind, method, nfe, guided=guided)
    grid = None if times is None else _own_grid(model, times, evaluations, nfe, method)
    scaling = model.scaling if original_scale else None
    model = _on_device(model, device)
    # more noise only adds to the end. The steps of an adaptive solver would see the added samples
    rows = -(-n // batch_size) * batch_size
    if not (model.compiled and n > batch_size and kind.counts_steps):
        rows = n
    labels = None if labels is None else torch.cat([labels, labels[: rows - n]])
    if start is not None:
        start = _check_start(model, start, n)
        start = torch.cat([start, start[: rows - n]])
    sampler = kind(SamplerRequest(model, rows, seed, evaluations, grid, tolerance, start))
    empty = torch.empty(0, device=None if device is None else pick_device(device))
    points, calls = _run(
        sampler,
        batch_size=batch_size,
        like=next(model.parameters(), empty),
        trajectory=trajectory,
        labels=labels,
        guidance=guidance,
    )
    points, spent = points[:, :n], -(-calls // rows)  # rounded up

    def undo(values: Tensor) -> Tensor:
        return values if scaling is None else scaling.undo(values)

    x = undo(points[-1] * float(model.path.scale(torch.zeros(1))))
    bad = n - int(x.isfinite().flatten(1).all(1).sum())
    if bad:
        warnings.warn(
            f"{bad} of {n} samples ({bad / n:.0%}) are NaN or infinite: expected finite ones; look at the "
            f"weights, or take other steps than {method} with nfe={spent}",
            RuntimeWarning,
            stacklevel=2,
        )
    if not trajectory:
        return SampleResult(x, spent)
    if sampler.times is None:
        return SampleResult(x, spent, undo(points))
    at = model.path.time(sampler.times)
    scales = model.path.scale(at).to(points).reshape((-1,) + (1,) * x.ndim)
    return SampleResult(x, spent, undo(points * scales), at)


def planned_sampler(
    model: FlowMap, nfe: int | None = None, method: str = "auto"
) -> tuple[str, Sampler]:
    """Return what ``sample`` would do with a model, for those who start from points of their own.

    Args:
        model: The model.
        nfe: As for ``sample``.
        method: As for ``sample``.

    Returns:
        The name of the method, and its sampler, whose ``plan.evaluations`` are the network calls of
        a sample. Its ``points(AverageVelocity(model), start)`` end in the samples on the line.

    Raises:
        ValueError: As ``sample``; and if the method starts from more than the noise, or decides on
            its steps as it goes, as "anchor" and "rk45" do.
    """
    _check_model(model)
    method, nfe = _choose(model, method, nfe, 1)
    kind = SAMPLERS[method]
    if not (kind.counts_steps and kind.takes_times):
        raise ValueError(
            f"{method} is not one chain of steps from the noise: expected a model that jumps, or one "
            "that learned a velocity with euler or heun"
        )
    evaluations = _evaluations(kind, method, nfe, guided=False)
    return method, kind(SamplerRequest(model, 1, 0, evaluations))


def reflow(
    model: FlowMap,
    n: int,
    *,
    nfe: int = 100,
    method: str = "euler",
    seed: int = 0,
    batch_size: int = 256,
    labels: Any = None,
) -> TensorData:
    """Draw noise, and where the model's own ODE takes it: pairs for the next rectified flow.

    (arXiv 2209.03003.)     ``fit(new_model, FlowMatching(), reflow(model, n), ...)`` trains the
    2-RF; ``Distillation()`` in place of ``FlowMatching()`` trains the one-step model.

    Args:
        model: A velocity model on the rectified path.
        n: Number of pairs.
        nfe: Network calls per pair.
        method: As for ``sample``.
        seed: As for ``sample``.
        batch_size: As for ``sample``.
        labels: As for ``sample``.

    Returns:
        A data set with ``x``, ``noise`` and, if given, ``labels``. If the model's data were
        standardized, x is too, and the data set carries the same ``scaling``, so that the next
        model's samples have the original scale again.

    Raises:
        ValueError: If the path is not RectifiedFlow, the model learned no velocity, or an argument
            does not fit ``sample``.
    """
    _check_model(model)
    if model.path.tau_max != 1:
        raise ValueError(f"reflow is defined on RectifiedFlow, not on {model.path.name}")
    if model.learned in ("jump_to_data", "refinement"):
        raise ValueError(
            f"reflow follows a velocity, and this model was trained for {model.learned} alone: give one "
            "that learned a velocity, such as by FlowMatching"
        )
    drawn = sample(
        model, n, nfe, method, seed, batch_size=batch_size, labels=labels, original_scale=False
    )
    noise = torch.cat(list(initial_noise(model, len(drawn.x), seed)))
    kept = None if labels is None else _check_labels(model, labels, len(drawn.x))
    return TensorData(
        drawn.x, labels=kept, name=f"reflow of {n}", noise=noise, scaling=model.scaling
    )


@torch.no_grad()
def _run(
    sampler: Sampler,
    *,
    batch_size: int,
    like: Tensor,
    trajectory: bool,
    labels: Tensor | None,
    guidance: float,
) -> tuple[Tensor, int]:
    """Return the points (points, n, ...) on the CPU, or only the last, and the number of calls."""
    plan, kept, calls = sampler.plan, [], 0
    noise = plan.start
    if noise is None:
        noise = torch.cat(list(initial_noise(plan.model, plan.n, plan.seed)))
    name, times = type(sampler).__name__, sampler.times
    falls = isinstance(times, Tensor) and times.ndim == 1 and len(times) > 1
    if times is not None and not (falls and times[0] > 0 and times[-1] == 0):
        raise ValueError(
            f"the times of the sampler {name} must fall from tau_max to 0, in a tensor (steps + 1,), "
            f"got {' '.join(str(times).split())}"
        )
    training = [part for part in plan.model.modules() if part.training]
    plan.model.eval()
    try:
        for start in range(0, plan.n, batch_size):
            x = to_device(noise[start : start + batch_size], like.device, like.dtype)
            known = None if labels is None else labels[start : start + len(x)]
            known = None if known is None else to_device(known, x.device)
            u = AverageVelocity(plan.model, known, guidance)
            record: list[Tensor] = []
            for point in sampler.points(u, x):
                if not isinstance(point, Tensor):
                    raise ValueError(
                        f"the sampler {name} made a point of type {type(point).__name__}: step must "
                        f"return the points at s, a tensor of shape {tuple(x.shape)}"
                    )
                if point.shape != x.shape:
                    raise ValueError(
                        f"the sampler {name} made a point of shape {tuple(point.shape)} from one of "
                        f"{tuple(x.shape)}: both must be the same"
                    )
                if not trajectory:
                    record.clear()
                record.append(point.cpu() if trajectory else point)
            if not record:
                raise ValueError(
                    f"the sampler {name} made no points: its points() must yield the start and the "
                    "point after each step"
                )
            kept.append(torch.stack(record).cpu())
            calls += u.count * len(x)
    finally:
        for part in training:
            part.training = True
    return torch.cat(kept, dim=1), calls


# ---------------------------------------------------------------------- checks


def _check_model(model: FlowMap) -> None:
    if not isinstance(model, FlowMap):
        raise ValueError(
            f"sample takes a FlowMap, such as fit(...).model, not a {type(model).__name__}"
        )
    if any(part.is_meta for part in model.parameters()):
        raise ValueError(
            'the model is on the device "meta", where it has no weights: load them on another device'
        )


def _check_number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _choose(model: FlowMap, method: str, nfe: int | None, each: int) -> tuple[str, int | None]:
    """Return the name of a sampler and its nfe; None where it decides itself.

    ``each`` is the number of network calls of an evaluation: 2 with guidance.
    """
    nfe = None if nfe is None else check_int("nfe", nfe)
    if method == "auto":
        if model.learned == "velocity" and nfe is None:
            raise ValueError(
                "this model learned a velocity, which a solver follows in many steps: say how many network "
                "calls, as in sample(model, n, nfe=32)"
            )
        if model.learned == "jump_to_data" and nfe not in (None, each):
            calls = "one network call each" if each == 1 else "two network calls each with guidance"
            raise ValueError(
                f"this model learned jumps to the data only, {calls}, so nfe must be {each}, got {nfe}: "
                'say method="map" to chain jumps that it was not trained for'
            )
        method = {"velocity": "euler", "refinement": "anchor"}.get(model.learned or "", "map")
    if not isinstance(method, str) or method not in SAMPLERS:
        raise ValueError(
            f"unknown method {method!r}: expected auto or one of {', '.join(SAMPLERS)}"
        )
    kind = SAMPLERS[method]
    if nfe is None and kind.default_nfe is not None:
        nfe = each * kind.default_nfe
    if nfe is None and kind.counts_steps:
        raise ValueError(
            f"{method} needs nfe, the network calls per sample, as in "
            f'sample(model, n, nfe=32, method="{method}")'
        )
    return method, nfe


def _evaluations(kind: type[Sampler], method: str, nfe: int | None, *, guided: bool) -> int:
    """Return how often ``u`` is evaluated for each sample; ValueError if nfe does not divide."""
    if nfe is None or not kind.counts_steps:
        return 1
    each = 2 if guided else 1
    steps = kind.steps(nfe // each)
    if steps > 0 and nfe == each * kind.evaluations(steps):
        return nfe // each
    makes = f"{method}{' with guidance' * guided} makes {each * kind.calls} network calls a step"
    if not kind.spared:
        raise ValueError(f"{makes}: nfe must be a multiple of {each * kind.calls}, got {nfe}")
    near = [f"nfe={each * kind.evaluations(k)}" for k in (steps, steps + 1) if k > 0]
    raise ValueError(
        f"{makes}, {each * (kind.calls - kind.spared)} in the last: take {' or '.join(near)} in place "
        f"of {nfe}"
    )


def _check_labels(model: FlowMap, labels: Any, n: int) -> Tensor:
    """Return labels (n,) as int64 on the CPU."""
    if not model.classes:
        raise ValueError("labels were given to a network without classes")
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels are no whole numbers: {first_line(error)}") from error
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    found = given.long().expand(n) if given.ndim == 0 else given.long()
    if (
        not whole
        or found.shape != (n,)
        or not bool(((found >= -1) & (found < model.classes)).all())
    ):
        values = f" from {found.min()} to {found.max()}" if found.numel() else ""
        raise ValueError(
            f"labels must be {n} whole numbers in [0, {model.classes}), or one for all; got {given.dtype} "
            f"of shape {tuple(given.shape)}{values}"
        )
    return found.clone()


def _check_start(model: FlowMap, start: Any, n: int) -> Tensor:
    """Return the points to start from (n, ...), float32 on the CPU as drawn noise is."""
    shape = (n, *model.data_shape)
    if not isinstance(start, Tensor) or tuple(start.shape) != shape:
        got = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(
            f"start must be a tensor of shape {shape}, a point for each sample; got {got}"
        )
    if not bool(start.isfinite().all()):
        raise ValueError("start has NaN or infinite values: give finite points")
    return start.detach().cpu().float()


def _own_grid(model: FlowMap, times: Any, evaluations: int, nfe: int | None, method: str) -> Tensor:
    """Return the line times of a caller's grid, which falls from t_max to 0 in the steps of nfe."""
    if not SAMPLERS[method].takes_times:
        raise ValueError(f"{method} takes no times")
    try:
        times = torch.as_tensor(times, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"times are no numbers: {first_line(error)}") from error
    end, kind = model.path.t_max, SAMPLERS[method]
    steps = kind.steps(evaluations)
    if (
        times.shape != (steps + 1,)
        or times[0] != end
        or times[-1] != 0
        or not bool((times.diff() < 0).all())
    ):
        got = f"{tuple(times.shape)}"
        if times.ndim == 1 and len(times):
            got += f" from {float(times[0]):g} to {float(times[-1]):g}"
            got += " with NaN" * bool(times.isnan().any())
            if nfe is not None and len(times) > 1 and len(times) != steps + 1:
                enough = nfe // evaluations * kind.evaluations(len(times) - 1)
                got += f": nfe={enough} makes as many steps as these"
        raise ValueError(
            f"times must fall from {end:g} to 0 in {steps} steps, so {steps + 1} numbers; got {got}"
        )
    grid = model.path.tau(times)
    grid[0] = model.path.tau_max
    return grid


def _on_device(model: FlowMap, device: str | torch.device | None) -> FlowMap:
    """Return the model, or a copy of it if it is elsewhere."""
    if device is None:
        return model
    wanted = torch.empty(0, device=pick_device(device)).device  # with its index
    if all(part.device == wanted for part in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).to(wanted)
