"""What must hold on a GPU, as plain functions of a device.

``experiments.gpu`` runs them without pytest, ``pytest -m cuda`` runs them from tests/test_cuda.py. Each raises AssertionError
where something does not hold, ``Skip`` where this device cannot show it, and may return a few words on what it measured. Those
that mean something on a CPU as well run there in ``make test`` (tests/test_gpu.py).
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn

import iflow_lib as ifl
from experiments.common import ROOT
from experiments.contenders import lively, trainer_of
from experiments.gpu_table import Skip
from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.training.runtime import autocast

PATHS = {
    "rectified": ifl.RectifiedFlow,
    "VP": ifl.VariancePreserving,
    "VE": ifl.VarianceExploding,
    "PFGM++": functools.partial(ifl.PoissonFlow, aug_dim=8),
}
#: What a run of deterministic algorithms asks for on CUDA, before the first matrix product.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@dataclass(frozen=True)
class Check:
    """A check and what it needs.

    run: takes a device. seconds: what it takes on a GPU, about. cpu: whether it means something on a CPU.
    """

    run: Callable[[torch.device], str | None]
    seconds: float = 3.0
    cpu: bool = True


#: Every check by name, in the order in which they are run.
CHECKS: dict[str, Check] = {}


def check(name: str, seconds: float = 3.0, cpu: bool = True):
    """Add a function to CHECKS."""

    def add(function):
        CHECKS[name] = Check(function, seconds, cpu)
        return function

    return add


# ------------------------------------------------------------------ what the checks are made of
def mlp(path: ifl.Path | None = None, **options) -> ifl.FlowMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ifl.MLP(**{"dim": 2, "hidden": 32, "layers": 2} | options)
    return ifl.FlowMap(lively(net), path or ifl.RectifiedFlow())


def unet(path: ifl.Path | None = None, **options) -> ifl.FlowMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ifl.UNet(**{"channels": 3, "size": 16, "width": 16, "blocks": 1} | options)
    return ifl.FlowMap(lively(net), path or ifl.RectifiedFlow())


def transformer(path: ifl.Path | None = None) -> ifl.FlowMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ifl.Transformer(length=8, channels=3, width=32, layers=2, heads=4)
    return ifl.FlowMap(lively(net), path or ifl.RectifiedFlow())


#: name -> (objective, made for a maker of models; whether its network takes an anchor)
OBJECTIVES: dict[str, tuple[Callable, bool]] = {
    "FlowMatching": (lambda make: ifl.FlowMatching(), False),
    "IntegralIdentity, jvp": (lambda make: ifl.IntegralIdentity(derivative="jvp"), False),
    "IntegralIdentity, difference": (
        lambda make: ifl.IntegralIdentity(derivative="difference"),
        False,
    ),
    "IntegralIdentity, self": (
        lambda make: ifl.IntegralIdentity(derivative="jvp", anchor="self"),
        True,
    ),
    "IntegralIdentity, gap": (lambda make: ifl.IntegralIdentity(gap=0.1), False),
    "IntegralAdditivity": (lambda make: ifl.IntegralAdditivity(), False),
    "TerminalVelocity": (lambda make: ifl.TerminalVelocity(derivative="jvp"), False),
    "FlowMapDistillation": (
        lambda make: ifl.FlowMapDistillation(teacher=make(), derivative="jvp"),
        False,
    ),
    "EnergyMatching": (
        lambda make: ifl.EnergyMatching(ifl.IntegralIdentity(gap=0.1), space="random"),
        False,
    ),
    "ConsistencyTraining": (lambda make: ifl.ConsistencyTraining(), False),
    "Distillation": (lambda make: ifl.Distillation(), False),
    "X0Regression": (lambda make: ifl.X0Regression(), False),
    "X0Regression, shared": (lambda make: ifl.X0Regression("shared"), True),
    "X0Regression, per_example": (lambda make: ifl.X0Regression("per_example"), True),
}


def some(name: str, make=mlp) -> tuple[ifl.FlowMap, ifl.Objective]:
    """A model and an objective of OBJECTIVES."""
    objective, anchored = OBJECTIVES[name]
    return make(anchor=True) if anchored else make(), objective(make)


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if device.type == "mps" else (torch.float32, torch.float64)


def precise(dtype: torch.dtype) -> float:
    """A relative tolerance that leaves room for another order of additions."""
    return 1e-4 if dtype == torch.float32 else 1e-9


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """TF32 within a ``with`` block: on for "tf32", as torch sets it for "default", off for any other name."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if precision != "default":
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def no_fallback() -> Iterator[None]:
    """What ``fit`` would go on without and warn, a compiler or forward mode that fails, is an error within the block."""
    with warnings.catch_warnings():
        for message in ("going on without", "forward mode cannot"):
            warnings.filterwarnings("error", message=message, category=RuntimeWarning)
        yield


