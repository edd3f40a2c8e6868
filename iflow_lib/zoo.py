"""Comparisons that the notebooks share: same network, data, steps and seeds; tidy rows out.

A *system* is a path with a way of training, ``KINDS``: ``rectified_velocity`` is 1-Rectified Flow, ``ve_integral`` an
Integration Flow on VE, ``pfgmpp_x0_shared`` the published recipe on PFGM++ with one of its anchors. Settings live here
once, for the notebooks, the shipped checkpoints and the reference results alike.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path as FilePath

import torch

from . import data as data_sets
from . import metrics
from .io import write_atomic
from .model import FlowMap, read_config
from .networks import MLP, UNet
from .objectives import (
    ANCHORS,
    ConsistencyTraining,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    Objective,
    TwoTimeObjective,
    X0Regression,
)
from .paths import Path, PoissonFlow, RectifiedFlow, VarianceExploding
from .sampling import SampleResult, sample
from .training import TrainConfig, TrainRun, fit

PATH_NAMES = ("rectified", "ve", "pfgmpp")
#: kind -> its objective, made anew for each run. The difference's step is that of the committed results.
_INTEGRAL = partial(IntegralIdentity, derivative="difference", step=5e-3)
KINDS = {
    "integral": _INTEGRAL,
    "velocity": FlowMatching,
    "additivity": IntegralAdditivity,
    "consistency": ConsistencyTraining,
    "integral_self": partial(_INTEGRAL, anchor="self"),
    **{f"x0_{rule}": partial(X0Regression, rule) for rule in ANCHORS},
}
#: every path with every kind, for the plane; and those that ship as Fashion-MNIST models
PLANE_SYSTEMS = tuple(f"{path}_{kind}" for kind in KINDS for path in PATH_NAMES)
SYSTEMS = tuple(
    f"{path}_{kind}" for kind in ("velocity", "integral") for path in PATH_NAMES
)  # teachers first
EMOJI_SYSTEMS = ("emoji_rectified_velocity", "emoji_rectified_integral")  # the emoji's, in colour
NFES = (1, 2, 4, 8, 16, 32, 100)
#: Gradient steps of the reference results and of the comparison of anchor rules.
PLANE_STEPS, ANCHOR_STEPS = 10000, 2500
#: Gradient steps of image models, by kind; ve_integral, as it ships, had 12,000 (docs/findings.md).
IMAGE_STEPS = {"velocity": 12000, "integral": 24000}
#: and how a trained integral of images is finished: steps, their peak learning rate, weight of ``matching``
FINISH_STEPS, FINISH_LR, FINISH_MATCHING = 800, 1.5e-4, 50.0
#: In the plane the line times of n jumps are ((n - i) / n)^JUMP_POWER: two jumps meet at 0.3. Chosen on draws of the data
#: that no result uses; on images equal parts of the line (power 1) were best.
JUMP_POWER = 1.737
POINTS = 2000  # every metric compares this many samples with as many real ones


def make_path(name: str, *, images: bool) -> Path:
    """ "rectified", "ve" or "pfgmpp" (aug_dim 8 in the plane, 128 for images)."""
    if name not in PATH_NAMES:
        raise ValueError(f"unknown path {name!r}: expected one of {', '.join(PATH_NAMES)}")
    return {"rectified": RectifiedFlow, "ve": VarianceExploding}.get(
        name, lambda: PoissonFlow(128 if images else 8)
    )()


def parse_system(name: str, known=(*SYSTEMS, *EMOJI_SYSTEMS)) -> tuple[str, str]:
    """``"ve_integral" -> ("ve", "integral")``. ValueError for a name that is not ``known``."""
    if name not in known:
        raise ValueError(f"unknown system {name!r}: expected one of {', '.join(known)}")
    return tuple(name.removeprefix("emoji_").split("_", 1))


def image_set(system: str) -> str:
    """The data set of an image system: "emoji" or "fashion_mnist"."""
    return "emoji" if system.startswith("emoji_") else "fashion_mnist"


def sees_anchor(objective) -> bool:
    """Must the network of an objective be built with ``anchor=True``?"""
    return getattr(objective, "anchor", None) not in (None, "none")


def plane_setup(
    system: str, *, seed: int, network=MLP, **of_network
) -> tuple[FlowMap, Objective, dict]:
    """Fresh model of points in the plane, its objective and the settings of its training, one setup for all systems: MLP
    128 x 4 with three octaves of features, batch 512, Adam 2e-3 with half a cosine. network: its class, of_network:
    changes of its arguments."""
    path, kind = parse_system(system, PLANE_SYSTEMS)
    objective = KINDS[kind]()
    torch.manual_seed(seed)  # the network's own start
    net = network(
        **dict(dim=2, hidden=128, layers=4, features=3, anchor=sees_anchor(objective)) | of_network
    )
    return (
        FlowMap(net, make_path(path, images=False)),
        objective,
        dict(batch_size=512, lr=2e-3, seed=seed),
    )


def train_plane(
    system: str,
    dataset: str,
    *,
    seed: int,
    steps: int = PLANE_STEPS,
    device: str = "cpu",
    progress: bool = False,
) -> TrainRun:
    """Train one system on one of the sets in the plane, with the settings of ``plane_setup``."""
    model, objective, settings = plane_setup(system, seed=seed)
    config = TrainConfig(steps=steps, device=device, progress=progress, **settings)
    return fit(model, objective, data_sets.load(dataset), config)


def image_objective(kind: str) -> Objective:
    """The objective of a kind for images: those that learn G have an adaptive weight and narrower times there
    (docs/findings.md)."""
    objective = KINDS[kind]()
    return (
        replace(objective, time_density=(0.0, 1.0), power=0.5)
        if isinstance(objective, TwoTimeObjective)
        else objective
    )


def image_setup(system: str, teacher: FlowMap | None = None) -> tuple[FlowMap, Objective, dict]:
    """Fresh model of images, its objective and the settings of its training, one setup for all systems.

    teacher: a velocity model on the same path. The integral then starts from its network and learns its flow map, with
    what was best for that (docs/findings.md); without one it starts from nothing.
    """
    path, kind = parse_system(system)
    settings = dict(batch_size=64, lr=1e-3, ema=0.999)
    objective = FlowMatching()
    if kind == "integral":
        objective = image_objective(kind)
    torch.manual_seed(0)
    channels, size = (3, 32) if image_set(system) == "emoji" else (1, 28)
    net = UNet(channels=channels, size=size, width=32, blocks=1)
    if kind == "integral" and teacher is not None:
        net = copy.deepcopy(teacher.net).float()
        objective = replace(
            objective,
            teacher=teacher,
            equal_share=0.25,
            start_share=0.15,
            end_share=0.15,
            detail=15.0,
            perceptual=1.0,
        )
        settings["lr"] = 5e-4
    return FlowMap(net, make_path(path, images=True)), objective, settings


def train_images(
    system: str,
    folder,
    *,
    steps: int | None = None,
    finish: bool = True,
    device: str = "auto",
    progress: bool = True,
) -> FlowMap:
    """Train one system on the vendored Fashion-MNIST or emoji and save it, with its model card, into ``folder``. An
    integral has the velocity model beside that folder as its teacher, or if there is none the shipped one, and then
    ``finish_images`` goes on with it.

    steps: by default ``IMAGE_STEPS`` of its kind; finishing takes a thirtieth of them more. Killed or interrupted
    (KeyboardInterrupt), the next call continues: checkpoints are kept beside ``folder`` until it is done.
    """
    kind, first, last = parse_system(system)[1], _state(folder, ""), _state(folder, "-finish")
    steps, finish = steps or IMAGE_STEPS[kind], finish and kind == "integral"
    settings = {"device": device, "progress": progress}
    if not (finish and last.is_dir()):
        model, objective, more = image_setup(
            system, _teacher(system, folder) if kind == "integral" else None
        )
        model = _fit_images(
            system, folder, first, model, objective, {"steps": steps, **more, **settings}
        )
        if finish:
            last.mkdir()  # before the first goes: killed here, the next call finishes and does not begin anew
    shutil.rmtree(first, ignore_errors=finish)
    return finish_images(system, folder, steps=max(steps // 30, 1), **settings) if finish else model


def finish_images(
    system: str, folder, *, steps: int = FINISH_STEPS, device: str = "auto", progress: bool = True
) -> FlowMap:
    """Train the integral that is saved in ``folder`` on, with ``matching`` (docs/findings.md), and put the result in its
    place. Its manifest keeps the earlier one as "before". Interrupted, it continues as ``train_images`` does. ValueError
    for a velocity model, or one that is finished."""
    if parse_system(system)[1] != "integral":
        raise ValueError(f"{system} has nothing to be finished: only integrals have")
    before, teacher = training_manifest(system, FilePath(folder).parent), _teacher(system, folder)
    if "before" in before:
        raise ValueError(f"{folder} is finished already")
    model, objective, settings = image_setup(system, teacher)
    model.load_state_dict(pretrained(system, FilePath(folder).parent).float().state_dict())
    settings |= {"steps": steps, "lr": FINISH_LR, "device": device, "progress": progress}
    objective, state = replace(objective, matching=FINISH_MATCHING), _state(folder, "-finish")
    model = _fit_images(system, folder, state, model, objective, settings, before)
    shutil.rmtree(state)
    return model


def _teacher(system: str, folder) -> FlowMap:
    """The velocity model beside the folder of an integral, or if there is none the shipped one."""
    beside, name = FilePath(folder).parent, system.removesuffix("integral") + "velocity"
    return pretrained(name, beside if (beside / name).is_dir() else None)


def _state(folder, stage: str) -> FilePath:
    """Where checkpoints of a stage are, beside ``folder``."""
    return FilePath(folder).with_name(f"{FilePath(folder).name}{stage}-in-training")


def _fit_images(
    system, folder, state, model, objective, settings: dict, before: dict | None = None
) -> FlowMap:
    """Train with checkpoints in ``state``, measure and save; before: manifest of the stage before this one.
    KeyboardInterrupt if it was stopped."""
    config = TrainConfig(out_dir=state, **settings)
    run = fit(model, objective, data_sets.load(image_set(system)), config, resume="auto")
    if run.manifest["interrupted"]:
        raise KeyboardInterrupt(
            f"{system} was interrupted after {run.manifest['steps_done']} of {config.steps} steps"
        )
    run.manifest["config"]["out_dir"] = ""
    if before:
        run.manifest |= {
            name: before[name] + run.manifest[name] for name in ("steps_done", "seconds")
        } | {"before": before}
    save_with_card(run.model, system, run.manifest, folder)
    return run.model


def save_with_card(model: FlowMap, system: str, manifest: dict, folder) -> None:
    """Measure a trained image model and save it (float16 weights) with a card that says what it is."""
    table, dataset = (
        evaluate_images(model, system, nfes=(1, 2, 4, 50), manifest=manifest),
        image_set(system),
    )
    lines = [
        f"| {row['method']} | {row['nfe']} | {row['metric']} | {row['value']:.3f} |"
        for row in table
    ]
    train = data_sets.load(dataset).x
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:POINTS]]
    floor = ", ".join(
        f"{name} {value:.4f}" for name, value in image_distances(dataset, some).items()
    )
    what, origin = {
        "fashion_mnist": ("Fashion-MNIST, 28x28", "the vendored subset, MIT licence, Zalando SE"),
        "emoji": ("emoji, 32x32 in colour", "Noto Emoji, Apache License 2.0, Google"),
    }[dataset]
    card = (
        f"""# {system}

