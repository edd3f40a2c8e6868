"""The shipped models: what each is, how it was trained, how it is measured.

A ``System`` is a path, a way of training (``KINDS``) and a data set. ``ve_integral`` is an
Integration Flow on the variance-exploding path, on Fashion-MNIST;
``eight_gaussians_pfgmpp_x0_shared`` is the published recipe on PFGM++ with one of its anchors, on
eight Gaussians. The notebooks, the shipped checkpoints and ``experiments`` take their settings from
here.

>>> from iflow_lib import zoo
>>> run = zoo.train("eight_gaussians_rectified_integral", steps=1000)
>>> rows = zoo.evaluate(run.model, "eight_gaussians_rectified_integral", run.manifest, nfes=(1, 2))
"""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path as FilePath
from typing import Any

import torch

from . import analytic, metrics
from . import data as data_sets
from .model import FlowMap
from .networks import MLP, UNet
from .objectives import (
    ANCHORS,
    ConsistencyTraining,
    DerivativeObjective,
    FlowMapDistillation,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    Objective,
    TwoTimeObjective,
    X0Regression,
)
from .paths import Path, PoissonFlow, RectifiedFlow, VarianceExploding
from .pretrained import read_config
from .sampling import SampleResult, sample
from .training import TrainConfig, TrainRun, fit

PATH_NAMES = ("rectified", "ve", "pfgmpp")
#: Settings of the committed results and the shipped models, from before the search for defaults
#: (docs/protocol.md): of pairs of times, and of the integral identity.
PAIRS: dict[str, Any] = {
    "equal_share": 0.5, "start_share": 0.1, "end_share": 0.1, "time_density": (0.0, 1.6),
    "power": 0.0, "velocity": "pair",
}  # fmt: skip
_integral = partial(
    IntegralIdentity, derivative="difference", step=5e-3, tangent="network", **PAIRS
)
#: What a system learns and how: the name of the kind -> its objective, made anew for each training.
KINDS: dict[str, Callable[..., Objective]] = {
    "integral": _integral,
    "velocity": partial(FlowMatching, velocity="pair"),
    "additivity": partial(IntegralAdditivity, **PAIRS),
    "consistency": partial(ConsistencyTraining, velocity="pair"),
    "integral_self": partial(_integral, anchor="self"),
    **{f"x0_{rule}": partial(X0Regression, rule) for rule in ANCHORS},
}
#: Image sets and the shape of their examples: channels, height and width.
IMAGE_SETS = {"fashion_mnist": (1, 28), "emoji": (3, 32)}

#: Numbers of network calls at which systems are compared.
NFES = (1, 2, 4, 8, 16, 32, 100)
#: Every metric compares this many samples with as many real ones.
POINTS = 2000
#: Of so many of them, on each path, the exact ends are computed, where they are known: a quarter of a second
#: on a CPU core, once for each sampling seed. PFGM++'s velocity is a sum over 285 scales of its noise, so half
#: as many take two seconds there.
EXACT_POINTS = {"rectified": 2000, "ve": 2000, "pfgmpp": 1000}
#: Gradient steps in the plane: of the reference results, and of the comparison of anchor rules.
PLANE_STEPS, ANCHOR_STEPS = 10000, 2500
#: Gradient steps of image models. The ``ve_integral`` that ships had 12,000 (docs/findings.md).
IMAGE_STEPS = {"velocity": 12000, "integral": 24000}
#: The second stage of an integral of images: gradient steps, peak learning rate, weight of ``matching``.
FINISH_STEPS, FINISH_LR, FINISH_MATCHING = 800, 1.5e-4, 50.0
#: The network in the plane, an MLP.
PLANE_NETWORK = {"dim": 2, "hidden": 128, "layers": 4, "features": 3, "frequencies": 4}
#: How an integral of images learns the flow map of its teacher (docs/findings.md).
TAUGHT = {
    "equal_share": 0.25,
    "start_share": 0.15,
    "end_share": 0.15,
    "detail": 15.0,
    "perceptual": 1.0,
}
#: The peak learning rate with which it does.
TAUGHT_LR = 5e-4
#: In the plane, n jumps meet at line times ``((n - i) / n)^JUMP_POWER``: two jumps meet at 0.3. The power
#: was chosen on draws of the data that no result uses. On images equal parts of the line are best.
JUMP_POWER = 1.737