@functools.cache
def compiler_fault(device: torch.device) -> str:
    """Why torch.compile works for nothing on this machine, such as a lack of triton or of a C compiler; empty if it works."""
    if device.type != "cuda":
        return ""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:
        why = (str(error).strip().splitlines() or ["no message"])[0][:200]
        return f"torch.compile does not work here: {type(error).__name__}: {why}"
    return ""


def needs_compiler(device: torch.device) -> None:
    """Raise Skip at once where each measurement would find out anew, after seconds of tracing."""
    if fault := compiler_fault(device):
        raise Skip(fault)


def same(mine: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    """Both are the same, elements relative to the largest one."""
    mine, theirs = mine.detach().cpu().double(), theirs.detach().cpu().double()
    apart = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    assert apart <= tolerance, f"{what}: {apart:.2g} apart, {tolerance:.2g} is allowed"


def on(device: torch.device, value):
    """A tensor on a device; anything else as it is."""
    return value.to(device) if isinstance(value, torch.Tensor) else value


def only_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise Skip("it is about CUDA")


# ------------------------------------------------------------------ numbers
@check("same seed, same noise")
def same_noise(device: torch.device) -> None:
    for name, make_path in PATHS.items():
        for make in (mlp, unet):
            here, there = (
                ifl.sample(make(make_path()), 300, 1, "map", 3, device=where, trajectory=True)
                for where in ("cpu", device)
            )
            assert torch.equal(here.trajectory[0], there.trajectory[0]), f"noise of {name}"


@check("samples are those of the CPU", seconds=6)
def same_samples(device: torch.device) -> None:
    with arithmetic("float32"):
        for name, make_path in PATHS.items():
            for make in (mlp, unet, transformer):
                for method, nfe in (("map", 1), ("map", 4), ("euler", 8), ("heun", 7)):
                    model = make(make_path())
                    here, there = (
                        ifl.sample(model, 40, nfe, method, 1, device=where).x
                        for where in ("cpu", device)
                    )
                    kind = type(model.net).__name__
                    same(there, here, 1e-4, f"{name}, {kind}, {method} at {nfe}")


@check("paths")
def paths(device: torch.device) -> None:
    """Clocks, the line, training times and the noise law."""
    functions = ("alpha", "sigma", "alpha_dot", "sigma_dot", "scale", "tau")
    for name, make_path in PATHS.items():
        path = make_path()
        t = torch.linspace(0.01, 1, 50, dtype=torch.float64) * path.t_max
        for dtype in dtypes(device):
            at = t.to(dtype).to(device)
            for function in functions:
                exact = getattr(path, function)(t.to(dtype).double())
                found = getattr(path, function)(at)
                assert found.device == at.device and found.dtype == dtype, f"{name}.{function}"
                same(found, exact, 10 * precise(dtype), f"{name}.{function}, {dtype}")
            same(path.time(path.tau(at)), t, 100 * precise(dtype), f"{name}.time, {dtype}")
            x = torch.linspace(-2, 2, 100, dtype=torch.float64).reshape(50, 2)
            back, _ = path.from_line(*path.to_line(x.to(dtype).to(device), at))
            same(back, x, 100 * precise(dtype), f"{name}, to the line and back, {dtype}")
        if device.type == "mps":
            continue  # which cannot draw all the noise laws
        middle = []
        for where in (torch.device("cpu"), device):
            generator = torch.Generator(where).manual_seed(0)
            z = path.noise((20_000, 2), generator=generator, device=where)
            times = path.sample_times(20_000, generator=generator, device=where)
            assert z.device.type == times.device.type == where.type, name
            assert bool(torch.isfinite(z).all()), name
            assert 0 <= float(times.min()) <= float(times.max()) <= path.t_max, name
            middle.append((float(z.abs().median()), float(path.tau(times).median())))
        for one, other in zip(*middle):
            assert abs(one - other) <= 0.03 * other, f"{name}: medians of draws are {middle}"


@check("closed forms")
def closed_forms(device: torch.device) -> None:
    """``iflow_lib.analytic``, which works in float64."""
    if torch.float64 not in dtypes(device):
        raise Skip("this device has no float64")
    points = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.2, -1.0]], dtype=torch.float64)
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)
    for name, make_path in PATHS.items():
        path = make_path()
        t = torch.linspace(0.3, 0.9, 10, dtype=torch.float64) * path.t_max
        laws = {
            "points": lambda where, path=path: MixtureFlow(path, points.to(where)),
            "mixture": lambda where, path=path: MixtureFlow(path, points.to(where), std=0.3),
        }
        if name != "PFGM++":
            laws["Gaussian"] = lambda where, path=path: GaussianFlow(
                path, points[0].to(where), cov.to(where)
            )
        for law, make in laws.items():
            here, there = make("cpu"), make(device)
            for what in ("velocity", "posterior_mean"):
                found = getattr(there, what)(x=x.to(device), t=t.to(device))
                assert found.device.type == device.type
                same(found, getattr(here, what)(x=x, t=t), 1e-9, f"{name}, {law}: {what}")
            if law == "Gaussian":
                moved = there.jump(x=x.to(device), t=t.to(device), s=t.to(device) / 2)
                same(moved, here.jump(x=x, t=t, s=t / 2), 1e-9, f"{name}, {law}: jump")