A {manifest["path"]["name"]} model of {what}, trained with `{manifest["objective"]["name"]}`.

- Network: {manifest["network"]["name"]}, {manifest["network"]["parameters"]:,} parameters, stored as float16.
- Data: {manifest["data"]["shape"][0]:,} training images ({origin}).
- Training: {manifest["steps_done"]:,} steps of batch {manifest["config"]["batch_size"]}, seed {manifest["config"]["seed"]},
  {manifest["seconds"]:.0f} seconds of wall clock on {manifest["hardware"]}.
- Objective: `{manifest["objective"]}`
- Use: `iflow_lib.studies.pretrained("{system}")`. Made for teaching and comparison.

Measured on {POINTS:,} samples against the test images (floor, real against real: {floor}) by
`iflow_lib.studies.image_distances`; none of these is the Inception FID or KID.

| method | nfe | metric | value |
|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n"
    )
    model.save_pretrained(folder, card=card, dtype=torch.float16, system=system, manifest=manifest)


def pretrained(system: str, folder=None, *, device: str = "cpu") -> FlowMap:
    """A shipped model of images (``results/reference/checkpoints``), or one from another folder of them."""
    from iflow_runner.recorder import reference

    parse_system(system)
    return FlowMap.from_pretrained(
        (FilePath(folder) if folder else reference("checkpoints")) / system, device=device
    )