@dataclass(frozen=True)
class System:
    """A path, a way of training and a data set: one setup for all that are compared.

    In the plane the network is an MLP of 128 units in 4 layers with three octaves of features,
    trained on batches of 512 by Adam at 2e-3. On images it is a U-Net of width 32, trained on
    batches of 64 at 1e-3.

    Args:
        path: "rectified", "ve" or "pfgmpp" (aug_dim 8 in the plane, 128 on images).
        kind: What is learned, a key of ``KINDS``.
        data: A set in the plane (``iflow_lib.data.PLANE``), "fashion_mnist" or "emoji".

    Raises:
        ValueError: One of the three is unknown.
    """

    path: str
    kind: str
    data: str

    def __post_init__(self) -> None:
        for field, known in (
            ("path", PATH_NAMES),
            ("kind", tuple(KINDS)),
            ("data", (*data_sets.PLANE, *IMAGE_SETS)),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"unknown {field} {value!r}: expected one of {', '.join(known)}")

    @classmethod
    def parse(cls, name: str | System) -> System:
        """Read the name of a system.

        Args:
            name: ``"PATH_KIND"`` on Fashion-MNIST, ``"DATA_PATH_KIND"`` on another set. A system is
                returned as it is.

        Raises:
            ValueError: There is no such system.
        """
        if isinstance(name, cls):
            return name
        sets = (*data_sets.PLANE, *IMAGE_SETS)
        data = next((d for d in sets if str(name).startswith(f"{d}_")), "fashion_mnist")
        path, _, kind = str(name).removeprefix(f"{data}_").partition("_")
        try:
            return cls(path, kind, data)
        except ValueError as error:
            raise ValueError(
                f'{name!r} is not a system ({error}); name one as in "ve_integral" (on Fashion-MNIST) or '
                f'"eight_gaussians_ve_integral"'
            ) from None

    @property
    def name(self) -> str:
        """The name that ``parse`` reads."""
        prefix = "" if self.data == "fashion_mnist" else f"{self.data}_"
        return f"{prefix}{self.path}_{self.kind}"

    @property
    def of_images(self) -> bool:
        """Whether the data are images."""
        return self.data in IMAGE_SETS

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of ``TrainConfig`` beside steps and seed."""
        if self.of_images:
            return {"batch_size": 64, "lr": 1e-3, "ema": 0.999}
        return {"batch_size": 512, "lr": 2e-3}

    @property
    def steps(self) -> int:
        """Gradient steps of the models that ship, and in the plane of the reference results."""
        return IMAGE_STEPS.get(self.kind, 12000) if self.of_images else PLANE_STEPS

    def make_path(self) -> Path:
        """Make the path."""
        if self.path == "pfgmpp":
            return PoissonFlow(128 if self.of_images else 8)
        return {"rectified": RectifiedFlow, "ve": VarianceExploding}[self.path]()

    def objective(self, teacher: FlowMap | None = None, matching: float = 0.0) -> Objective:
        """Make the objective.

        On images, objectives that learn jumps between two times have an adaptive weight and
        narrower times (docs/findings.md).

        Args:
            teacher: A velocity model on the same path, whose flow map an integral is to learn.
            matching: Weight, with a teacher, of how far the ends of jumps are from the data as a
                distribution.

        Raises:
            ValueError: Another kind than "integral" is to have a teacher.
        """
        objective = KINDS[self.kind]()
        if self.of_images and isinstance(objective, TwoTimeObjective):
            objective = replace(objective, time_density=(0.0, 1.0), power=0.5)
        if teacher is None:
            return objective
        if self.kind != "integral" or not isinstance(objective, DerivativeObjective):
            raise ValueError(f"{self.name} cannot have a teacher: only an integral can")
        shared = {f.name: getattr(objective, f.name) for f in fields(DerivativeObjective)}
        taught = shared | (TAUGHT if self.of_images else {})
        return FlowMapDistillation(teacher=teacher, matching=matching, **taught)

    def model(self, seed: int = 0, **network: Any) -> FlowMap:
        """Make a fresh model.

        Args:
            seed: Seed of the network's first weights. The global generator of torch is left as it
                was.
            network: Changed arguments of the network, such as ``hidden=64`` of the MLP or
                ``width=16`` of the U-Net.
        """
        anchor = getattr(KINDS[self.kind](), "anchor", None) not in (None, "none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.of_images:
                channels, size = IMAGE_SETS[self.data]
                net: torch.nn.Module = UNet(
                    **{
                        "channels": channels,
                        "size": size,
                        "width": 32,
                        "blocks": 1,
                        "anchor": anchor,
                    }
                    | network
                )
            else:
                net = MLP(**PLANE_NETWORK | {"anchor": anchor} | network)
        return FlowMap(net, self.make_path())

    def methods(self, nfes: Sequence[int] = NFES) -> list[tuple[str, int]]:
        """List the ways in which a model of this kind is sampled, as pairs (method, nfe).

        A velocity is sampled by Euler and Heun steps; Heun's end with one of Euler, so that beside
        n calls of Euler, n even, it makes n - 1. What learned jumps to any time is sampled by up to
        8 jumps, and what learned jumps to the data alone by one. The published anchors are refined.
        """
        if self.kind in ("integral", "additivity", "integral_self"):
            return [("map", nfe) for nfe in nfes if nfe <= 8]
        if self.kind in ("consistency", "x0_none"):
            return [("map", 1)]
        if self.kind != "velocity":
            return [("anchor", nfe) for nfe in nfes]
        heun = [("heun", nfe - 1) for nfe in nfes if nfe % 2 == 0 and 2 < nfe < 100]
        return [("euler", nfe) for nfe in nfes] + heun


# ---- training


def train(
    system: System | str,
    seed: int = 0,
    steps: int | None = None,
    *,
    teacher: FlowMap | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
    out_dir: str | os.PathLike[str] = "",
    **settings: Any,
) -> TrainRun:
    """Train a system with the settings of the shipped models.

    Args:
        system: What to train.
        seed: Seed of the first weights and of the training.
        steps: Gradient steps, ``System.steps`` if not given.
        teacher: A velocity model on the same path. An integral then starts from its weights and
            learns its flow map.
        device: As in ``TrainConfig``.
        progress: Show a bar.
        out_dir: Folder of checkpoints, from which a training that was stopped continues; "" for
            none.
        settings: Changed settings of ``TrainConfig``.

    Returns:
        What ``fit`` returns.
    """
    system = System.parse(system)
    objective = system.objective(teacher)
    if teacher is None:
        model, changes = system.model(seed), {}
    else:
        model = _started_from(teacher)
        changes = {"lr": TAUGHT_LR} if system.of_images else {}
    config = TrainConfig(
        **{
            "steps": steps or system.steps,
            "seed": seed,
            "device": str(device),
            "progress": progress,
            "out_dir": str(out_dir),
            **system.settings,
            **changes,
            **settings,
        }
    )
    data = data_sets.load(system.data)
    return fit(model, objective, data, config, resume="auto")


def finish(
    system: System | str,
    model: FlowMap,
    teacher: FlowMap,
    steps: int = FINISH_STEPS,
    **settings: Any,
) -> TrainRun:
    """Train an integral of images a little further, with the ends of its jumps matched to the data.

    Args:
        system: An integral of images.
        model: The trained model; it is left as it is.
        teacher: The velocity model that taught it.
        steps: Gradient steps.
        settings: As in ``train``: seed, device, progress, out_dir and settings of ``TrainConfig``.

    Returns:
        What ``fit`` returns.

    Raises:
        ValueError: The system is not an integral of images.
    """
    system = System.parse(system)
    if system.kind != "integral" or not system.of_images:
        raise ValueError(f"{system.name} has no second stage: only integrals of images have")
    objective = system.objective(teacher, FINISH_MATCHING)
    config = TrainConfig(
        **{"steps": steps, "progress": False, **system.settings, "lr": FINISH_LR, **settings}
    )
    data = data_sets.load(system.data)
    return fit(_started_from(model), objective, data, config, resume="auto")


def _started_from(model: FlowMap) -> FlowMap:
    """Make a model with the weights of another, in float32, to be trained."""
    return FlowMap(copy.deepcopy(model.net).float().requires_grad_(True), model.path)


# ---- shipped models


def shipped(folder: str | os.PathLike[str]) -> list[str]:
    """List the models in a folder, by the names that ``pretrained`` takes.

    Args:
        folder: The folder that holds one folder for each model, in a checkout
            results/reference/checkpoints.
    """
    return sorted(file.parent.name for file in FilePath(folder).glob("*/config.json"))


def pretrained(
    system: System | str, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> FlowMap:
    """Load a model that ships, or one that ``experiments.models`` has trained.

    Args:
        system: Its system. ``shipped(folder)`` lists what there is: velocity and integral of each
            path on Fashion-MNIST, and each kind on eight Gaussians and the rectified path.
        folder: The folder that holds one folder for each model, in a checkout
            results/reference/checkpoints.
        device: Where to load it.

    Raises:
        ValueError: There is no such system, or its files are damaged.
        FileNotFoundError: There is no such model in the folder.
    """
    system = System.parse(system)
    place = FilePath(folder) / system.name
    if not place.is_dir():
        there = ", ".join(shipped(folder)) or "none"
        raise FileNotFoundError(
            f"there is no model {system.name} in {folder} (there: {there}): restore it if it shipped, or train it: "
            f"python -m experiments.models {system.name} --folder {FilePath(folder).as_posix()}"
        )
    return FlowMap.from_pretrained(place, device=device)


def training_manifest(system: System | str, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read how a saved model was trained, with the arguments of ``pretrained``."""
    return read_config(FilePath(folder) / System.parse(system).name)["info"]["manifest"]


