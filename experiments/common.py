"""What the experiments share: folders, the command line, what a step costs, distances, tables in markdown."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch

import iflow_lib as ifl
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
BENCH = REFERENCE / "bench"
CHECKPOINTS = REFERENCE / "checkpoints"
RUNS = ROOT / "results" / "runs" / "experiments"
#: The models that ship: six of Fashion-MNIST (teachers first) and one of each kind on eight Gaussians.
IMAGE_MODELS = tuple(
    f"{path}_{kind}" for kind in ("velocity", "integral") for path in zoo.PATH_NAMES
)
PLANE_MODELS = tuple(f"eight_gaussians_rectified_{kind}" for kind in zoo.KINDS)
#: name -> how it is made, examples a step, steps a repetition of experiments/speed.py
NETWORKS = {
    "MLP": (lambda **options: plane_network(hidden=220, **options), 512, 8),
    "UNet": (lambda **options: ifl.UNet(channels=1, size=28, width=32, blocks=1, **options), 64, 4),
}


def command_line(doc: str, out: Path | None = BENCH, runs: bool = True, **numbers: int):
    """Make the parser of an experiment.

    Args:
        doc: Its docstring, whose first line is shown.
        out: Default folder of its tables, ``--out``; None for an experiment without.
        runs: Whether finished runs are kept, in a folder below ``--runs``.
        numbers: Options that take a whole number, with their defaults.
    """
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        options.add_argument(flag, type=int, default=default, help=f"default {default}")
    if out is not None:
        where = out.relative_to(ROOT)
        options.add_argument(
            "--out", type=Path, default=out, help=f"of the table, by default {where}"
        )
    if runs:
        where = RUNS.relative_to(ROOT)
        options.add_argument(
            "--runs", type=Path, default=RUNS, help=f"of finished runs, by default {where}"
        )
    return options


def over_floor(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of W2, over the floor of their set on the draws of their training seed.

    A table of before floors had such draws has a mean over other pairs for each set, and that is taken.
    """
    w2 = table[table.metric == "w2"]
    floors, runs = w2[w2.method == "floor"], w2[w2.method != "floor"]
    own = set(floors.seed) <= set(runs.seed)
    by = ["dataset", "seed"] if own else ["dataset"]
    floor = floors.groupby(by).value.mean().rename("floor").reset_index()
    joined = runs[by].merge(floor, on=by, how="left")
    return runs.assign(value=runs.value.to_numpy() / joined.floor.to_numpy())


def choices(
    options: argparse.ArgumentParser, name: str, known: Iterable[str], default=None
) -> None:
    """Add an option that takes some of the known names; by default all."""
    known = tuple(known)
    options.add_argument(name, nargs="+", default=default or known, choices=known)


def system(name: str) -> zoo.System:
    """An argument of a command line that names a system."""
    try:
        return zoo.System.parse(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def finished(run: ifl.TrainRun) -> ifl.TrainRun:
    """Hand a training on, unless Ctrl-C ended it early: what was learned so far must not be measured."""
    if run.manifest["interrupted"]:
        done, steps = run.manifest["steps_done"], run.manifest["config"]["steps"]
        raise KeyboardInterrupt(f"stopped after {done} of {steps} steps")
    return run


def excerpt(manifest: dict, *names: str) -> dict:
    """The part of a training's manifest that a table of many runs keeps."""
    return {name: manifest[name] for name in names}


def calls_per_step(objective: ifl.Objective) -> float:
    """Network evaluations for each example in a step of an objective. A backward pass counts as two.

    Where the objective leaves its shares open, they are those for vectors: images need fewer.
    """
    objective = objective.suited((2,))
    if isinstance(objective, ifl.EnergyMatching):
        return calls_per_step(objective.base) + 3 * sum(objective.calls)
    if isinstance(objective, ifl.FlowMapDistillation):
        # The perceptual loss takes hidden features twice, 0.65 of a call each, and goes back through one of them.
        perceptual = 2 * bool(objective.perceptual)
        matching = 5 * bool(objective.matching)  # 3 and its features
        return 4 + (1 - objective.equal_share) * (2 + perceptual) + matching
    if isinstance(objective, ifl.IntegralIdentity):
        each = (2 if objective.gap is None else 1) + (objective.tangent == "network")
        return 3 + (1 - objective.equal_share) * each + (objective.anchor is not None)
    if isinstance(objective, ifl.TerminalVelocity):  # two calls with gradient make the difference
        return 3 + 7 * (1 - objective.equal_share)
    if isinstance(objective, ifl.IntegralAdditivity):
        return 3 + 2 * (1 - objective.equal_share)
    own = getattr(objective, "anchor", None) == "self"
    return 3 + (isinstance(objective, ifl.ConsistencyTraining) or own)


def mean_w2(draw: Callable[[int], torch.Tensor], dataset: str, seed: int, draws: int) -> float:
    """Mean exact W2 of ``zoo.POINTS`` samples to as many fresh points.

    draw: gives the samples of a sampling seed, (zoo.POINTS, 2). seed: of the training, and no sampling seed.
    """
    seeds = [1000 * (seed + 1) + i for i in range(draws)]
    real = [data_sets.load(dataset, zoo.POINTS, "test", seed=k).x for k in seeds]
    return sum(metrics.w2(draw(k), y) for k, y in zip(seeds, real)) / draws


def plane_network(**changes) -> ifl.MLP:
    """The MLP of 4 layers of 128 that comparisons used before the search for defaults: without features, and with other times."""
    before = {"dim": 2, "hidden": 128, "layers": 4, "features": 0, "frequencies": 4}
    return ifl.MLP(**before | changes)


def plane_model(path: ifl.Path, seed: int, **changes) -> ifl.FlowMap:
    """A model with that network, fresh."""
    torch.manual_seed(seed)
    return ifl.FlowMap(plane_network(**changes), path)


def plane_config(steps: int, seed: int, **changes) -> ifl.TrainConfig:
    """Training in the plane: batches of 512, Adam at 2e-3."""
    known = {"batch_size": 512, "lr": 2e-3, "device": "cpu", "progress": False}
    return ifl.TrainConfig(**{"steps": steps, "seed": seed, **known, **changes})


def markdown(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """A table in markdown."""

    def line(cells: Iterable) -> str:
        return "|" + "|".join(f" {cell} " if str(cell) else " " for cell in cells) + "|"

    header = list(header)
    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])
