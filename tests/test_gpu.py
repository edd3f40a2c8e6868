"""The prepared run for a GPU, in its small form on a CPU: parts, time, continuation, what it must show, the pages."""

import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

import iflow_lib as ifl
from experiments import gpu, gpu_checks, gpu_quality, gpu_speed, readme_tables
from experiments.contenders import PEERS, middle
from experiments.gpu_checks import CHECKS
from experiments.gpu_table import (
    COLUMNS,
    PARTS,
    Budget,
    Cell,
    Results,
    Skip,
    demands,
    measure_all,
)
from experiments.make_reference import PAGES, with_tables
from experiments.store import read_manifest
from iflow_lib import metrics, zoo

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
#: What the GPU machine may lack. A machine with a GPU may have nothing but PyTorch, numpy, pandas, safetensors, tqdm, scipy.
BLOCKED = (
    "click IPython ipywidgets jupyter_client matplotlib nbformat optuna ot papermill PIL psutil pytest rich seaborn sklearn "
    "torchmetrics torchcfm flow_matching rectified_flow_pytorch dask distributed onnx"
).split()


def small(out: Path, *options, minutes: float = 5) -> int:
    """The program in its small form."""
    known = ["--device", "cpu", "--tiny", "--out", str(out), "--runs", str(out / "runs")]
    return gpu.main([*known, "--minutes", str(minutes), *map(str, options)])


# ------------------------------------------------------------------ the checks


def test_checks_of_a_gpu_say_so_elsewhere():
    there = [name for name, check in CHECKS.items() if not check.cpu]
    assert len(there) > 15
    for name in there:
        with pytest.raises(Skip, match="about CUDA"):
            CHECKS[name].run(CPU)


@pytest.mark.parametrize(
    "name, fault",
    [
        ("same seed, same noise", "another seed each time"),
        ("the difference is the derivative", "rounded outputs"),
        ("objectives are those of the CPU", "a loss that drifts"),
        ("out of memory", "no word of the checkpoint"),
        ("transfers", "another seed each time"),
    ],
)
def test_a_check_can_fail(name, fault, monkeypatch):
    """Each with a fault of the kind that it is there for; ``test_the_whole_program`` shows that it passes without."""
    calls = [0]
    if fault == "rounded outputs":  # as TF32 rounds
        forward = ifl.FlowMap.forward

        def rounded(self, *given, **known):
            return forward(self, *given, **known).to(torch.bfloat16).float()

        monkeypatch.setattr(ifl.FlowMap, "forward", rounded)
    elif fault == "a loss that drifts":
        loss_of = ifl.FlowMatching.loss

        def drifting(self, *given, **known):
            calls[0] += 1
            loss, rest = loss_of(self, *given, **known)
            return loss * (1 + 1e-3 * calls[0]), rest

        monkeypatch.setattr(ifl.FlowMatching, "loss", drifting)
    elif fault == "no word of the checkpoint":
        monkeypatch.setattr("iflow_lib.training.loop._newest", lambda folder: "nothing is known")
    else:
        sample = ifl.sample

        def other(model, n, nfe, method, seed=0, **known):
            calls[0] += 1
            return sample(model, n, nfe, method, seed + calls[0], **known)

        monkeypatch.setattr(ifl, "sample", other)
    with pytest.raises(AssertionError):
        CHECKS[name].run(CPU)


def test_a_failed_check_is_a_row_and_is_run_again(tmp_path, monkeypatch, capsys):
    answers = iter([AssertionError("the noise differs\nby much"), ValueError("no room"), "fine"])

    def check(device):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(gpu, "CHECKS", {"noise": gpu_checks.Check(check)})
    notes = []
    for code in (1, 1, 0, 0):
        assert small(tmp_path, "--parts", "tests") == code
        notes.append(pd.read_csv(tmp_path / "gpu.csv")[["value", "note"]].values.tolist())
    assert notes == [[[0, "the noise differs"]], [[0, "ValueError: no room"]], *2 * [[[1, "fine"]]]]
    assert "1 there" in capsys.readouterr().out


# ------------------------------------------------------------------ time


class Clock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def cells_of(clock: Clock, **seconds: float) -> tuple[list[Cell], list[str]]:
    """Measurements that need and take so many seconds, and those that were made."""
    made: list[str] = []

    def measure(run: str, took: float):
        def run_it(_):
            clock.now += took
            made.append(run)
            return [{"metric": "steps_per_second", "value": took, "unit": "1/s"}]

        return run_it

    return [Cell(f"speed/{n}", s, measure(f"speed/{n}", s)) for n, s in seconds.items()], made


