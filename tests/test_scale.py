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
from safetensors.torch import load_file
from together import train
from torch import nn

import iflow_lib as ifl
from iflow_lib.training.batches import Batches
from iflow_lib.training.checkpoints import RunFolder
from iflow_lib.training.distributed import Processes
from iflow_lib.training.runtime import limited_threads
from iflow_lib.utils import Compiled

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def torchrun(out: Path, *arguments: str) -> None:
    """Two processes of ``together.py``."""
    command = "-m torch.distributed.run --standalone --nproc_per_node 2 tests/together.py".split()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *command, str(out), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        # gloo's own threads abort a process now and then while it leaves, when all is written
        if "terminate called without an active exception" not in done.stderr:
            break
        shutil.rmtree(out)
        out.mkdir()
    assert done.returncode == 0, done.stderr[-3000:]


def results(out: Path, name: str):
    """History and last checkpoint of a run."""
    newest = RunFolder(out / name).checkpoints()[0]
    return pd.read_csv(out / name / "history.csv"), load_file(newest / "state.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    train(folder := tmp_path_factory.mktemp("alone"))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    torchrun(folder := tmp_path_factory.mktemp("two"), "30", "faults")
    return folder


@linux
@pytest.mark.parametrize("name", ["IntegralIdentity", "X0Regression"])
def test_two_processes_give_the_run_of_one(alone, two, name):
    (one, a), (both, b) = results(alone, name), results(two, name)
    assert list(one.step) == list(both.step) == list(range(1, 31))
    assert (both.loss / one.loss - 1).abs().max() < 1e-4
    assert json.loads((two / name / "manifest.json").read_text())["processes"] == 2
    assert a.keys() == b.keys()
    if name == "X0Regression":
        estimates = [k for k in a if k.startswith("objective.")]
        assert a[estimates[0]].shape == (1001, 2)
        assert all((a[k] - b[k]).abs().max() < 1e-4 for k in estimates)
    assert [len(s["rng.cpu"]) for s in (a, b)] == [1, 2]  # each process has its own dropout
    assert not torch.equal(*b["rng.cpu"]) and torch.equal(a["rng.cpu"][0], b["rng.cpu"][0])


@linux
def test_what_fails_in_one_process_ends_both_with_the_same_words(two):
    """Otherwise the other one would wait for it, until torchrun kills it."""
    first, second = ((two / f"said-{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(first) == 5
    assert f"cannot write to {two}/file" in first[0]
    assert "step 20 could not be written: No space left on device" in first[1]
    assert "step-00000010" in first[1]
    assert "a process cannot read" in first[2] and "all of them see" in first[2]
    assert first[3] == "20 steps" and "1 NaN or infinite" in first[4]


@linux
@pytest.mark.long
def test_a_run_of_two_processes_ends_together_and_goes_on_with_one(tmp_path, alone):
    torchrun(tmp_path, "15")
    half, _ = results(tmp_path, "X0Regression")
    assert list(half.step) == list(range(1, 21))  # they agree on when to stop every ten steps
    train(tmp_path)
    for name in ("X0Regression", "IntegralIdentity"):
        rest, whole = (results(folder, name)[0] for folder in (tmp_path, alone))
        assert (rest.loss / whole.loss - 1).abs().max() < 1e-4


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(Processes, "join", classmethod(lambda cls, device: Processes(0, 3)))
    with pytest.raises(ValueError, match="batch_size 64 does not divide by the 3 processes"):
        fit()

    class Own(ifl.FlowMatching):
        def __call__(self, model, batch, generator=None):
            return super().__call__(model, batch, generator)

    monkeypatch.setattr(Processes, "join", classmethod(lambda cls, device: Processes(0, 2)))
    with pytest.raises(ValueError, match="Own has a __call__ of its own"):
        fit(Own())


def test_what_the_first_process_alone_does_is_told_to_all():
    """One process: the call itself, its result and its error."""
    assert Processes().on_first(lambda: 3) == 3
    with pytest.raises(KeyError, match="mine"):
        Processes().on_first(lambda: {}["mine"])


def fit(objective=None, steps=20, net=None, data=None, **settings):
    torch.manual_seed(0)
    model = ifl.FlowMap(net() if net else ifl.MLP(dim=2, hidden=32, layers=2), ifl.RectifiedFlow())
    config = ifl.TrainConfig(
        steps=steps, batch_size=64, device="cpu", log_every=1, progress=False, **settings
    )
    data = ifl.data.load("eight_gaussians", 1000) if data is None else data
    return ifl.fit(model, objective or ifl.IntegralIdentity(), data, config)


SMALL = (
    lambda: ifl.MLP(dim=2, hidden=8, layers=1),
    torch.randn(100, 2, generator=torch.Generator()),
)
#: The hardest to trace
UNET = (
    lambda: ifl.UNet(channels=1, size=8, width=8, blocks=1),
    torch.randn(100, 1, 8, 8, generator=torch.Generator()),
)


@linux
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which torch.compile calls")
@pytest.mark.filterwarnings("error:going on without torch.compile")
@pytest.mark.parametrize(
    "objective, net, data",
    [
        (ifl.IntegralIdentity(derivative="jvp"), *SMALL),
        pytest.param(ifl.IntegralIdentity(derivative="jvp"), *UNET, marks=pytest.mark.long),
        pytest.param(
            ifl.IntegralIdentity(gap=("geometric", 1, 0.1)), *SMALL, marks=pytest.mark.long
        ),
        pytest.param(ifl.TerminalVelocity(derivative="jvp"), *SMALL, marks=pytest.mark.long),
        pytest.param(ifl.TerminalVelocity(derivative="difference"), *SMALL, marks=pytest.mark.long),
        pytest.param(
            ifl.EnergyMatching(ifl.IntegralIdentity(gap=0.1), space="whitened", calls=(1, 2)),
            *SMALL,
            marks=pytest.mark.long,
        ),
        pytest.param(
            ifl.EnergyMatching(ifl.IntegralIdentity(gap=0.1), space="random"),
            *UNET,
            marks=pytest.mark.long,
        ),
    ],
    ids=[
        "MLP",
        "UNet",
        "gap",
        "terminal velocity, jvp",
        "terminal velocity, difference",
        "energy matching",
        "energy matching, UNet",
    ],
)
def test_compiled_training_and_sampling_are_the_same(objective, net, data):
    """In one piece, with the forward derivative too: a graph that breaks is eager in part."""
    torch._dynamo.reset()  # of what another of these has compiled
    counters = torch._dynamo.utils.counters
    both = {"steps": 8, "net": net, "data": data}
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


class Dropout(nn.Module):
    data_shape = (2,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x, t, s):
        return self.layers(torch.cat([x, t[:, None], s[:, None]], 1))


def test_a_network_that_draws_is_not_compiled():
    with pytest.warns(
        RuntimeWarning, match="without torch.compile: .* with the network Dropout"
    ) as said:
        asked = fit(steps=2, net=Dropout, compile=True)
    ours = [str(w.message) for w in said if "torch.compile" in str(w.message)]
    assert len(ours) == 1 and "\n" not in ours[0] and asked.manifest["compiled"] is False
    assert asked.history.loss.equals(fit(steps=2, net=Dropout).history.loss)


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


class BackendCompilerFailed(RuntimeError):
    """As torch wraps what its compiler raised."""

    __module__ = "torch._dynamo.exc"

    def __init__(self, inner):
        super().__init__(f"backend raised: {inner}")
        self.inner_exception = inner


@pytest.mark.filterwarnings("ignore:going on without torch.compile")
def test_forward_mode_goes_on_after_a_compiler_that_broke_off_within_it():
    """torch (2.11 to 2.14 at least) compiles no jvp of a linear layer at a part of a batch, and leaves forward mode on."""
    layer = nn.Linear(3, 4)

    def rate(x, v):
        return torch.func.jvp(layer, (x[:4],), (v,))[1]

    x, v = torch.randn(8, 6, 3), torch.randn(4, 6, 3)
    expected = v @ layer.weight.T
    assert torch.allclose(Compiled(rate, backend="aot_eager")(x, v), expected, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        pass
    assert torch.allclose(rate(x, v), expected, atol=1e-6)


@pytest.mark.filterwarnings("error:going on without torch.compile")
def test_forward_mode_through_a_transformer_is_compiled():
    """Points of pairs are a part of the batch, and linear layers of three axes were not compiled there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ifl.Transformer(length=4, channels=2, width=16, layers=1, heads=2)
        nn.init.normal_(net.out.weight)
    model = ifl.FlowMap(net, ifl.RectifiedFlow())
    objective = ifl.IntegralIdentity(derivative="jvp")
    x, z = torch.randn(2, 8, 4, 2)
    t, s = torch.linspace(0.1, 0.9, 8), torch.linspace(0, 0.4, 4)

    def loss(x, z):
        return objective.loss(model, x, z, t, s, None)[0]

    expected = loss(x, z)
    assert torch.allclose(Compiled(loss, backend="aot_eager")(x, z), expected, rtol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        BackendCompilerFailed(torch.OutOfMemoryError("CUDA out of memory")),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("the size of tensor a must match"),
    ],
    ids=lambda e: f"{type(e).__name__}: {e}",
)
def test_only_the_compiler_turns_compiling_off(monkeypatch, error):
    """The function alone would work here, as it may when it takes less memory: still it is asked again next time."""
    calls = []

    def sometimes(function, **options):
        def compiled(x):
            calls.append(x)
            if len(calls) == 2:
                raise error
            return function(x)

        return compiled

    monkeypatch.setattr(torch, "compile", sometimes)
    double = Compiled(lambda x: 2 * x)
    assert double(1) == 2
    with pytest.raises(type(error)):
        double(2)
    assert double(3) == 6 and calls == [1, 2, 3]


def test_a_compiler_that_fails_is_not_asked_again(monkeypatch):
    calls = []

    def fails(function, **options):
        def compiled(x):
            calls.append(x)
            raise BackendCompilerFailed(RuntimeError("no compiler here"))

        return compiled

    monkeypatch.setattr(torch, "compile", fails)
    double = Compiled(lambda x: 2 * x)
    with pytest.warns(RuntimeWarning, match="going on without torch.compile"):
        assert double(1) == 2
    assert double(2) == 4 and calls == [1]


@pytest.mark.parametrize("gap, apart", [(None, 0.02), (0.02, 0.15)])
def test_bfloat16_learns_the_same(gap, apart):
    """A gap of 0.02 multiplies the rounding of its two calls by 50: noise in the target, which the loss shows."""
    objective = ifl.IntegralIdentity(gap=gap)
    plain, half = (fit(objective, 200, precision=one) for one in ("float32", "bfloat16"))
    assert half.model.net.out.weight.dtype == torch.float32
    assert not plain.history.loss.equals(half.history.loss)
    assert abs(plain.history.loss[100:].mean() / half.history.loss[100:].mean() - 1) < apart


def test_threads_are_few_for_a_small_network_and_given_back():
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with limited_threads(0, work=1000):
            assert torch.get_num_threads() == 1
        with limited_threads(0, work=1 << 40):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(own)


def test_data_are_read_only_as_far_as_they_must_be(tmp_path, monkeypatch):
    """Without a folder nothing is hashed; with one, the first process does it; a mapped file stays where it is."""
    asked = []
    monkeypatch.setattr(
        ifl.data.TensorData, "fingerprint", property(lambda data: asked.append(data) or "0" * 64)
    )
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32))
    data = np.load(file, mmap_mode="c")
    run = fit(steps=2, data=data)
    assert not asked and "sha256" not in run.manifest["data"]
    run = fit(steps=2, data=data, out_dir=tmp_path / "run")
    assert len(asked) == 1 and run.manifest["data"]["sha256"] == "0" * 64
    dataset = ifl.data.as_dataset(data)
    model = ifl.FlowMap(ifl.MLP(dim=2, hidden=8, layers=1), ifl.RectifiedFlow())
    batches = Batches(dataset, model, ifl.TrainConfig(steps=1, batch_size=8), Processes())
    assert batches.x.data_ptr() == data.ctypes.data
    share = Processes(1, 2).shard(batches.x)
    assert len(share) == 250 and share.data_ptr() == data[1:].ctypes.data


MEASURE = """
import sys, numpy as np, torch, iflow_lib as ifl
file, out = sys.argv[1:]
model = ifl.FlowMap(ifl.MLP(dim=64, hidden=32, layers=2), ifl.RectifiedFlow())
config = ifl.TrainConfig(steps=300, batch_size=512, device="cpu", progress=False, out_dir=out)
ifl.fit(model, ifl.IntegralIdentity(), np.load(file, mmap_mode="c"), config)
status = open("/proc/self/status").read()  # not getrusage, which knows the parent's memory too
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@linux
@pytest.mark.long
def test_memory_of_training_does_not_grow_with_data_in_a_file(tmp_path):
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