def loss_of(
    name: str, make, dtype: torch.dtype, device: torch.device, precision: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of an objective and its gradient, of the same drawn numbers on every device."""
    model, objective = some(name, make)
    cpu, n = torch.device("cpu"), 16
    x, z = torch.randn(2, n, *model.data_shape, generator=_seeded(1))
    noise = z if name == "Distillation" else None  # which takes pairs
    data, batch = ifl.data.TensorData(x), ifl.Batch(x, index=torch.arange(n), noise=noise)
    objective.prepare(model, data, device=cpu)
    drawn = objective.draw(model, batch, _seeded())
    floats = {
        k: v.to(dtype) if v is not None and v.is_floating_point() else v for k, v in drawn.items()
    }
    model = model.to(dtype).to(device).train()
    objective.prepare(model, data, device=device)
    if hasattr(objective, "teacher"):
        objective.frozen_teacher.to(dtype)
    with autocast(device, precision):
        loss, _ = objective.loss(model, **{k: on(device, v) for k, v in floats.items()})
    loss.backward()
    return loss.detach(), torch.cat([w.grad.flatten() for w in model.parameters()])


def _seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@check("objectives are those of the CPU", seconds=6)
def objectives(device: torch.device) -> None:
    """Losses and gradients, in float32 and, where it exists, float64."""
    for name in OBJECTIVES:
        for dtype in dtypes(device):
            with arithmetic("float32"):
                here = loss_of(name, mlp, dtype, torch.device("cpu"))
                there = loss_of(name, mlp, dtype, device)
            # a difference of calls 2e-3 apart multiplies their rounding by 500
            tolerance = precise(dtype) * (100 if "difference" in name else 1)
            same(there[0], here[0], tolerance, f"loss of {name}, {dtype}")
            same(there[1], here[1], 10 * tolerance, f"gradient of {name}, {dtype}")


@check("objectives on images", seconds=6)
def objectives_on_images(device: torch.device) -> None:
    for name in ("FlowMatching", "IntegralIdentity, jvp", "IntegralAdditivity"):
        with arithmetic("float32"):
            here = loss_of(name, unet, torch.float32, torch.device("cpu"))
            there = loss_of(name, unet, torch.float32, device)
        same(there[0], here[0], 1e-4, f"loss of {name}")
        same(there[1], here[1], 1e-3, f"gradient of {name}")


class Compared(ifl.IntegralIdentity):
    """Takes the central difference, and notes how far it is from the derivative."""

    def total_derivative(self, model, *given):
        found = super().total_derivative(model, *given)
        right = ifl.IntegralIdentity(derivative="jvp").total_derivative(model, *given)
        self.__dict__["apart"] = float((found - right).norm() / right.norm())
        return found


@check("the difference is the derivative")
def difference(device: torch.device) -> str:
    """In a step of ``fit``. TF32, which torch by itself takes for convolutions, would leave nothing of a difference."""
    x = torch.randn(64, 3, 16, 16, generator=_seeded())
    objective = Compared(derivative="difference")
    settings = ifl.TrainConfig(steps=1, batch_size=32, device=device, progress=False)
    ifl.fit(unet(), objective, x, settings)
    apart = objective.__dict__["apart"]
    assert apart < 0.02, f"the central difference is {apart:.1%} from the derivative"
    return f"{apart:.2%} apart"


@check("bfloat16 loss")
def bfloat16(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise Skip("this device has no bfloat16")
    worst = 0.0
    for make in (mlp, unet):
        for name in OBJECTIVES:
            if make is unet and OBJECTIVES[name][1]:
                continue
            right, _ = loss_of(name, make, torch.float32, device)
            with no_fallback() if device.type == "cuda" else warnings.catch_warnings():
                if device.type != "cuda":  # where forward mode has no rule for group_norm in it
                    warnings.simplefilter("ignore", RuntimeWarning)
                loss, gradient = loss_of(name, make, torch.float32, device, "bfloat16")
            assert bool(torch.isfinite(gradient).all()), name
            apart = abs(float(loss / right) - 1)
            assert apart < 0.05, f"{name}: the loss in bfloat16 is {apart:.1%} from that in float32"
            worst = max(worst, apart)
    return f"{worst:.1%} at most"


@check("same seed, same weights")
def same_weights(device: torch.device) -> None:
    x = torch.randn(300, 2, generator=_seeded())
    settings = ifl.TrainConfig(steps=20, batch_size=32, device=device, progress=False)
    runs = [ifl.fit(*some("IntegralIdentity, jvp"), x, settings).model for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters()))


@check("saved there, loaded here")
def saved(device: torch.device) -> None:
    model = unet().to(device)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for where in ("cpu", device):
            again = ifl.FlowMap.from_pretrained(folder, device=where)
            mine, theirs = model.state_dict(), again.state_dict()
            assert all(torch.equal(v.cpu(), theirs[k].cpu()) for k, v in mine.items())


# ------------------------------------------------------------------ runs that are stopped
def at_step(model: ifl.FlowMap, batch: int, step: int, action: Callable[[], object]) -> None:
    """Do something in the forward pass of a step, counted from 0. Small calls, which try the network, do not count."""
    seen = [0]

    def count(_, inputs) -> None:
        if len(inputs[0]) == batch:
            seen[0] += 1
            if seen[0] == step + 1:
                action()

    model.net.register_forward_pre_hook(count)


def small_run(folder: Path, device: torch.device) -> tuple:
    """Arguments of ``fit`` for a run with checkpoints."""
    x = torch.randn(200, 3, 16, 16, generator=_seeded())
    settings = ifl.TrainConfig(
        steps=20,
        batch_size=16,
        device=device,
        progress=False,
        log_every=5,
        checkpoint_every=3,
        out_dir=folder,
    )
    return unet(), ifl.IntegralIdentity(), x, settings


def killed_run(folder: str, device: str) -> None:
    """Train, and die by kill -9 in the ninth step."""
    arguments = small_run(Path(folder), torch.device(device))
    at_step(arguments[0], 16, 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with deterministic():
        ifl.fit(*arguments)


def continued_run(folder: str, device: str) -> None:
    """Continue that run, train another one without a stop, and compare the two."""
    where = torch.device(device)
    again, objective, x, settings = small_run(Path(folder), where)
    with deterministic():
        after = ifl.fit(again, objective, x, settings, resume="auto")
        whole = small_run(Path(folder) / "whole", where)
        before = ifl.fit(*whole)
    for mine, other in ((again, whole[0]), (after.model, before.model)):
        for (name, a), b in zip(mine.state_dict().items(), other.state_dict().values()):
            assert torch.equal(a, b), f"{name} differs by {float((a - b).abs().max()):.2g}"
    assert after.history.loss.equals(before.history.loss), "the losses differ"


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms alone, within a ``with`` block. On CUDA the process needs DETERMINISTIC from its start."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def in_a_process(function: str, *arguments: str) -> subprocess.CompletedProcess:
    """Call a function of this module in a process of its own."""
    code = f"import sys; from experiments.gpu_checks import {function}; {function}(*sys.argv[1:])"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | DETERMINISTIC | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@check("killed and continued, bit for bit", seconds=25)
def killed_and_continued(device: torch.device) -> None:
    if os.name != "posix":
        raise Skip("it kills by signals")
    with tempfile.TemporaryDirectory() as folder:
        killed = in_a_process("killed_run", folder, str(device))
        assert killed.returncode == -signal.SIGKILL, f"it was not killed: {_last(killed.stderr)}"
        kept = sorted(f.name for f in (Path(folder) / "checkpoints").iterdir())
        assert kept == ["step-00000003", "step-00000006"], f"checkpoints: {kept}"
        if device.type != "cuda":
            continued_run(folder, str(device))
            return
        done = in_a_process("continued_run", folder, str(device))
        assert done.returncode == 0, _last(done.stderr)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]


@check("out of memory")
def out_of_memory(device: torch.device) -> None:
    """One line that says what to do; and nothing is lost: the run continues to the end that it would have had."""

    def greedy() -> None:
        torch.empty(1 << 50, dtype=torch.uint8, device=device)

    x = torch.randn(200, 2, generator=_seeded())
    known = {"steps": 12, "batch_size": 16, "device": device, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        settings = ifl.TrainConfig(**known, checkpoint_every=3, out_dir=folder)
        model = mlp()
        at_step(model, 16, 7, greedy)
        try:
            ifl.fit(model, ifl.FlowMatching(), x, settings)
        except torch.OutOfMemoryError as error:
            said = str(error)
        else:
            raise AssertionError("a petabyte was allocated")
        assert "\n" not in said and "batch_size 16" in said, said
        assert "step-00000006" in said, said
        again = ifl.fit(mlp(), ifl.FlowMatching(), x, settings, resume="auto").model
    whole = ifl.fit(mlp(), ifl.FlowMatching(), x, ifl.TrainConfig(**known)).model
    for mine, other in zip(again.parameters(), whole.parameters()):
        same(mine, other, 1e-5, "weights")


# ------------------------------------------------------------------ the device
@check("memory of sample is bounded", cpu=False)
def memory_of_sample(device: torch.device) -> str:
    only_cuda(device)
    model, peaks = unet(size=32, width=32).to(device), []
    for n in (128, 128, 2048):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        ifl.sample(model, n, 2, "map", batch_size=64)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    assert peaks[2] <= 1.05 * peaks[1], f"the peak grew from {peaks[1]:,} to {peaks[2]:,} bytes"
    return f"{peaks[2] / 1e6:.0f} MB"


@check("transfers")
def transfers(device: torch.device) -> str | None:
    """Samples in many small batches, whose transfers may overlap with work, are those of one; pinned memory arrives whole."""
    model = unet().to(device)
    with arithmetic("float32"):
        whole = ifl.sample(model, 500, 2, "map", batch_size=500).x
        many = ifl.sample(model, 500, 2, "map", batch_size=16).x
    same(many, whole, 1e-4, "samples")
    if device.type != "cuda":
        return None
    rates = []
    for x in (torch.randn(1 << 26), torch.randn(1 << 26).pin_memory()):
        there = x.to(device, non_blocking=True)  # and the first transfer warms up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        there = x.to(device, non_blocking=True)
        end.record()
        end.synchronize()
        assert torch.equal(there.cpu(), x), "a transfer lost something"
        rates.append(x.numel() * 4 / start.elapsed_time(end) / 1e6)
    return f"pinned {rates[1]:.0f} GB/s, pageable {rates[0]:.0f} GB/s"


def no_waiting(name: str, device: torch.device) -> None:
    """A step after the first ones never makes the host wait for the device."""
    only_cuda(device)
    trainer = trainer_of(*some(name), 32, device, compile=False, log_every=10**6)
    for _ in range(3):
        trainer.one_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.one_step()
    except RuntimeError as error:
        raise AssertionError(f"a step waits: {str(error).splitlines()[0]}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


for _name in OBJECTIVES:
    check(f"no waiting in a step: {_name}", seconds=1, cpu=False)(
        functools.partial(no_waiting, _name)
    )


def graphs_so_far() -> tuple[int, int]:
    """How many graphs torch.compile has made, and how often it broke one in two."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def compiled(name: str, make, how: bool | str, device: torch.device) -> None:
    """The losses of a few steps are those of steps that are not compiled; in one piece, and nothing after the second step."""
    only_cuda(device)
    needs_compiler(device)
    losses = []
    for mode in (False, how):
        torch._dynamo.reset()
        before = graphs_so_far()
        with arithmetic("float32"), no_fallback():
            settings = {"compile": mode, "log_every": 1, "steps": 16}
            trainer = trainer_of(*some(name, make), 32, device, **settings)
            for _ in range(2):
                trainer.one_step()
            made = graphs_so_far()
            for _ in range(4):
                trainer.one_step()
        assert made[1] == before[1], "it was compiled in pieces, the rest is eager"
        assert graphs_so_far() == made, (
            f"{graphs_so_far()[0] - made[0]} graphs were made after step 2"
        )
        losses.append(torch.tensor(trainer.history.table().loss.to_numpy()))
    same(losses[1], losses[0], 1e-3, f"losses of {name}")


#: The telling ones first: time may run out.
for _name, _make, _how in (
    ("FlowMatching", unet, True),
    ("FlowMatching", mlp, "graphs"),
    ("IntegralIdentity, jvp", mlp, True),
    ("IntegralIdentity, jvp", mlp, "graphs"),
    ("IntegralIdentity, jvp", transformer, True),
    ("ConsistencyTraining", mlp, True),
    ("IntegralAdditivity", mlp, True),
    ("FlowMapDistillation", mlp, True),
    ("IntegralIdentity, difference", mlp, True),
    ("IntegralAdditivity", mlp, "graphs"),
    ("ConsistencyTraining", mlp, "graphs"),
    ("FlowMatching", unet, "graphs"),
    ("IntegralIdentity, jvp", unet, True),
    ("TerminalVelocity", mlp, True),
    ("IntegralIdentity, gap", mlp, True),
    ("EnergyMatching", mlp, True),
):
    _network = {mlp: "MLP", unet: "U-Net", transformer: "Transformer"}[_make]
    _shown = f"compile={_how!r}: {_name}, {_network}"
    check(_shown, seconds=15, cpu=False)(functools.partial(compiled, _name, _make, _how))


#: The last one, for what time is left: where nccl finds no way to itself it waits, and the part is ended.
@check("processes", seconds=8)
def processes(device: torch.device) -> None:
    """nccl (gloo on a CPU) with one process: sums, objects, and DistributedDataParallel around a network."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not distributed.is_available() or distributed.is_initialized():
        raise Skip("torch.distributed is not to be had")
    if not getattr(distributed, f"is_{backend}_available")():
        raise Skip(f"this torch has no {backend}")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        distributed.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        try:
            value = torch.arange(4.0, device=device)
            distributed.all_reduce(value)
            assert value.tolist() == [0, 1, 2, 3]
            said = ["a word"]
            distributed.broadcast_object_list(said, device=device)
            assert said == ["a word"]
            plain, shared = mlp().to(device), mlp().to(device)
            where = torch.empty(0, device=device).device  # with its index
            wrapped = nn.parallel.DistributedDataParallel(
                shared.net, device_ids=[where] if device.type == "cuda" else None
            )
            x, t = torch.ones(8, 2, device=device), torch.full((8,), 0.5, device=device)
            for call in (plain.net, wrapped):
                call(x, t, t).square().mean().backward()
            for mine, other in zip(shared.parameters(), plain.parameters()):
                same(mine.grad, other.grad, 1e-5, "gradients")
        finally:
            distributed.destroy_process_group()