def test_the_time_of_a_part_is_kept(tmp_path, capsys):
    """No measurement begins that does not fit; a shorter one after it does; what is skipped is said."""
    clock, results = Clock(), Results(tmp_path, "one card")
    cells, made = cells_of(clock, a=6, b=5, c=3, d=4)
    count = measure_all(cells, results, Budget(clock() + 10, clock))
    assert made == ["speed/a", "speed/c"] and count == {"measured": 2, "there": 0, "skipped": 2}
    said = capsys.readouterr().out
    assert "skipped, 1 s are left: speed/b; speed/d" in said and "(6.0 s, 4 s left)" in said
    manifest = read_manifest(tmp_path / "gpu.csv")
    assert manifest["skipped"] == {
        "one card: speed/b": "4 s were left, it needs 5",
        "one card: speed/d": "1 s were left, it needs 4",
    }
    assert list(manifest["runs"]) == ["one card: speed/a", "one card: speed/c"]
    assert manifest["runs"]["one card: speed/a"]["seconds"] == 6


def test_a_second_call_continues_and_another_card_is_added(tmp_path):
    clock = Clock()
    cells, made = cells_of(clock, a=6, b=5, c=3)
    measure_all(cells, Results(tmp_path, "one card"), Budget(clock() + 10, clock))
    first = (tmp_path / "gpu.csv").read_text()
    assert made == ["speed/a", "speed/c"]
    count = measure_all(cells, Results(tmp_path, "one card"), Budget(clock() + 10, clock))
    assert made == ["speed/a", "speed/c", "speed/b"]
    assert count == {"measured": 1, "there": 2, "skipped": 0}
    assert (tmp_path / "gpu.csv").read_text().startswith(first)
    assert read_manifest(tmp_path / "gpu.csv")["skipped"] == {}
    whole = (tmp_path / "gpu.csv").read_text()
    other = Results(tmp_path, "another card", {"driver": "1.2"})
    measure_all(cells[:1], other, Budget(clock() + 10, clock))
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert list(table) == list(COLUMNS)
    assert list(table.card) == ["one card"] * 3 + ["another card"]
    assert (tmp_path / "gpu.csv").read_text().startswith(whole)
    manifest = read_manifest(tmp_path / "gpu.csv")
    assert manifest["cards"]["another card"] == {"driver": "1.2"} and len(manifest["runs"]) == 4
    other.forget("speed")
    other.write()
    assert (tmp_path / "gpu.csv").read_text() == whole


def test_what_breaks_ends_nothing_else(tmp_path, capsys):
    def broken(_):
        raise RuntimeError("no kernel\nfor this card")

    def missing(_):
        raise Skip("it is not installed")

    clock, results = Clock(), Results(tmp_path, "a card")
    good, made = cells_of(clock, c=1)
    cells = [Cell("speed/a", 1, broken), Cell("speed/b", 1, missing), *good]
    assert measure_all(cells, results, Budget(clock() + 9, clock))["skipped"] == 2
    assert made == ["speed/c"] and len(pd.read_csv(tmp_path / "gpu.csv")) == 1
    said = capsys.readouterr().out
    assert "speed/a: failed: RuntimeError: no kernel\n" in said
    assert "speed/b: skipped: it is not installed\n" in said
    assert len(read_manifest(tmp_path / "gpu.csv")["skipped"]) == 2


def test_how_the_time_is_shared():
    """The limits of the parts, less of all in a shorter run, and the last one gets what is left."""
    parts = list(PARTS)
    assert [gpu.share(parts[i:], 540 - used) for i, used in enumerate((0, 90, 330, 390))] == [
        90,
        240,
        60,
        150,
    ]
    assert gpu.share(parts, 54) == pytest.approx(9) and gpu.share(parts, 5400) == 90
    assert gpu.share(parts[1:], 530) == 240  # the first was done at once
    assert gpu.share(["speed"], 500) == 500 and gpu.share(["quality"], 700) == 700
    assert gpu.share(["tests", "quality"], 500) == 90


