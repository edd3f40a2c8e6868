"""Runs for tests/test_scale.py, test_coupling.py and test_callbacks.py, in one process or, as a script, under
torchrun: ``together.py FOLDER STEPS [faults] [coupling] [callbacks]``."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

import iflow_lib as ifl
from iflow_lib.data import mapped
from iflow_lib.training import checkpoints
from iflow_lib.training.loop import Trainer


def train(out, steps: int = 30, coupling: str = "independent") -> None:
    """Two runs of 30 steps; with fewer steps the first alone, which stops there as a signal would have it."""
    if steps < 30:
        step = Trainer.one_step

        def one_step(self):
            step(self)
            if self.step == steps:
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer.one_step = one_step
    for objective in (ifl.X0Regression("per_example"), ifl.IntegralIdentity()):
        torch.manual_seed(0)
        net = ifl.MLP(dim=2, hidden=32, layers=2, anchor=objective.name == "X0Regression")
        config = ifl.TrainConfig(
            steps=30,
            batch_size=64,
            device="cpu",
            log_every=1,
            progress=False,
            out_dir=f"{out}/{objective.name}",
            checkpoint_every=20,
            coupling=coupling,
        )
        data = ifl.data.load("eight_gaussians", 1001)
        ifl.fit(ifl.FlowMap(net, ifl.PoissonFlow()), objective, data, config, resume="auto")
        if steps < 30:
            break


class Enough(ifl.Callback):
    """Ends a run after 33 steps."""

    def after_step(self, training):
        if training.step == 33:
            training.stop("it is enough")


class Broken(ifl.Callback):
    """Fails in the first process alone."""

    def log(self, step, values):
        raise OSError("no room")


def watched(out) -> dict:
    """A run with callbacks that ends early, and one that fails; what this process says of both."""

    def run(folder, *callbacks):
        torch.manual_seed(0)
        model = ifl.FlowMap(ifl.MLP(dim=2, hidden=16, layers=2), ifl.RectifiedFlow())
        config = ifl.TrainConfig(
            steps=50,
            batch_size=64,
            device="cpu",
            log_every=10,
            progress=False,
            out_dir=f"{out}/{folder}",
            callbacks=callbacks,
        )
        data = ifl.data.load("eight_gaussians", 1001)
        return ifl.fit(model, ifl.FlowMatching(), data, config)

    test = ifl.data.load("eight_gaussians", 200, "test")
    done = run("run", ifl.Validation(test, every=10, n=200), ifl.TensorBoard(), Enough())
    try:
        run("broken", Broken())
        error = "no error"
    except RuntimeError as found:
        error = str(found)
    weights = [float(w.double().sum()) for w in done.model.parameters()]
    found = {"stopped": done.manifest["stopped"], "steps": done.manifest["steps_done"]}
    return {**found, "error": error, "weights": weights}


def faults(out: Path) -> list[str]:
    """What this process says of each thing that goes wrong in one process alone."""
    said, rank = [], int(os.environ["RANK"])

    def run(data=None, **settings):
        torch.manual_seed(0)
        model = ifl.FlowMap(ifl.MLP(dim=2, hidden=8, layers=1), ifl.RectifiedFlow())
        if data is None:
            data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        config = ifl.TrainConfig(steps=20, batch_size=8, device="cpu", progress=False, **settings)
        return ifl.fit(model, ifl.FlowMatching(), data, config, resume="auto")

    def expect(kind, **given):
        try:
            run(**given)
            said.append("no error")
        except kind as error:
            said.append(str(error))

    # the first process cannot write: there is no such folder, then no room for the second checkpoint
    (out / "file").touch()
    expect(OSError, out_dir=out / "file")
    digest, read = checkpoints.file_sha256, checkpoints._read

    def no_room(file):
        if ".step-00000020" in str(file):
            raise OSError(28, "No space left on device")
        return digest(file)

    checkpoints.file_sha256 = no_room
    expect(OSError, out_dir=out / "run", checkpoint_every=10)
    checkpoints.file_sha256 = digest
    # the second one cannot read the folder
    if rank == 1:
        checkpoints._read = no_such_folder
    expect(OSError, out_dir=out / "run", checkpoint_every=10)
    checkpoints._read = read
    said.append(f"{run(out_dir=out / 'run', checkpoint_every=10).manifest['steps_done']} steps")
    # there is a NaN in its share of a file so large that TensorData looks at some of its rows only
    bad = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    bad[1, 0] = np.nan
    np.save(file := out / f"bad-{rank}.npy", bad)
    mapped.FULL_READ_BYTES, mapped.spaced_rows.__defaults__ = 100, (2, None)
    expect(ValueError, data=np.load(file, mmap_mode="c"))
    return said


def no_such_folder(folder):
    raise OSError("not here")


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    if "callbacks" in sys.argv:
        (folder / f"said-{os.environ['RANK']}").write_text(json.dumps(watched(folder)))
        sys.exit()
    train(folder, number, "ot" if "coupling" in sys.argv else "independent")
    if "faults" in sys.argv:
        text = "\n".join(faults(folder))
        (folder / f"said-{os.environ['RANK']}").write_text(text)