def methods(kind: str, nfes=NFES) -> list[tuple[str, int]]:
    """(method, nfe) pairs a system is sampled with: Euler and Heun for velocities, jumps up to 8 for what learned jumps to
    any time, one jump for what learned those to the data alone, and the published refinement for the published anchors."""
    if kind in ("integral", "additivity", "integral_self"):
        return [("map", nfe) for nfe in nfes if nfe <= 8]
    if kind in ("consistency", "x0_none"):
        return [("map", 1)]
    if kind != "velocity":
        return [("anchor", nfe) for nfe in nfes]
    return [("euler", nfe) for nfe in nfes] + [
        ("heun", nfe) for nfe in nfes if nfe % 2 == 0 and nfe < 100
    ]


def _row(model: FlowMap, system: str, manifest: dict, dataset: str, nfe: int, method: str) -> dict:
    return {
        "dataset": dataset,
        "path": parse_system(system, (*PLANE_SYSTEMS, *EMOJI_SYSTEMS))[0],
        "objective": manifest["objective"]["name"],
        "anchor": manifest["objective"].get("anchor") or "none",
        "network": type(model.net).__name__,
        "params": model.parameter_count,
        "seed": manifest["config"]["seed"],
        "step": manifest["steps_done"],
        "nfe": nfe,
        "method": method,
        "n_samples": POINTS,
        "device": str(next(model.parameters()).device),
    }


