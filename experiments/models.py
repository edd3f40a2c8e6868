"""The models that ship: ``python -m experiments.models [SYSTEM ...]`` trains those that are missing.

Without a name all that ship are meant, ``IMAGE_MODELS`` and ``PLANE_MODELS``; others can be named, such as
emoji_rectified_integral. Each is written with a card that says what it is and how good, into a folder of its name below
--folder (results/reference/checkpoints). An integral of images has the velocity model beside it as its teacher, or if there
is none the one that ships, and two stages (docs/findings.md). On a CPU core an image model takes half an hour to an hour
and a half, one in the plane a minute or two; ``--device cuda`` uses a GPU.

Killed or interrupted, the next call continues: checkpoints are kept beside a model's folder until it is done.
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd
import torch

from experiments.common import CHECKPOINTS, IMAGE_MODELS, PLANE_MODELS, finished, markdown, system
from iflow_lib import data as data_sets
from iflow_lib import zoo
from iflow_lib.model import FlowMap

WHAT = {
    "fashion_mnist": "Fashion-MNIST, 28x28: {n:,} training images (the vendored subset, MIT licence, Zalando SE)",
    "emoji": "emoji, 32x32 in colour: {n:,} training images (Noto Emoji, Apache License 2.0, Google)",
}


def train(
    system: zoo.System,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    second_stage: bool = True,
    device: str = "auto",
    progress: bool = True,
) -> FlowMap:
    """Train a system and save it, with its card, into the folder of its name in ``folder``.

    steps: by default ``System.steps``; the second stage of an integral of images takes ``last_steps`` of them more.
    """
    settings = {"seed": seed, "device": device, "progress": progress}
    integral = system.of_images and system.kind == "integral"
    steps, last = steps or system.steps, checkpoints_of(system, folder, 2)
    if not (integral and second_stage and last.is_dir()):
        first = checkpoints_of(system, folder, 1)
        teacher = teacher_of(system, folder) if integral else None
        run = finished(zoo.train(system, steps=steps, teacher=teacher, out_dir=first, **settings))
        save(run.model, system, run.manifest, folder)
        if integral and second_stage:
            last.mkdir()  # before the first goes: killed here, the next call finishes and does not begin anew
        shutil.rmtree(first)
        if not (integral and second_stage):
            return run.model
    return finish(system, folder, steps=last_steps(steps), **settings)


def last_steps(steps: int) -> int:
    """Steps of the second stage of an integral of images."""
    return max(steps // 30, 1)


def finish(
    system: zoo.System,
    folder: Path,
    *,
    seed: int = 0,
    steps: int = zoo.FINISH_STEPS,
    device: str = "auto",
    progress: bool = True,
) -> FlowMap:
    """Do the second stage of a saved integral of images, and put the result in its place.

    Its manifest keeps the earlier one as "before". ValueError for a model that is finished already, or has no such stage.
    """
    before, out_dir = zoo.training_manifest(system, folder), checkpoints_of(system, folder, 2)
    if "before" in before and not out_dir.is_dir():
        raise ValueError(f"{folder / system.name} is finished already")
    if "before" in before:  # killed as it was saved
        shutil.rmtree(out_dir)
        return zoo.pretrained(system, folder)
    shutil.rmtree(checkpoints_of(system, folder, 1), ignore_errors=True)
    model, teacher = zoo.pretrained(system, folder), teacher_of(system, folder)
    settings = {"seed": seed, "device": device, "progress": progress, "out_dir": out_dir}
    run = finished(zoo.finish(system, model, teacher, steps, **settings))
    both = {name: before[name] + run.manifest[name] for name in ("steps_done", "seconds")}
    save(run.model, system, run.manifest | both | {"before": before}, folder)
    shutil.rmtree(out_dir)
    return run.model


def teacher_of(system: zoo.System, folder: Path) -> FlowMap:
    """The velocity model beside an integral, or if there is none the shipped one."""
    teacher = zoo.System(system.path, "velocity", system.data)
    return zoo.pretrained(teacher, folder if (folder / teacher.name).is_dir() else CHECKPOINTS)


def checkpoints_of(system: zoo.System, folder: Path, stage: int) -> Path:
    """Where checkpoints of a stage are, beside the folder of the model."""
    return folder / f"{system.name}-stage{stage}-in-training"


def save(model: FlowMap, system: zoo.System, manifest: dict, folder: Path) -> None:
    """Measure a trained model and save it, weights as float16, with its card."""
    manifest = manifest | {"config": manifest["config"] | {"out_dir": ""}}
    what = {"system": system.name, "manifest": manifest}
    text = card(model, system, manifest)
    model.save_pretrained(folder / system.name, card=text, dtype=torch.float16, **what)


def card(model: FlowMap, system: zoo.System, manifest: dict) -> str:
    """Say what a model is, how it was trained and how good it is."""
    n, config = manifest["data"]["shape"][0], manifest["config"]
    if system.of_images:
        what = WHAT[system.data].format(n=n)
        rows = zoo.evaluate(model, system, manifest, nfes=(1, 2, 4, 50))
        images = data_sets.load(system.data).x
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        floor = zoo.image_distances(system.data, images[chosen[: zoo.POINTS]])
        against = (
            "the test images, by `iflow_lib.zoo.image_distances`; none is the Inception FID or KID"
        )
    else:
        what = f"{system.data.replace('_', ' ')}, in the plane: {n:,} points"
        rows = zoo.evaluate(model, system, manifest, nfes=(1, 2, 8), draws=3)
        real = pd.DataFrame(zoo.floor_rows(system.data, draws=3))
        floor = real.groupby("metric", sort=False).value.mean().to_dict()
        against = "fresh points, means of three draws"
    floors = ", ".join(f"{name} {value:.4f}" for name, value in floor.items())
    values = [[r["method"], r["nfe"], r["metric"], f"{r['value']:.3f}"] for r in rows]
    return f"""# {system.name}

Path {manifest["path"]["name"]}, trained with `{manifest["objective"]["name"]}`. Made for teaching and comparison.

- Data: {what}.
- Network: {manifest["network"]["name"]}, {manifest["network"]["parameters"]:,} parameters, stored as float16.
- Training: {manifest["steps_done"]:,} steps of batch {config["batch_size"]}, seed {config["seed"]}, {manifest["seconds"]:.0f} seconds
  of wall clock on {manifest["hardware"]}.
- Objective: `{manifest["objective"]}`
- Use: `iflow_lib.zoo.pretrained("{system.name}", FOLDER)`.

Measured on {zoo.POINTS:,} samples against {against} (floor, real against real: {floors}).

{markdown(["method", "nfe", "metric", "value"], values)}
"""


def main(arguments=None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "systems", nargs="*", type=system, metavar="SYSTEM", help="default: all that ship"
    )
    options.add_argument("--folder", type=Path, default=CHECKPOINTS, help="of the models")
    options.add_argument("--steps", type=int, help="gradient steps, in place of the usual number")
    options.add_argument("--device", default="auto")
    given = options.parse_args(arguments)
    for one in given.systems or map(system, (*IMAGE_MODELS, *PLANE_MODELS)):
        if not complete(one, given.folder):
            train(one, given.folder, steps=given.steps, device=given.device)
        print(f"{one.name} is there", flush=True)


def complete(system: zoo.System, folder: Path) -> bool:
    """Whether a model is saved, and its training over."""
    stages = (checkpoints_of(system, folder, stage) for stage in (1, 2))
    return (folder / system.name).is_dir() and not any(s.is_dir() for s in stages)


if __name__ == "__main__":
    main()
