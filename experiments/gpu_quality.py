"""The part quality of experiments/gpu.py: the image systems that ship, trained again at the size a GPU affords.

On each path a velocity model and an Integration Flow that it teaches, as ``zoo`` describes them, by equally many gradient
steps (the Integration Flow starts from the weights of its teacher, and matches distributions in the last thirtieth), in float32
without TF32, of which a difference of calls would leave nothing. How many steps that are is planned once for a card, from the
time that there is, and kept. One, two and four jumps against 8, 16 and 32 Euler steps: Frechet and kernel distance to the 10,000 official test images, on the features
of the package's classifier.
"""

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import iflow_lib as ifl
from experiments.contenders import seconds
from experiments.gpu_checks import arithmetic
from experiments.gpu_table import EULER, JUMPS, Budget, Cell, Results, Skip, say
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo
from iflow_lib.data.images import DEBIAN_FOLDER
from iflow_lib.training.loop import Trainer

#: Share of the steps in which an Integration Flow also matches distributions.
MATCHED = 1 / 30


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        width: Of the U-Net.
        batch: Examples a step.
        samples: Images of each comparison.
        paths: Paths in their order.
        seeds: How many.
        images: How many of the training images are used; None for all.
        steps: Gradient steps; None for as many as the time allows.
        need: What the seconds that a cell needs are multiplied by.
    """

    width: int
    batch: int
    samples: int
    paths: tuple[str, ...]
    seeds: int
    images: int | None
    steps: int | None
    need: float


SIZES = {
    "full": Size(64, 256, 10_000, zoo.PATH_NAMES, 3, None, None, 1.0),
    "small": Size(8, 8, 80, ("rectified",), 1, 64, 4, 0.01),
}
#: Seconds that it takes to measure a model, and that must be left to make a plan.
MEASURING, PLANNING = 6.0, 40.0
#: Seconds that a plan gives at most to the two models of a path, and the share of them for training.
COMPARISON, TRAINING = 150.0, 0.85


def images(folder: Path | None, n: int | None) -> ifl.data.TensorData:
    """All 60,000 training images from a folder of the four idx.gz files, or Debian's; else those that come with the package.

    Raises ValueError or FileNotFoundError for a folder that does not hold them.
    """
    if folder is None and DEBIAN_FOLDER.is_dir():
        folder = DEBIAN_FOLDER
    if folder is None:
        return data_sets.load("fashion_mnist", n)
    return data_sets.load("fashion_mnist_full", n, root=folder)


# ------------------------------------------------------------------ training
@dataclass(frozen=True)
class Trainings:
    """The trainings of a plan.

    Args:
        size: How large everything is.
        steps: Gradient steps of each model.
        data: The training images.
        device: Where they run.
        folder: Of the checkpoints; a training that was stopped continues there.
    """

    size: Size
    steps: int
    data: ifl.data.TensorData
    device: torch.device
    folder: Path

    def model(self, system: zoo.System, seed: int, budget: Budget) -> tuple[ifl.FlowMap, float]:
        """The trained model of a system, and the seconds of its training, its teacher's not among them.

        Raises Skip where the time is over before it is trained.
        """
        fresh = system.model(seed, width=self.size.width)
        if system.kind == "velocity":
            return self._fit(system, seed, fresh, system.objective(), self.steps, {}, budget)
        teacher, _ = self.model(replace(system, kind="velocity"), seed, budget)
        last = max(1, round(self.steps * MATCHED))
        first, taught = self.steps - last, {"lr": zoo.TAUGHT_LR}
        fresh.load_state_dict(teacher.state_dict())
        model, took = self._fit(
            system, seed, fresh, system.objective(teacher), first, taught, budget
        )
        matched = system.objective(teacher, zoo.FINISH_MATCHING)
        again = ifl.FlowMap(copy.deepcopy(model.net).requires_grad_(True), model.path)
        model, rest = self._fit(
            system, seed, again, matched, last, {"lr": zoo.FINISH_LR}, budget, "-matched"
        )
        return model, took + rest

    def _fit(
        self, system, seed, model, objective, steps, changes, budget, stage=""
    ) -> tuple[ifl.FlowMap, float]:
        config = ifl.TrainConfig(
            **{
                **system.settings,
                "batch_size": self.size.batch,
                "steps": steps,
                "seed": seed,
                "device": self.device,
                "compile": False,
                "progress": False,
                "checkpoint_minutes": 0.25,
                "out_dir": self.folder / f"{system.name}-steps{self.steps}-seed{seed}{stage}",
                **changes,
            }
        )
        with arithmetic("float32"), stopped_at(budget.left() - MEASURING * self.size.need):
            run = ifl.fit(model, objective, self.data, config, resume="auto")
        if run.manifest["interrupted"]:
            done = run.manifest["steps_done"]
            raise Skip(
                f"stopped after {done:,} of {steps:,} steps of {system.kind}{stage.replace('-', ', ')}; "
                "the next call continues"
            )
        return run.model, run.manifest["seconds"]


@contextmanager
def stopped_at(seconds_left: float) -> Iterator[None]:
    """End a training within the ``with`` block after so many seconds, as a SIGTERM would: ``fit`` writes a checkpoint."""
    main = threading.current_thread() is threading.main_thread()
    if os.name != "posix" or not main:  # there no signal can be sent, or taken
        yield
        return
    over = threading.Event()

    def ask() -> None:
        wait = max(0.0, seconds_left)
        while not over.wait(wait):  # again and again: the first may come before fit listens
            os.kill(os.getpid(), signal.SIGTERM)
            wait = 0.05

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # for one that fit does not take
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
        signal.signal(signal.SIGTERM, before)


def steps_for(size: Size, data: ifl.data.TensorData, device: torch.device, budget: Budget) -> dict:
    """How many steps each model gets: as many as the two models of the first path can have now; the others come in later calls.

    From the measured time of a step of a velocity model and of the Integration Flow that it teaches.
    """
    took = {}
    velocity = zoo.System(size.paths[0], "velocity", "fashion_mnist")
    teacher = velocity.model(width=size.width)
    for kind, teachers in (("velocity", None), ("integral", teacher)):
        system = replace(velocity, kind=kind)
        config = ifl.TrainConfig(
            **{
                **system.settings,
                "batch_size": size.batch,
                "steps": 1000,
                "device": device,
                "compile": False,
                "progress": False,
            }
        )
        with arithmetic("float32"):
            model = system.model(width=size.width)
            step = Trainer(model, system.objective(teachers), data, config).one_step
            seconds(step, 5, device)
            took[kind] = seconds(step, 20, device)
    time_left = min(budget.left(), COMPARISON) - 2 * MEASURING * size.need
    steps = int(TRAINING * time_left / sum(took.values()))
    return {"steps": max(1, min(steps, zoo.IMAGE_STEPS["velocity"])), "seconds_per_step": took}


# ------------------------------------------------------------------ measuring
@torch.no_grad()
def features(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Features (n, 64) of the package's classifier, float64; on the device, unlike ``metrics.embed``."""
    classifier = metrics.FashionFeatures().to(device)
    with arithmetic("float32"):
        return torch.cat([classifier(part.to(device)) for part in x.split(1000)]).cpu().double()