def timed_sample(
    model: FlowMap, n: int, nfe: int, method: str, seed: int, times=None, trajectory: bool = False
) -> tuple[SampleResult, float]:
    """A sample and the seconds it took (wall clock; compare only within one run on one machine)."""
    start = time.perf_counter()
    result = sample(model, n, nfe, method, seed, times=times, trajectory=trajectory)
    return result, time.perf_counter() - start


def plane_jumps(path: Path, nfe: int) -> torch.Tensor:
    """Times (nfe + 1,) in the path's clock at which jumps in the plane meet; see ``JUMP_POWER``."""
    times = path.time(
        torch.linspace(1, 0, nfe + 1, dtype=torch.float64) ** JUMP_POWER * path.tau_max
    )
    times[0] = path.t_max  # exactly
    return times


def evaluate_plane(
    run: TrainRun, system: str, dataset: str, *, nfes=NFES, draws: int = 5
) -> list[dict]:
    """Exact W2 to fresh draws of the data for every method and NFE, each the mean of ``draws`` comparisons. For the
    published recipe also "spread", the standard deviation of its samples over that of the data (0 if it collapses to the
    mean), and "copy", see ``copied``.

    The real draws are second members of the floor's pairs, other ones for each training seed: how many points happen
    to fall into each mode moves W2 by a fifth, and so moves the floor along.
    """
    make, first = metrics.real_pairs(dataset, POINTS), run.manifest["config"]["seed"] * draws
    real = [make(i)[1] for i in range(first, first + draws)]
    rows = []
    for method, nfe in methods(parse_system(system, PLANE_SYSTEMS)[1], nfes):
        times = (
            plane_jumps(run.model.path, nfe) if method == "map" and not run.model.anchored else None
        )
        results = [
            timed_sample(
                run.model, POINTS, nfe, method, 1000 + first + i, times, method == "anchor"
            )
            for i in range(draws)
        ]
        finite = all(
            bool(torch.isfinite(r.x).all()) for r, _ in results
        )  # iterated anchors may diverge
        found = {
            "w2": sum(metrics.w2(r.x, y) for (r, _), y in zip(results, real)) / draws
            if finite
            else math.nan
        }
        if run.manifest["objective"]["name"] == "X0Regression":  # does it collapse, does it copy?
            found["spread"] = (
                sum(float(r.x.std(0).mean() / y.std(0).mean()) for (r, _), y in zip(results, real))
                / draws
            )
            if method == "anchor":
                found["copy"] = sum(copied(r) for r, _ in results) / draws
        rows += [
            _row(run.model, system, run.manifest, dataset, nfe, method)
            | {"metric": name, "value": value, "seconds": sum(s for _, s in results) / draws}
            for name, value in found.items()
        ]
    return rows


def copied(result: SampleResult) -> float:
    """Share of the variance of samples that the Gaussian anchors they started from explain linearly, mean over the
    coordinates: 1 if the model copies its anchor, 0 if the anchor does not matter; NaN for samples that are not finite.
    result: of ``sample(..., method="anchor", trajectory=True)``."""
    anchor, x = (v.double().flatten(1) for v in (result.trajectory[0], result.x))
    x, anchor = x - x.mean(0), anchor - anchor.mean(0)
    return float(
        (
            (x * anchor).mean(0).square()
            / (x.square().mean(0) * anchor.square().mean(0)).clamp(min=1e-30)
        ).mean()
    )