# ---- measuring


def evaluate(
    model: FlowMap,
    system: System | str,
    manifest: dict[str, Any],
    *,
    nfes: Sequence[int] = NFES,
    draws: int = 5,
    n: int = POINTS,
) -> list[dict[str, Any]]:
    """Measure a trained model by every method of its kind at every number of network calls.

    In the plane there are two headlines. "w2" is the exact W2 distance to fresh draws of the data,
    the mean of ``draws`` comparisons. "off_support" is the share of all these samples that lie where
    no data do (``metrics.off_support``), of which W2 hardly takes notice. On eight Gaussians, whose
    flow is known, "rms_to_exact" is the distance of the first samples, ``EXACT_POINTS`` of them, to
    the exact ends of the same noise. The published recipe also gets "spread", the standard deviation
    of its samples over that of the data (0 if it collapses to the mean), and "copy" (see
    ``copied``). On images the metrics are those of ``image_distances`` to the test images, from one
    draw. A metric is NaN where samples are not finite.

    The real draws in the plane are others for each training seed: how many points happen to fall
    into each mode moves W2 by a fifth. ``floor_rows`` measures the floor on the same draws.

    Args:
        model: The trained model.
        system: What it is.
        manifest: The manifest of its training, ``run.manifest`` or ``training_manifest(...)``.
        nfes: Numbers of network calls.
        draws: Comparisons behind each distance in the plane.
        n: Samples in each comparison.

    Returns:
        Tidy rows, one for each method, number of calls and metric.
    """
    system = System.parse(system)
    rows, seed = [], manifest["config"]["seed"]
    real = [] if system.of_images else [y for _, y in _real_pairs(system.data, seed, draws, n)]
    exact = None if system.of_images else _exact_ends(system, 1000 + seed * draws)
    exact = None if exact is None else exact[:n]
    sizes = {"off_support": n * draws, "rms_to_exact": 0 if exact is None else len(exact)}
    for method, nfe in system.methods(nfes):
        row = result_row(model, system, manifest, method, nfe) | {"n_samples": n}
        if system.of_images:
            result, seconds = timed_sample(model, n, nfe, method, 0)
            found = image_distances(system.data, result.x)
            row["run_id"] = f"{system.name}/sampling-seed-0"
        else:
            found, seconds = _plane_metrics(
                model, system, method, nfe, real, exact, 1000 + seed * draws
            )
        row["seconds"] = seconds
        rows += [
            row | {"metric": name, "value": value, "n_samples": sizes.get(name, n)}
            for name, value in found.items()
        ]
    return rows