def frechet(x: torch.Tensor, y: torch.Tensor) -> float:
    """``metrics.frechet_distance`` of features (n, d), without torchmetrics."""
    means, covariances = zip(*((v.mean(0), torch.cov(v.T)) for v in (x, y)))
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    apart = (means[0] - means[1]).square().sum()
    return max(0.0, float(apart + covariances[0].trace() + covariances[1].trace() - 2 * root))


def kernel(x: torch.Tensor, y: torch.Tensor, subsets: int = 20, most: int = 1000) -> float:
    """``metrics.kernel_distance`` of features (n, d), without torchmetrics and on other random subsets."""
    generator, size = torch.Generator().manual_seed(0), min(most, len(x), len(y))
    total = 0.0
    for _ in range(subsets):
        a, b = (v[torch.randperm(len(v), generator=generator)[:size]] for v in (x, y))
        aa, bb, ab = ((u @ v.T / x.shape[1] + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
        within = sum(float(k.sum() - k.trace()) for k in (aa, bb)) / (size * (size - 1))
        total += within - 2 * float(ab.mean())
    return total / subsets


def distance_rows(x: torch.Tensor, device: torch.device) -> list[dict]:
    """Rows with the distances of images to the official test images."""
    mine, real = features(x, device), metrics.fashion_reference(10_000)
    found = {"frechet": frechet(mine, real), "kernel": kernel(mine, real)}
    return [{"metric": name, "value": value, "n_samples": len(x)} for name, value in found.items()]


# ------------------------------------------------------------------ cells
def quality_cells(
    size_name: str,
    device: torch.device,
    results: Results,
    budget: Budget,
    *,
    folder: Path | None,
    runs: Path,
    steps: int | None = None,
) -> list[Cell]:
    """Whole comparisons first: the two models of a path, path after path, seed after seed.

    folder: of all Fashion-MNIST images, or None. runs: where checkpoints are kept. steps: gradient steps in place of planned
    ones.
    """
    size = SIZES[size_name]
    data = images(folder, size.images)
    name = f"quality/{data.name}/width{size.width}"
    plan = {"steps": steps or size.steps} if steps or size.steps else results.plan(name)
    if plan is None and budget.left() > PLANNING:
        plan = results.plan(name, steps_for(size, data, device, budget))
        say(f"{name}: {plan['steps']:,} steps for each model, by {plan['seconds_per_step']}")
    if plan is None:

        def no_plan(_: Budget) -> list[dict]:
            raise Skip(f"less than {PLANNING:.0f} s are left: no number of steps can be chosen")

        return [Cell(name, 0.0, no_plan)]
    place = Path(runs) / "gpu" / "".join(c if c.isalnum() else "-" for c in results.card)
    trainings = Trainings(
        size, plan["steps"], data, device, place / data.name / f"width{size.width}"
    )
    cells = [Cell("quality/floor", 10 * size.need, lambda _: floor(size, device))]
    for seed in range(size.seeds):
        for path in size.paths:
            for kind in ("velocity", "integral"):
                system = zoo.System(path, kind, "fashion_mnist")
                run = f"{name}/steps{plan['steps']}/{path}/{kind}/seed{seed}"
                measure = _measured(trainings, system, seed)
                cells.append(Cell(run, 2 * MEASURING * size.need, measure))
    return cells


def _measured(
    trainings: Trainings, system: zoo.System, seed: int
) -> Callable[[Budget], list[dict]]:
    def measure(budget: Budget) -> list[dict]:
        size, device = trainings.size, trainings.device
        model, took = trainings.model(system, seed, budget)
        objective = "IntegralIdentity" if system.kind == "integral" else "FlowMatching"
        row = {
            "dataset": trainings.data.name,
            "network": "UNet",
            "params": model.parameter_count,
            "path": system.path,
            "objective": objective,
            "precision": "float32",
            "mode": "eager",
            "batch": size.batch,
            "seed": seed,
            "step": trainings.steps,
        }
        rows = []
        method, nfes = ("map", JUMPS) if system.kind == "integral" else ("euler", EULER)
        for nfe in nfes:
            with arithmetic("tf32"):  # it moves no distance, and is several times as fast
                x = ifl.sample(model, size.samples, nfe, method, 1000 + seed, batch_size=1000).x
            at = row | {"nfe": nfe, "method": method}
            rows += [at | found for found in distance_rows(x, device)]
        return [*rows, row | {"metric": "training", "value": took, "unit": "s"}]

    return measure


def floor(size: Size, device: torch.device) -> list[dict]:
    """Training images of the package, which its classifier has not seen, as if they were samples."""
    x = data_sets.load("fashion_mnist").x
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: size.samples]
    row = {"dataset": "fashion_mnist", "objective": "data", "method": "floor"}
    return [row | found for found in distance_rows(x[chosen], device)]