def floor_rows(dataset: str, *, pairs: int = 10, cache=None) -> list[dict]:
    """Real against real at the same size, one row a pair of independent draws: what no model can be asked to beat.

    cache: a folder that keeps them.
    """
    file = FilePath(cache) / f"{dataset}-floor-pairs{pairs}.json" if cache else None
    if file and file.is_file():
        return json.loads(file.read_text())
    image_metrics = (("frechet", metrics.frechet_distance), ("kernel", metrics.kernel_distance))
    named = image_metrics if dataset == "fashion_mnist" else (("w2", metrics.w2),)
    make = metrics.real_pairs(dataset, POINTS)
    base = {"dataset": dataset, "objective": "data", "method": "floor", "n_samples": POINTS}
    rows = [
        base | {"seed": i, "metric": name, "value": metric(*make(i))}
        for name, metric in named
        for i in range(pairs)
    ]
    if file:
        write_atomic(file, json.dumps(rows))
    return rows


def plane_study(
    sets,
    systems,
    *,
    seeds: int,
    steps: int = PLANE_STEPS,
    nfes=NFES,
    draws: int = 5,
    floor_pairs: int = 10,
    device: str = "cpu",
    cache=None,
    tell=print,
) -> list[dict]:
    """Train and measure every system on every set with seeds 0 .. seeds - 1. ``tell`` receives a line per run.

    cache: a folder that keeps each finished run, so that an interrupted study continues where it was.
    """
    rows = []
    for dataset in sets:
        rows += floor_rows(dataset, pairs=floor_pairs, cache=cache)
        for system, seed in itertools.product(systems, range(seeds)):
            name = f"{dataset}-{system}-steps{steps}-draws{draws}-seed{seed}"
            file = FilePath(cache) / f"{name}.json" if cache else None
            if file and file.is_file():
                rows += json.loads(file.read_text())
                continue
            run = train_plane(system, dataset, seed=seed, steps=steps, device=device)
            found = evaluate_plane(run, system, dataset, nfes=nfes, draws=draws)
            if file:
                write_atomic(file, json.dumps(found))
            rows += found
            tell(
                f"{dataset}, {system}, seed {seed}: {steps} steps in {run.manifest['seconds']:.0f} s"
            )
    return rows


def image_distances(dataset: str, x: torch.Tensor, n_real: int = POINTS) -> dict[str, float]:
    """{metric: value} of images x (n, ...) to the test images of "fashion_mnist" or "emoji".

    Fashion-MNIST: "frechet" and "kernel" distance on classifier features, to ``n_real`` test images (2,000 or 10,000).
    Emoji, which have no classifier: "frechet_pca", the Frechet distance in the first 64 principal components of the
    training images over the variance in them (1 if every sample is their mean), and "sliced_w2" of all pixels.
    """
    if dataset == "fashion_mnist":
        features, real = metrics.embed(x), metrics.fashion_reference(n_real)
        return {
            "frechet": metrics.frechet_distance(features, real),
            "kernel": metrics.kernel_distance(features, real),
        }
    real, axes = data_sets.load(dataset, split="test").x, _principal(dataset)
    mine, theirs = (v.cpu().double().flatten(1) @ axes for v in (x, real))
    return {
        "frechet_pca": metrics.frechet_distance(mine, theirs),
        "sliced_w2": metrics.sliced_w2(x, real),
    }


@lru_cache(maxsize=1)
def _principal(dataset: str, components: int = 64) -> torch.Tensor:
    """(pixels, components) directions of largest variance of the training images, scaled to variances of sum 1."""
    values, vectors = torch.linalg.eigh(torch.cov(data_sets.load(dataset).x.double().flatten(1).T))
    return vectors[:, -components:] / values[-components:].sum().sqrt()


def evaluate_images(
    model: FlowMap,
    system: str,
    *,
    nfes=NFES,
    n: int = POINTS,
    seed: int = 0,
    manifest: dict | None = None,
) -> list[dict]:
    """``image_distances`` of ``n`` samples to the test images, every method and NFE.

    ``seed`` is the sampling seed and goes into the row's run_id; the row's ``seed`` is the training seed. manifest: of
    the training; taken from the model's folder by the caller if it was loaded.
    """
    rows, dataset = [], image_set(system)
    for method, nfe in methods(parse_system(system)[1], nfes):
        result, seconds = timed_sample(model, n, nfe, method, seed)
        row = _row(model, system, manifest, dataset, nfe, method) | {
            "n_samples": n,
            "seconds": seconds,
            "run_id": f"{system}/sampling-seed-{seed}",
        }
        rows += [
            row | {"metric": name, "value": value}
            for name, value in image_distances(dataset, result.x).items()
        ]
    return rows


def training_manifest(system: str, folder=None) -> dict:
    """How a saved model was trained, from its ``config.json``. Same arguments as ``pretrained``."""
    from iflow_runner.recorder import reference

    return read_config((FilePath(folder) if folder else reference("checkpoints")) / system)["info"][
        "manifest"
    ]