def test_without_time_everything_is_skipped(tmp_path, capsys):
    for part in ("tests", "speed", "sampling"):
        assert small(tmp_path, "--parts", part, minutes=0) == 0
    said = capsys.readouterr().out
    assert len(re.findall("^skipped, 0 s are left", said, flags=re.M)) == 3
    assert "0 measured, 0 there" in said and "more, which gpu.manifest.json names" in said
    kept = read_manifest(tmp_path / "gpu.csv")["skipped"]
    assert len(kept) > 100 and "cpu: speed/UNet/FlowMatching/float32/eager" in kept
    assert pd.read_csv(tmp_path / "gpu.csv").empty


def test_on_a_gpu_each_part_has_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    """In their order, each with its time; one that breaks off is said, and the next one is begun."""
    begun = []

    def run(command, cwd, timeout):
        begun.append((command[command.index("--parts") + 1], round(timeout)))
        assert "--tiny" not in command and command[command.index("--steps") + 1] == "7"
        return subprocess.CompletedProcess(command, int(begun[-1][0] == "speed"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "run", run)
    assert gpu.main(["--out", str(tmp_path), "--steps", "7", "--minutes", "9"]) == 1
    assert [part for part, _ in begun] == list(PARTS)
    assert [seconds - gpu.GRACE for _, seconds in begun] == [90, 240, 60, 540]


def test_a_part_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 300)
    given = gpu.parser().parse_args(["--device", "cpu", "--tiny"])
    given.out, given.runs = tmp_path, tmp_path / "runs"
    assert gpu.run_apart("speed", given, time.time() - 1) == 0
    assert "cpu: speed/ceiling/copying" in read_manifest(tmp_path / "gpu.csv")["skipped"]