def _real_pairs(
    dataset: str, seed: int, draws: int, n: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Real draws of a training seed: the second of each pair is for models, the first for floors."""
    pairs = metrics.real_pairs(dataset, n)
    return [pairs(i) for i in range(seed * draws, (seed + 1) * draws)]


def _exact_ends(system: System, seed: int) -> torch.Tensor | None:
    """Where the exact flow takes the noise of a sampling seed; None where it is not known."""
    known = data_sets.modes(system.data)
    return None if known is None else _exact_ends_of(system.path, system.data, seed)


@lru_cache
def _exact_ends_of(path: str, dataset: str, seed: int) -> torch.Tensor:
    model, known = System(path, "velocity", dataset).model(), data_sets.modes(dataset)
    assert known is not None  # it was asked before
    flow = analytic.MixtureFlow(model.path, *known)
    return metrics.exact_samples(model, flow, EXACT_POINTS[path], seed=seed)


def _plane_metrics(
    model: FlowMap,
    system: System,
    method: str,
    nfe: int,
    real: list[torch.Tensor],
    exact: torch.Tensor | None,
    seed: int,
) -> tuple[dict[str, float], float]:
    """Compare as many samples with each of the real draws; also the mean seconds of a sample."""
    times = jump_times(model.path, nfe) if method == "map" and not model.anchored else None
    drawn = [
        timed_sample(model, len(y), nfe, method, seed + i, times, method == "anchor")
        for i, y in enumerate(real)
    ]
    results, seconds = [result for result, _ in drawn], sum(s for _, s in drawn) / len(real)
    # Anchors that are refined again and again may diverge.
    finite = all(bool(torch.isfinite(r.x).all()) for r in results)
    distances = [metrics.w2(r.x, y) for r, y in zip(results, real)] if finite else [math.nan]
    found = {"w2": sum(distances) / len(distances)}
    points = torch.cat([r.x for r in results])
    found["off_support"] = metrics.off_support(points, system.data) if finite else math.nan
    if exact is not None:
        first = results[0].x[: len(exact)]
        found["rms_to_exact"] = metrics.rms_distance(first, exact) if finite else math.nan
    if system.kind.startswith("x0_"):
        spreads = [float(r.x.std(0).mean() / y.std(0).mean()) for r, y in zip(results, real)]
        found["spread"] = sum(spreads) / len(real)
        if method == "anchor":
            found["copy"] = sum(copied(r) for r in results) / len(real)
    return found, seconds


def result_row(
    model: FlowMap, system: System | str, manifest: dict[str, Any], method: str, nfe: int
) -> dict[str, Any]:
    """Make a row of results that lacks its metric and its value.

    The objective is that of the kind: a taught integral is an integral.
    """
    system = System.parse(system)
    objective = KINDS[system.kind]()
    return {
        "dataset": system.data,
        "path": system.path,
        "objective": objective.name,
        "anchor": getattr(objective, "anchor", None) or "none",
        "network": type(model.net).__name__,
        "params": model.parameter_count,
        "seed": manifest["config"]["seed"],
        "step": manifest["steps_done"],
        "nfe": nfe,
        "method": method,
        "n_samples": POINTS,
        "device": str(next(model.parameters()).device),
    }


def floor_rows(
    dataset: str, seeds: int = 1, draws: int = 5, n: int = POINTS
) -> list[dict[str, Any]]:
    """Measure real points where ``evaluate`` measures samples: no model can be asked to beat them.

    A model of training seed s is compared with ``draws`` real draws of its own, and so are here as
    many fresh draws, each with each. Give ``draws`` and ``n`` as to ``evaluate``.

    Args:
        dataset: A set in the plane.
        seeds: Training seeds, from 0.
        draws: Real draws of each.
        n: Points of a draw.

    Returns:
        Tidy rows with the training seed: "w2" of every comparison, ``draws`` squared for each seed,
        and "off_support" of the fresh draws together, about 0.01.
    """
    base = {"dataset": dataset, "objective": "data", "method": "floor"}
    rows = []
    for seed in range(seeds):
        fresh, real = zip(*_real_pairs(dataset, seed, draws, n))
        row = base | {"seed": seed, "n_samples": n, "metric": "w2"}
        rows += [row | {"value": metrics.w2(x, y)} for y in real for x in fresh]
        off = metrics.off_support(torch.cat(fresh), dataset)
        rows.append(row | {"n_samples": n * draws, "metric": "off_support", "value": off})
    return rows


def jump_times(path: Path, nfe: int) -> torch.Tensor:
    """Choose the times at which jumps in the plane meet, see ``JUMP_POWER``.

    Returns:
        Times (nfe + 1,) in the path's own clock, float64, from ``t_max`` down to 0.
    """
    line = torch.linspace(1, 0, nfe + 1, dtype=torch.float64) ** JUMP_POWER * path.tau_max
    times = path.time(line)
    times[0] = path.t_max  # exactly
    return times


def timed_sample(
    model: FlowMap,
    n: int,
    nfe: int,
    method: str,
    seed: int,
    times: torch.Tensor | None = None,
    trajectory: bool = False,
) -> tuple[SampleResult, float]:
    """Sample, with the arguments of ``sample``, and take the time; without its warning of NaN.

    Returns:
        The samples, and seconds of wall clock, which compare only within one run on one machine.
    """
    with warnings.catch_warnings():  # a table says NaN instead
        warnings.filterwarnings("ignore", message=".*samples .* are NaN or infinite")
        start = time.perf_counter()
        result = sample(model, n, nfe, method, seed, times=times, trajectory=trajectory)
        return result, time.perf_counter() - start


def copied(result: SampleResult) -> float:
    """Measure how much of the samples their first anchors explain.

    Args:
        result: What ``sample(..., method="anchor", trajectory=True)`` returned.

    Returns:
        The share of the samples' variance that the Gaussian anchors explain linearly, a mean over
        coordinates: 1 if the model copies its anchor, 0 if the anchor does not matter, NaN if a
        sample is not finite.

    Raises:
        ValueError: The samples have no trajectory.
    """
    if result.trajectory is None:
        raise ValueError("the first anchors are not known: sample with trajectory=True")
    anchor, x = (v.double().flatten(1) for v in (result.trajectory[0], result.x))
    x, anchor = x - x.mean(0), anchor - anchor.mean(0)
    variances = x.square().mean(0) * anchor.square().mean(0)
    return float(((x * anchor).mean(0).square() / variances.clamp(min=1e-30)).mean())


def image_distances(dataset: str, x: torch.Tensor, n_real: int = POINTS) -> dict[str, float]:
    """Measure how far images are from the test images.

    Fashion-MNIST: "frechet" and "kernel" distance on the features of the package's first
    classifier, "frechet_second" and "kernel_second" on those of the second, made differently
    (``metrics.FashionFeatures``): no single set of features is a judge. Others, which have no classifier: "frechet_pca", the Frechet distance in the first 64 principal
    components of the training images over the variance in them (1 if every sample is their mean),
    and "sliced_w2" of all pixels.

    Args:
        dataset: "fashion_mnist", "emoji" or "digits".
        x: Images (n, channels, height, width) with values from -1 to 1.
        n_real: Test images of Fashion-MNIST, 2,000 or 10,000.

    Returns:
        The distance by each metric.
    """
    if dataset == "fashion_mnist":
        found = {}
        for which, suffix in (("first", ""), ("second", "_second")):
            features = metrics.embed(x, metrics.shipped_classifier(which))
            real = metrics.fashion_reference(n_real, which)
            found[f"frechet{suffix}"] = metrics.frechet_distance(features, real)
            found[f"kernel{suffix}"] = metrics.kernel_distance(features, real)
        return found
    real, axes = data_sets.load(dataset, split="test").x, _principal_axes(dataset)
    mine, theirs = (v.cpu().double().flatten(1) @ axes for v in (x, real))
    return {
        "frechet_pca": metrics.frechet_distance(mine, theirs),
        "sliced_w2": metrics.sliced_w2(x, real),
    }


@lru_cache
def _principal_axes(dataset: str, components: int = 64) -> torch.Tensor:
    """Directions (pixels, components) in which training images vary most; variances of sum 1."""
    values, vectors = torch.linalg.eigh(torch.cov(data_sets.load(dataset).x.double().flatten(1).T))
    return vectors[:, -components:] / values[-components:].sum().sqrt()
