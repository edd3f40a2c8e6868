"""``fit`` made fast and large: compiled, in bfloat16, on two processes, with data that stay on disk."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import iflow_lib as ifl
from iflow_lib.objectives.x0_regression import AnchorStore
from iflow_lib.training.compile import Threads
from iflow_lib.training.distributed import Team
from iflow_lib.utils import Compiled

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import sys, torch, iflow_lib as ifl
out, steps = sys.argv[1], int(sys.argv[2])
if steps < 50:  # stop early, as a signal would
    import os, signal
    from iflow_lib.training import _Loop
    step = _Loop.one_step
    def one_step(self):
        step(self)
        if self.step == steps: os.kill(os.getpid(), signal.SIGTERM)
    _Loop.one_step = one_step
for objective in ifl.X0Regression("per_example"), ifl.IntegralIdentity():
    torch.manual_seed(0)
    anchored = objective.name == "X0Regression"
    model = ifl.FlowMap(ifl.MLP(dim=2, hidden=32, layers=2, anchor=anchored), ifl.PoissonFlow())
    config = ifl.TrainConfig(steps=50, batch_size=64, device="cpu", log_every=1, progress=False,
                             out_dir=f"{out}/{objective.name}", checkpoint_every=20)
    ifl.fit(model, objective, ifl.data.load("eight_gaussians", 1001), config, resume="auto")
    if steps < 50: break
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def train(tmp_path, out: str, processes: int, steps: int = 50) -> dict:
    """{objective: (its history, its folder)} after ``steps`` steps of 50; of the first alone if it stops early."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    start = (
        [sys.executable]
        if processes == 1
        else [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
    )
    done = subprocess.run(
        [*start, str(script), str(tmp_path / out), str(steps)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        folder.name: (pd.read_csv(folder / "history.csv"), folder)
        for folder in (tmp_path / out).iterdir()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"), "one", 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return train(tmp_path_factory.mktemp("together"), "two", 2)


@linux
@pytest.mark.parametrize("name", ["IntegralIdentity", "X0Regression"])
def test_two_processes_give_the_run_of_one(alone, together, name):
    (one, alone), (two, both) = alone[name], together[name]
    assert list(one.step) == list(two.step) == list(range(1, 51))
    assert (two.loss / one.loss - 1).abs().max() < 1e-4
    assert json.loads((both / "manifest.json").read_text())["processes"] == 2
    if name == "X0Regression":
        a, b = (
            np.load(folder / "checkpoints" / "step-00000050" / "anchors.npy")
            for folder in (alone, both)
        )
        assert a.shape == b.shape == (1001, 2) and np.abs(a - b).max() < 1e-4
        shares = [AnchorStore(both / f"anchors-{rank}", Team(rank, 2)) for rank in (0, 1)]
        assert [len(store.rows) for store in shares] == [501, 500]  # nobody holds it all


@linux
def test_a_run_of_two_processes_ends_together_and_goes_on_with_one(tmp_path, alone):
    half, _ = train(tmp_path, "run", 2, steps=25)["X0Regression"]
    assert list(half.step) == list(range(1, 31))  # they agree on when to stop every ten steps
    (rest, _), (whole, _) = train(tmp_path, "run", 1)["X0Regression"], alone["X0Regression"]
    assert (rest.loss / whole.loss - 1).abs().max() < 1e-4


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(Team, "assemble", classmethod(lambda cls, device: Team(0, 3)))
    with pytest.raises(ValueError, match="batch_size 64 does not divide by the 3 processes"):
        fit()

    class Own(ifl.FlowMatching):
        def __call__(self, model, batch, generator=None):
            return super().__call__(model, batch, generator)

    monkeypatch.setattr(Team, "assemble", classmethod(lambda cls, device: Team(0, 2)))
    with pytest.raises(ValueError, match="Own has a __call__ of its own"):
        fit(Own())


def fit(objective=None, steps=20, net=None, data=None, **settings):
    torch.manual_seed(0)
    model = ifl.FlowMap(net() if net else ifl.MLP(dim=2, hidden=32, layers=2), ifl.RectifiedFlow())
    config = ifl.TrainConfig(
        steps=steps, batch_size=64, device="cpu", log_every=1, progress=False, **settings
    )
    data = ifl.data.load("eight_gaussians", 1000) if data is None else data
    return ifl.fit(model, objective or ifl.IntegralIdentity(), data, config)


@linux
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which torch.compile calls")
@pytest.mark.filterwarnings("error:going on without torch.compile")
def test_compiled_training_and_sampling_are_the_same():
    """Of a U-Net with its forward derivative, the hardest to trace, in one piece: a graph that breaks is eager in part."""
    counters = torch._dynamo.utils.counters
    objective, data = (
        ifl.IntegralIdentity(derivative="jvp"),
        torch.randn(100, 1, 8, 8, generator=torch.Generator()),
    )
    both = {
        "steps": 8,
        "net": lambda: ifl.UNet(channels=1, size=8, width=8, blocks=1),
        "data": data,
    }
    counters.clear()
    fast = fit(objective, compile="graphs", **both)  # on a CPU, as True
    out = ifl.sample(fast.model, 50).x
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    eager = fit(objective, **both)
    assert fast.manifest["compiled"] == "graphs" and not eager.manifest["compiled"]
    assert np.allclose(eager.history.loss, fast.history.loss, rtol=1e-4)
    assert torch.allclose(out, ifl.sample(eager.model, 50).x, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_where_compiling_fails_training_goes_on_and_says_so(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here\nand a long story")

    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile(f, backend=refuse, **options)
    )
    with pytest.warns(RuntimeWarning, match="going on without torch.compile") as said:
        fast = fit(compile=True)
    ours = [str(w.message) for w in said if "torch.compile" in str(w.message)]
    assert len(ours) == 1 and "\n" not in ours[0]
    assert fast.history.equals(fit().history.assign(seconds=fast.history.seconds))
    fast.model.compile()
    with pytest.warns(RuntimeWarning, match="going on without torch.compile"):
        out = ifl.sample(fast.model, 10)
    assert torch.equal(out.x, ifl.sample(copy.deepcopy(fast.model), 10).x)


def test_clipping_can_be_left_out():
    free, clipped = (fit(steps=5, clip=clip) for clip in (None, 1e-3))
    assert (
        free.history.loss[0] == clipped.history.loss[0]
        and free.history.loss[4] != clipped.history.loss[4]
    )


def test_an_error_of_the_function_stays_an_error():
    def wrong(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Compiled(wrong)(torch.zeros(1))


def test_bfloat16_learns_the_same():
    plain, half = fit(steps=200), fit(steps=200, precision="bfloat16")
    assert half.model.net.out.weight.dtype == torch.float32
    assert not plain.history.loss.equals(half.history.loss)
    assert abs(plain.history.loss[100:].mean() / half.history.loss[100:].mean() - 1) < 0.02


def test_threads_are_few_for_a_small_network_and_given_back():
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Threads(0, work=1000):
            assert torch.get_num_threads() == 1
        with Threads(0, work=1 << 40):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(own)


@pytest.mark.parametrize(
    "wrong", [{"compile": "yes"}, {"precision": "float16"}, {"threads": -1}, {"threads": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ifl.TrainConfig(steps=1, **wrong)


MEASURE = """
import sys, numpy as np, torch, iflow_lib as ifl
file, out = sys.argv[1:]
model = ifl.FlowMap(ifl.MLP(dim=64, hidden=32, layers=2, anchor=True), ifl.RectifiedFlow())
config = ifl.TrainConfig(steps=300, batch_size=512, device="cpu", progress=False, out_dir=out)
ifl.fit(model, ifl.X0Regression("per_example"), np.load(file, mmap_mode="c"), config)
status = open("/proc/self/status").read()  # not getrusage, which knows the parent's memory too
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@linux
def test_memory_of_anchored_training_does_not_grow_with_the_data(tmp_path):
    peaks = []
    for examples in (10_000, 1_000_000):
        file = tmp_path / f"{examples}.npy"
        rows = np.lib.format.open_memmap(file, mode="w+", dtype="float32", shape=(examples, 64))
        for start in range(0, examples, 10_000):
            rows[start : start + 10_000] = np.random.default_rng(start).standard_normal(
                (10_000, 64), dtype="float32"
            )
        del rows
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(file), str(tmp_path / f"run-{examples}")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(float(done.stdout.split()[-1]))
    print(f"peak memory: {peaks[0]:.0f} MB with 10,000 examples, {peaks[1]:.0f} MB with 1,000,000")
    assert peaks[1] - peaks[0] < 100