def test_a_part_that_overruns_is_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "GRACE", -100)
    given = gpu.parser().parse_args(
        ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--runs", str(tmp_path)]
    )
    start = time.monotonic()
    assert gpu.run_apart("speed", given, time.time() + 60) == 1
    assert time.monotonic() - start < 20 and "speed: ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (["--device", "cpu"], "there is only the small form: add --tiny"),
        (["--parts", "speed,spead"], "unknown part 'spead': expected some of tests,speed,sampling"),
        ([], "torch sees no CUDA device here: --device cpu --tiny runs the small form"),
    ],
)
def test_wrong_options(options, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main(options)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


# ------------------------------------------------------------------ the program


def run_whole(folder: Path) -> subprocess.CompletedProcess:
    """The whole program in its small form, where nothing can be imported that a GPU machine may lack."""
    for name in BLOCKED:
        (folder / "blocked" / name).mkdir(parents=True)
        text = f"raise ImportError('{name} is blocked')\n"
        (folder / "blocked" / name / "__init__.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(folder / "blocked"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.gpu", "--device", "cpu", "--tiny"]
    command += ["--out", str(folder), "--runs", str(folder / "runs")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_whole_program(tmp_path, capsys):
    done = run_whole(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert list(dict.fromkeys(table.part)) == list(PARTS) and set(table.card) == {"cpu"}
    assert table.value.notna().all() and not table.duplicated(["run", "metric", "nfe"]).any()
    passed = table[table.metric == "passed"]
    assert (passed.value == 1).all()
    assert set(passed.run) == {f"tests/{name}" for name, check in CHECKS.items() if check.cpu}
    speed = table[table.part == "speed"]
    assert set(speed[speed["mode"] == "eager"].objective) == set(gpu_speed.OBJECTIVES)
    assert set(speed.network.dropna()) == {"UNet", "Transformer"}
    steps = speed[speed.metric == "steps_per_second"]
    assert (steps.low <= steps.value).all() and (steps.value <= steps.high).all()
    assert (steps.share_of_ceiling > 0).all()
    samples = table[(table.part == "sampling") & (table.metric == "latency")]
    wanted = {(batch, nfe) for batch in (1, 4, 16) for nfe in (1, 2, 4, 50)}
    assert set(zip(samples.batch, samples.nfe)) == wanted
    quality = table[(table.part == "quality") & (table.metric == "frechet")]
    wanted = {*(("map", n) for n in (1, 2, 4)), *(("euler", n) for n in (8, 16, 32))}
    assert set(zip(quality.method, quality.nfe)) >= wanted
    assert len(set(quality.step.dropna())) == 1  # equally many steps
    manifest = read_manifest(tmp_path / "gpu.csv")
    assert manifest["cards"]["cpu"]["torch"] == torch.__version__
    assert {key.removeprefix("cpu: ") for key in manifest["runs"]} == set(table.run)
    said = [line for line in done.stdout.splitlines() if "is not installed" in line]
    assert len(said) == len(PEERS), done.stdout
    assert "what it must show" in done.stdout and "not measured" in done.stdout

    # again, in this process, where the neighbours are installed
    before = (tmp_path / "gpu.csv").read_bytes()
    assert small(tmp_path) == 0
    said = capsys.readouterr().out
    for part in PARTS:
        measured = len(PEERS) if part == "speed" else 0
        assert f"\n{part}: {measured} measured" in said, said
    after = (tmp_path / "gpu.csv").read_bytes()
    assert len(after.splitlines()) == len(before.splitlines()) + 2 * len(PEERS)
    peers = pd.read_csv(tmp_path / "gpu.csv").query("metric == 'fit_over_peer'")
    assert list(peers.objective) == list(PEERS) and (peers.value > 0).all()


# ------------------------------------------------------------------ speed


@pytest.mark.parametrize("network", gpu_speed.FULL.networks)
def test_the_networks_have_about_thirty_million_weights(network):
    make, batch = gpu_speed.FULL.networks[network]
    with torch.device("meta"):
        net = make()
    assert 28e6 <= sum(p.numel() for p in net.parameters()) <= 32e6 and batch == 256
    assert math.prod(net.data_shape) == 32 * 32 * 3


def test_what_is_timed_and_in_which_order():
    order = list(dict.fromkeys(gpu_speed.ORDER))
    for network in gpu_speed.FULL.networks:
        for objective in gpu_speed.OBJECTIVES:
            for how in (("float32", "eager"), ("bfloat16", "compiled"), ("bfloat16", "graphs")):
                assert (network, objective, *how) in order
    for precision, mode in (("tf32", "eager"), ("bfloat16", "eager"), ("bfloat16", "replay")):
        assert ("UNet", "FlowMatching", precision, mode) in order
    needed = [("UNet", "FlowMatching", "float32", "eager")]
    needed += [("UNet", name, "bfloat16", "compiled") for name in ("FlowMatching",)]
    assert order[:2] == needed and ("UNet", "peers", "default", "as it ships") in order[:6]


def test_compiled_steps_and_samples_take_the_same_way(tmp_path, monkeypatch):
    """Every mode, with a compiler that does nothing."""
    asked = []

    def compiler(function, **options):
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    for name in ("reset", "cudagraph_mark_step_begin"):  # which import the compiler, for seconds
        monkeypatch.setattr(torch.compiler, name, lambda: None)
    both = gpu_speed.FULL.modes
    size = replace(gpu_speed.SMALL, modes=both)
    monkeypatch.setitem(gpu_speed.SIZES, "small", size)
    results, budget = Results(tmp_path, "cpu"), Budget(time.time() + 100)
    cells = [c for c in gpu_speed.speed_cells("small", CPU, results) if "Transformer" not in c.run]
    wanted = ("ceiling", "FlowMatching", "IntegralIdentity, jvp", "torchcfm")
    cells = [c for c in cells if any(name in c.run for name in wanted)]
    cells += gpu_speed.sampling_cells("small", CPU, results)
    count = measure_all(cells, results, budget)
    assert count["skipped"] == 0, results.manifest["skipped"]
    table = pd.read_csv(results.file)
    assert set(table["mode"].dropna()) == {*both, "as it ships"}
    assert {"mode": "reduce-overhead", "dynamic": False} in asked and {"dynamic": False} in asked
    found = {one.what.split(",")[0]: one for one in demands(table, "cpu")}
    for name in (
        "compiled bfloat16 against eager float32",
        "compiled bfloat16 against the fastest neighbour as it ships",
        "a training step beyond the bare replay",
        "a step of IntegralIdentity against a velocity step",
        "fifty Euler steps against one jump",
    ):
        assert found[name].verdict in ("met", "not met"), name


def test_a_compiler_that_fails_is_no_measurement(tmp_path, monkeypatch):
    class BackendFailed(Exception):
        __module__ = "torch._dynamo.exc"

    def compiler(function, **options):
        def fails(*given, **known):
            raise BackendFailed("no code for this card")

        return fails

    monkeypatch.setattr(torch, "compile", compiler)
    size = replace(gpu_speed.SMALL, modes=gpu_speed.FULL.modes)
    monkeypatch.setitem(gpu_speed.SIZES, "small", size)
    results = Results(tmp_path, "cpu")
    cells = gpu_speed.speed_cells("small", CPU, results)
    cell = next(c for c in cells if c.run == "speed/UNet/FlowMatching/bfloat16/compiled")
    assert measure_all([cell], results, Budget(time.time() + 100))["skipped"] == 1
    why = results.manifest["skipped"][f"cpu: {cell.run}"]
    assert "going on without torch.compile" in why and "no code for this card" in why


def test_without_a_compiler_nothing_is_tried_again_and_again(tmp_path, monkeypatch):
    size = replace(gpu_speed.SMALL, modes=gpu_speed.FULL.modes)
    monkeypatch.setitem(gpu_speed.SIZES, "small", size)
    monkeypatch.setattr(gpu_checks, "compiler_fault", lambda device: "no triton here")
    results = Results(tmp_path, "cpu")
    cells = gpu_speed.speed_cells("small", CPU, results)
    cells += gpu_speed.sampling_cells("small", CPU, results)
    compiled = [c for c in cells if "/compiled" in c.run or "graphs" in c.run or ", comp" in c.run]
    budget = Budget(time.time() + 100)
    assert measure_all(compiled, results, budget)["skipped"] == len(compiled) > 30
    assert set(results.manifest["skipped"].values()) == {"skipped: no triton here"}


def test_what_is_compiled_in_pieces_is_no_measurement(tmp_path, monkeypatch):
    """Pieces are eager in part, and torch says nothing of it."""
    broken = iter(range(100))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(gpu_speed, "graphs_so_far", lambda: (1, next(broken)))
    size = replace(gpu_speed.SMALL, modes=gpu_speed.FULL.modes)
    monkeypatch.setitem(gpu_speed.SIZES, "small", size)
    results = Results(tmp_path, "cpu")
    cells = {c.run: c for c in gpu_speed.speed_cells("small", CPU, results)}
    runs = [f"speed/UNet/FlowMatching/bfloat16/{mode}" for mode in ("compiled", "eager")]
    count = measure_all([cells[run] for run in runs], results, Budget(time.time() + 100))
    assert count["measured"] == count["skipped"] == 1
    assert "in pieces" in results.manifest["skipped"][f"cpu: {runs[0]}"]


def test_operations_of_a_step_are_those_of_its_network_calls():
    """Three forward passes for a velocity; more for the identity."""
    velocity = gpu_speed.step_flops("small", "UNet", "FlowMatching", CPU)
    model = gpu_speed.model_of(gpu_speed.SMALL, "UNet")
    x, t = torch.zeros(1, *model.data_shape), torch.ones(1)
    with gpu_speed.FlopCounterMode(display=False) as counter:
        model(x, t, t)
    # no gradient flows into the data, so the first layer has one product less
    assert 2.5 < velocity / counter.get_total_flops() <= 3
    identity = gpu_speed.step_flops("small", "UNet", "IntegralIdentity, jvp", CPU)
    assert 1.3 < identity / velocity < 1.7


def test_a_share_is_of_the_nearer_ceiling(tmp_path):
    results = Results(tmp_path, "a card")
    shares = gpu_speed.Shares(results)
    assert shares.of("tf32", 1e12) == {}
    products = {"objective": "matmul", "precision": "tf32", "metric": "products", "value": 100.0}
    results.add("speed/ceiling/products/tf32", [products], 1)
    results.add(
        "speed/ceiling/copying", [{"objective": "copy", "metric": "copying", "value": 1000.0}], 1
    )
    assert shares.of("default", 5e13)["share_of_ceiling"] == pytest.approx(0.5)
    found = shares.of("tf32", 1e12, 2e11)
    assert found == {"share_of_ceiling": pytest.approx(0.2), "ceiling": "copying"}


def test_the_middle_has_an_interval():
    assert middle([3, 1, 2]) == (2, 1, 3)
    median, low, high = middle(range(11))
    assert (median, low, high) == (5, 1, 9)
    for n in range(1, 60):
        tail = int(binom.ppf(0.025, n, 0.5))
        assert middle(range(n)) == (n // 2, max(0, tail - 1), min(n - 1, n - tail))


def test_precisions_are_put_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, wanted in (("tf32", (True, True)), ("float32", (False, False)), ("default", before)):
        with gpu_checks.arithmetic(name):
            found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert found == wanted
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


# ------------------------------------------------------------------ quality


def test_the_distances_are_those_of_the_package():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1500, 64, generator=g).double()
    y = 1.2 * y + 0.1
    assert gpu_quality.frechet(x, y) == pytest.approx(metrics.frechet_distance(x, y), rel=1e-6)
    assert gpu_quality.frechet(x, x) < 1e-6
    theirs = metrics.kernel_distance(x, y)
    assert gpu_quality.kernel(x, y) == pytest.approx(theirs, rel=0.15)
    pictures = ifl.data.load("fashion_mnist", 50).x
    found = gpu_quality.features(pictures, CPU)
    assert torch.allclose(found, metrics.embed(pictures), atol=1e-4)


def test_images_that_are_named_must_be_the_right_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_quality, "DEBIAN_FOLDER", tmp_path / "none")
    assert len(gpu_quality.images(None, None).x) == 10_000
    with pytest.raises(FileNotFoundError, match="expected the four Fashion-MNIST files"):
        gpu_quality.images(tmp_path, None)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="sha256"):
        gpu_quality.images(tmp_path, None)


def test_steps_follow_from_the_time(tmp_path, monkeypatch):
    """As many as the two models of a path can have; they are kept, so that a later call trains as long."""
    size = gpu_quality.SIZES["small"]
    data, clock = ifl.data.load("fashion_mnist", 64), Clock()
    monkeypatch.setattr(gpu_quality, "seconds", lambda step, times, device: step() or 0.5)
    plan = gpu_quality.steps_for(size, data, CPU, Budget(clock() + 100.4, clock))
    assert plan == {"steps": 85, "seconds_per_step": {"velocity": 0.5, "integral": 0.5}}
    longest = gpu_quality.steps_for(size, data, CPU, Budget(clock() + 1000, clock))
    assert longest["steps"] == 127  # or the other paths would never have their turn
    unplanned = replace(size, steps=None)
    monkeypatch.setitem(gpu_quality.SIZES, "small", unplanned)
    given = {"folder": None, "runs": tmp_path}
    results = Results(tmp_path, "cpu")
    late = gpu_quality.quality_cells("small", CPU, results, Budget(clock() + 30, clock), **given)
    assert len(late) == 1
    with pytest.raises(Skip, match="less than 40 s are left"):
        late[0].measure(Budget(clock()))
    first = gpu_quality.quality_cells(
        "small", CPU, results, Budget(clock() + 100.4, clock), **given
    )
    assert "/steps85/" in first[-1].run
    again = Results(tmp_path, "cpu")
    later = gpu_quality.quality_cells("small", CPU, again, Budget(clock() + 50, clock), **given)
    assert [cell.run for cell in later] == [cell.run for cell in first]


def test_whole_comparisons_come_first(tmp_path):
    results, budget = Results(tmp_path, "cpu"), Budget(time.time() + 100)
    full = replace(gpu_quality.SIZES["full"], images=64, steps=5)
    gpu_quality.SIZES["ordered"] = full
    try:
        cells = gpu_quality.quality_cells(
            "ordered", CPU, results, budget, folder=None, runs=tmp_path
        )
    finally:
        del gpu_quality.SIZES["ordered"]
    runs = [cell.run.split("/")[-3:] for cell in cells[1:]]
    assert runs[:4] == [
        ["rectified", "velocity", "seed0"],
        ["rectified", "integral", "seed0"],
        ["ve", "velocity", "seed0"],
        ["ve", "integral", "seed0"],
    ]
    assert len(runs) == 18 and runs[6] == ["rectified", "velocity", "seed1"]


@pytest.mark.skipif(os.name != "posix", reason="stops by signals")
def test_a_training_without_time_is_stopped_and_continues(tmp_path):
    size = replace(gpu_quality.SIZES["small"], steps=30)
    data = ifl.data.load("fashion_mnist", 64)
    system = zoo.System("rectified", "integral", "fashion_mnist")
    trainings = gpu_quality.Trainings(size, 30, data, CPU, tmp_path / "a")
    with pytest.raises(Skip, match=r"stopped after \d+ of 30 steps of velocity; the next call"):
        trainings.model(system, 0, Budget(time.time() - 5))
    model, took = trainings.model(system, 0, Budget(time.time() + 100))
    assert took > 0
    undisturbed = gpu_quality.Trainings(size, 30, data, CPU, tmp_path / "b")
    other, _ = undisturbed.model(system, 0, Budget(time.time() + 100))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    folders = sorted(f.name for f in (tmp_path / "b").iterdir())
    assert folders == [
        "rectified_integral-steps30-seed0",
        "rectified_integral-steps30-seed0-matched",
        "rectified_velocity-steps30-seed0",
    ]
    steps = {
        name: pd.read_csv(tmp_path / "b" / name / "history.csv").step.iloc[-1] for name in folders
    }
    assert list(steps.values()) == [29, 1, 30]  # equally many for both


# ------------------------------------------------------------------ what it must show, and the pages


def hand_made() -> pd.DataFrame:
    """A table of a card on which everything is met but one demand."""
    rows = []

    def row(part, run, metric, value, **more):
        rows.append(
            {"card": "Card A", "part": part, "run": run, "metric": metric, "value": value, **more}
        )

    for name, passed in (("noise", 1), ("samples", 1)):
        row("tests", f"tests/{name}", "passed", passed)
    for precision, value in (("float32", 50.0), ("bfloat16", 700.0)):
        known = {
            "objective": "matmul",
            "precision": precision,
            "unit": "TFLOP/s",
            "low": value,
            "high": value,
        }
        row("speed", f"speed/ceiling/products/{precision}", "products", value, **known)
    for objective, precision, mode, value in (
        ("FlowMatching", "float32", "eager", 10.0),
        ("FlowMatching", "bfloat16", "compiled", 40.0),
        ("FlowMatching", "bfloat16", "graphs", 42.0),
        ("FlowMatching", "bfloat16", "replay, compiled", 46.2),
        ("IntegralIdentity, jvp", "bfloat16", "compiled", 25.0),
    ):
        known = {"network": "UNet", "objective": objective, "precision": precision, "mode": mode}
        known |= {
            "share_of_ceiling": value / 100,
            "ceiling": f"products in {precision}",
            "unit": "1/s",
        }
        run = f"speed/UNet/{objective}/{precision}/{mode}"
        row("speed", run, "steps_per_second", value, low=value - 1, high=value + 1, **known)
        row("speed", run, "peak_memory", 5000.0, **known)
    for peer, value in (("torchcfm", 2.5), ("flow_matching", 1.8)):
        row("speed", f"speed/UNet/{peer}/as it ships", "fit_over_peer", value, objective=peer)
    for mode, batch, jump, fifty in (
        ("eager", 1, 0.01, 0.1),
        ("eager", 1024, 0.02, 0.8),
        ("graphs", 1024, 0.01, 0.46),
    ):
        run = f"sampling/UNet/{mode}/batch {batch}"
        for nfe, value in ((1, jump), (50, fifty)):
            known = {"mode": mode, "batch": batch, "nfe": nfe, "network": "UNet"}
            row("sampling", run, "latency", value, unit="s", **known)
            row("sampling", run, "images_per_second", batch / value, unit="1/s", **known)
    for seed, better in ((0, 1.0), (1, -1.0)):
        for method, nfes in (("map", (1, 2, 4)), ("euler", (8, 16, 32))):
            for nfe in nfes:
                known = {"dataset": "fashion_mnist", "path": "rectified", "step": 900, "seed": seed}
                known |= {"method": method, "nfe": nfe}
                value = 5 - better * (method == "map")
                row("quality", f"quality/x/{method}/seed{seed}", "frechet", value, **known)
    return pd.DataFrame(rows, columns=COLUMNS)


def test_what_the_table_must_show():
    found = {one.what.split(",")[0]: one for one in demands(hand_made(), "Card A")}
    values = {name: (round(one.value, 6), one.verdict) for name, one in found.items()}
    assert values == {
        "checks that passed": (1.0, "met"),
        "compiled bfloat16 against eager float32": (4.0, "met"),
        "compiled bfloat16 against the fastest neighbour as it ships": (1.8, "met"),
        "a training step beyond the bare replay": (0.1, "met"),
        "a step of IntegralIdentity against a velocity step": (1.6, "not met"),
        "fifty Euler steps against one jump": (46.0, "met"),
        "comparisons of one": (0.5, "measured"),
        "share of the card's bfloat16 products that compiled FlowMatching uses": (0.4, "measured"),
    }
    assert found["a training step beyond the bare replay"].how == "bfloat16, graphs"
    assert found["fifty Euler steps against one jump"].how == "batch 1024, graphs"
    peer = found["compiled bfloat16 against the fastest neighbour as it ships"]
    assert peer.how == "flow_matching" and peer.shown_bound == "at least 1.5"


@pytest.mark.parametrize(
    "run, metric, value, what, verdict",
    [
        ("tests/noise", "passed", 0, "checks that passed", "not met"),
        (
            "speed/UNet/FlowMatching/float32/eager",
            "steps_per_second",
            14,
            "against eager",
            "not met",
        ),
        ("speed/UNet/flow_matching/as it ships", "fit_over_peer", 1.4, "fastest neigh", "not met"),
        (
            "speed/UNet/FlowMatching/bfloat16/graphs",
            "steps_per_second",
            39,
            "bare replay",
            "not met",
        ),
        (
            "speed/UNet/IntegralIdentity, jvp/bfloat16/compiled",
            "steps_per_second",
            30,
            "Identity",
            "met",
        ),
        (
            "speed/UNet/FlowMatching/bfloat16/compiled",
            "steps_per_second",
            np.nan,
            "eager",
            "not measured",
        ),
    ],
)
def test_a_verdict_follows_the_table(run, metric, value, what, verdict):
    table = hand_made()
    place = (table.run == run) & (table.metric == metric)
    assert place.sum() == 1
    table["value"] = table.value.astype(float)
    table.loc[place, "value"] = value
    (found,) = [one for one in demands(table, "Card A") if what in one.what]
    assert found.verdict == verdict


def test_without_rows_nothing_was_measured():
    found = demands(pd.DataFrame(columns=COLUMNS), "Card A")
    assert {one.verdict for one in found} == {"not measured"} and len(found) == 8


def test_the_sections_of_the_pages_are_absent_without_a_row(monkeypatch):
    empty = pd.DataFrame(columns=COLUMNS)
    for name in ("gpu", "gpu_all"):
        file, make = readme_tables.TABLES[name]
        assert make(empty) == make(pd.DataFrame()) == "" and file in readme_tables.WHEN_MEASURED
        monkeypatch.setitem(readme_tables.TABLES, name, ("bench/none.csv", make))
    monkeypatch.setattr("experiments.make_reference.WHEN_MEASURED", ("bench/none.csv",))
    text = "a\n\n<!-- gpu -->\nold\n<!-- /gpu -->\n\nb <!-- gpu_all --><!-- /gpu_all -->"
    assert with_tables(text) == (
        "a\n\n<!-- gpu -->\n<!-- /gpu -->\n\nb <!-- gpu_all -->\n<!-- /gpu_all -->"
    )


def test_the_sections_of_the_pages_show_the_table():
    table = hand_made()
    other = table.assign(card="Card B")
    short = readme_tables.gpu_short_table(pd.concat([table, other[other.part == "speed"]]))
    assert short.startswith("| on a GPU | wanted | Card A | Card B |\n")
    assert "| at most 1.4 | 1.6, not met | 1.6, not met |" in short
    assert "| at least 45 | 46, met | not measured |" in short
    text = readme_tables.gpu_table(table)
    assert text.startswith("### Card A\n")
    assert "| products, bfloat16 | 700 (700 to 700) TFLOP/s |" in text
    line = "| U-Net | FlowMatching | bfloat16 | compiled | 40 (39 to 41) | 40 % of products in bfloat16 | 5.0 |"
    assert line in text
    assert "| graphs | 1024 | 1 | 10 | 1.02e+05 | |" in text
    assert (
        "| the 10,000 that ship | 900 | Integration Flow, rectified | 4 | 2 | 5.00 ± 1.00 |" in text
    )
    assert "Of 2 checks 2 passed." in text


def test_the_pages_agree_with_the_table():
    """They hold what was measured, and no sentence that a measured GPU makes wrong."""
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    for name in ("gpu", "gpu_all"):
        (page,) = [text for text in pages.values() if f"<!-- {name} -->" in text]
        shown = re.search(rf"<!-- {name} -->.*?<!-- /{name} -->", page, flags=re.S)[0]
        assert with_tables(shown) == shown
    if (ROOT / "results" / "reference" / "bench" / "gpu.csv").is_file():
        for page, text in pages.items():
            for words in (
                "no GPU was to be had",
                "has not run on a GPU yet",
                "from two CPU cores**",
            ):
                assert words not in " ".join(text.split()), (page, words)
