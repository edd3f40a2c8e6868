"""The sweep: its grid, what it refuses, and that neither dead workers nor a dead sweep change the table."""

import dataclasses
import gc
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from conftest import write_notebook

from experiments import plane_sweep
from iflow_runner import cli, plan, provenance, sweep
from iflow_runner.recorder import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
#: what the sweeps here run: it is quick, and does without torch
SCIENCE = '''
import random, time
from typing import Literal

def train(dataset: Literal["eight_gaussians", "spiral"] = "eight_gaussians", path: str = "ve", seed: int = 0,
          steps: int = 30, lr: float = 1, nfes=(1, 2), device: str = "cpu"):
    """One row for each nfe."""
    if path == "line" and 2 in nfes:
        raise ValueError("a line is\\nsampled in one step")
    time.sleep(steps / 100)
    draw = random.Random(f"{dataset} {path} {seed} {lr}")
    for nfe in nfes:
        yield {"dataset": dataset, "seed": seed, "nfe": nfe, "method": "map", "metric": "w2", "value": draw.random()}

def other(steps: int = 3, wrong=None): pass

def bare(seed, lr: float, steps: int = 3, *more, device, **others):
    return [{"seed": seed, "step": steps, "metric": "lr", "value": lr}]

def typo(steps: "Itn" = 3): pass

def chosen(steps: Literal[1, 2] = 1): pass

constant = 3

def ends(kind: str = "none"):
    if kind == "exit":
        raise SystemExit(3)
    good = {"metric": "w2", "value": 1.0}
    return {"none": None, "empty": [], "row": good, "number": [3], "complex": [good | {"value": 1j}],
            "run_id": [good | {"run_id": 3}], "array": [good | {"nfe": [1]}]}.get(kind, [good])
'''
SHORT = "run = 'science:train'\n"
EIGHT = SHORT + "[grid]\ndataset = ['eight_gaussians', 'spiral']\nseed = [0, 1, 2, 3]\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux has them")


def iflow(capfd, *arguments):
    """(exit code, stdout, stderr) of ``iflow sweep``, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", *map(str, arguments)])
    return end.value.code, *capfd.readouterr()


@pytest.fixture(scope="module", autouse=True)
def science(tmp_path_factory):
    """A working folder with a module of functions to run."""
    folder = tmp_path_factory.mktemp("science")
    (folder / "science.py").write_text(SCIENCE)
    (folder / "broken.py").write_text("1 / 0")
    sweep.identity.cache_clear()  # of the same names in another folder
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
        sys.modules.pop("science", None)


@pytest.fixture
def toml(tmp_path):
    """Writes a sweep file, and gives it and the folder of its results."""

    def write(text: str):
        file = tmp_path / "grid.toml"
        file.write_text(text)
        return file, "--out", tmp_path / "out"

    return write


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False).drop(
        columns="seconds"
    )


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def states(folder: Path) -> list[str]:
    return [run["status"] for run in manifest(folder)["runs"].values()]


# ---- the grid


def labels(file, **options):
    return [run.label for run in sweep.read_sweep(file, file.parent / "out", **options).runs]


def test_every_point_once_in_order(toml):
    file, *_ = toml(
        SHORT + "[parameters]\nseed = 5\nsteps = 7\n[grid]\npath = ['line', 've']\nseed = [1, 0]\n"
    )
    assert labels(file) == [
        "path=line/seed=1",
        "path=line/seed=0",
        "path=ve/seed=1",
        "path=ve/seed=0",
    ]
    runs = sweep.read_sweep(file, file.parent / "out").runs
    assert len({run.key for run in runs}) == 4
    for run in runs:
        assert run.settings["parameters"] == {
            "dataset": "eight_gaussians",
            **dict(path=run.label[5:].split("/")[0], seed=int(run.label[-1])),
            **dict(steps=7, lr=1.0, nfes=[1, 2]),
        }
    assert sweep.read_sweep(file, file.parent / "out", device="cuda").runs[0].key != runs[0].key


def test_what_has_no_default_takes_its_values_from_the_file(toml, capfd):
    file, *_ = toml("run = 'science:bare'\n[parameters]\nlr = 2\n[grid]\nseed = [3, 4]\n")
    runs = sweep.read_sweep(file, file.parent / "out").runs
    assert [run.settings["parameters"] for run in runs] == [
        {"seed": seed, "lr": 2.0, "steps": 3} for seed in (3, 4)
    ]
    code, out, _ = iflow(capfd, file, "--out", file.parent / "out", "--workers", 0)
    assert code == 0 and "2 of 2 runs are done" in out
    rows = pd.read_csv(file.parent / "out" / "results.csv")
    assert list(rows.seed) == [3, 4] and list(rows.value) == [2, 2]


def test_results_of_a_function_elsewhere_stay_in_the_working_folder(toml, science):
    file, *_ = toml(EIGHT)
    assert sweep.read_sweep(file).out == science / "results" / "runs" / "sweep-grid"
    assert not (science / "results").exists()


def test_a_large_grid_needs_yes(toml):
    file, *_ = toml(SHORT + f"[grid]\nseed = {list(range(101))}\nsteps = {list(range(1, 101))}\n")
    with pytest.raises(ValueError, match="expands to 10,100 runs, more than 10,000: say --yes"):
        sweep.read_sweep(file)
    assert len(sweep.read_sweep(file, file.parent / "out", yes=True).runs) == 10_100


def test_notebook_parameters_are_those_of_the_profile(toml, project, monkeypatch):
    monkeypatch.setattr(plan, "checkout", lambda: project.parent)
    monkeypatch.setattr(sweep, "checkout", lambda: project.parent)
    file, *_ = toml(
        "notebook = '01'\nprofile = 'quick'\n[parameters]\nrate = 3\n[grid]\nsteps = [5, 6]\n"
    )
    run, _ = sweep.read_sweep(file, file.parent / "out").runs
    assert run.settings == {
        "notebook": "01_first",
        "profile": "quick",
        "parameters": {"steps": 5, "rate": 3.0, "label": "x", "nfes": [1, 2], "flag": True},
        "device": "cpu",
    }


# ---- what is refused

F = SHORT
N = "notebook = '05'\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("[train", ["grid.toml is not valid TOML"]),
        ("[grid]\nseed = [0]", ["must have notebook = ", "it has grid"]),
        (N + F + "[grid]\nseed = [0]", ["must have notebook"]),
        (F + "profile = 'quick'\n[grid]\nseed = [0]", ["must have notebook"]),
        (F + "trian = 1\n[grid]\nseed = [0]", ["must have notebook", "trian"]),
        (F + "parameters = 3\n[grid]\nseed = [0]", ["must be tables"]),
        (F + "[[grid]]\nseed = [0]", ["must be tables"]),
        (
            "run = 'science'\n[grid]\nseed = [0]",
            ["'science' must name a function", "module:function"],
        ),
        (
            "run = 'none.such:train'\n[grid]\nseed = [0]",
            ["must name a function", "No module named"],
        ),
        ("run = 'science:none'\n[grid]\nseed = [0]", ["must name a function", "'none'"]),
        (
            "run = 'science:other'\n[grid]\nsteps = [0]",
            ["parameter wrong must be an int, float", "it is None"],
        ),
        (
            "run = 'science:bare'\n[grid]\nseed = [0]",
            ["parameter lr has no default", "[parameters]", "[grid]"],
        ),
        (
            "run = 'science:bare'\n[parameters]\nlr = 1\n[grid]\nseed = [0, 'x']",
            ["seed must be a whole number, got 'x'"],
        ),
        ("notebook = '42'\n[grid]\nseed = [0]", ["unknown notebook: '42'", "05_training"]),
        (
            N + "profile = 'quik'\n[grid]\nseed = [0]",
            ["unknown profile: 'quik'", "smoke, quick"],
        ),
        ("notebook = 5\n[grid]\nseed = [0]", ["must be text"]),
        (
            N + "[grid]\nsede = [0]",
            ["unknown parameter of 05_training in grid.toml: 'sede' (did you mean 'seed'?)"],
        ),
        (N + "[grid]\ndevice = ['cpu']", ["'device' is set by --device"]),
        (F + "[grid]\ndevice = ['cpu']", ["'device' is set by --device"]),
        (
            N + "[parameters]\nsteps = '20'\n[grid]\nseed = [0]",
            ["steps must be a whole number, got '20'"],
        ),
        (N + "[grid]\nseed = [0, 1.5]", ["seed must be a whole number, got 1.5"]),
        (
            F + "[parameters]\nsteps = true\n[grid]\nseed = [0]",
            ["steps must be a whole number, got True"],
        ),
        (F + "[grid]\nlr = ['1']", ["lr must be a number, got '1'"]),
        (F + "[grid]\nnfes = [1, 2]", ["nfes must be a list like [1, 2], got 1"]),
        (F + "[grid]\nsede = [1]", ["unknown parameter of science:train", "'seed'?"]),
        (
            F + "[grid]\ndataset = ['spirla']",
            ["'spirla' (did you mean 'spiral'?)", "eight_gaussians"],
        ),
        ("run = 'science:constant'\n", ["constant is a int"]),
        ("run = 'broken:f'\n", ["ZeroDivisionError"]),
        ("run = 'science:typo'\n", ["'Itn'", "annotate them"]),
        ("run = 'science:chosen'\n[grid]\nsteps = [3]", ["'3'; there are 1, 2"]),
        (F + "[grid]\nseed = 3", ["seed in the grid must be a list of values, got 3"]),
        (F + "[grid]\nseed = []", ["expands to nothing"]),
        (F + "[grid]", ["expands to nothing"]),
        (F, ["expands to nothing"]),
        (
            F + f"[grid]\nseed = {list(range(101))}\nsteps = {list(range(1, 101))}",
            ["10,100 runs", "--yes"],
        ),
    ],
)
def test_wrong_file(toml, capfd, text, words):
    refused(capfd, toml(text), words)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--scheduler", "nonsense"], ["no scheduler answers at 'nonsense'", "dask scheduler"]),
        (["--scheduler", "none.json"], ["no scheduler answers at 'none.json'"]),
        (
            ["--scheduler", "tcp://127.0.0.1:1"],
            ["no scheduler answers at 'tcp://127.0.0.1:1'", "10 s"],
        ),
        (["--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], ["--workers"]),
        (["--workers", "-1"], ["--workers", "-1 is not in the range x>=0"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--device", "cuda:99"], ["cuda:99", "not available"]),
    ],
)
def test_wrong_options(toml, capfd, options, words):
    before = clients()
    refused(capfd, [*toml(EIGHT), *options], words)
    # a client of dask that is left over may be collected while the next one starts, and both then wait for ever
    assert clients() <= before


def clients() -> set[int]:
    """Those of dask that are in memory, closed or not."""
    kinds = ((id(thing), type(thing)) for thing in gc.get_objects())
    dask = "distributed.client"
    return {key for key, kind in kinds if (kind.__module__, kind.__name__) == (dask, "Client")}


def refused(capfd, arguments, words):
    folder = arguments[0].parent
    code, out, err = iflow(capfd, *arguments)
    assert (code, out) == (2, "") and err.startswith("iflow: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert [f.name for f in folder.iterdir()] == ["grid.toml"]


def test_a_missing_file_and_a_folder_of_something_else(toml, capfd, tmp_path):
    code, _, err = iflow(capfd, tmp_path / "none.toml")
    assert code == 2 and "cannot read" in err and err.count("\n") == 1
    file, *_ = toml(EIGHT)
    for name, content in (
        ("notes.txt", "mine"),
        ("manifest.json", '{"profile": "quick"}'),
    ):  # of `iflow reproduce`
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_text(content)
        code, _, err = iflow(capfd, file, "--out", tmp_path / "other")
        assert code == 2 and "holds other files and no earlier run" in err and err.count("\n") == 1
    code, _, err = iflow(capfd, file, "--out", file / "in")
    assert code == 2 and "cannot write to" in err and err.count("\n") == 1


# ---- what is kept (nothing is trained here)


@pytest.fixture
def counted(monkeypatch):
    """Runs that only note their seed; a seed in ``bad`` raises what is there."""
    done, bad = [], {}

    def run_point(settings, code):
        seed = settings["parameters"]["seed"]
        done.append(seed)
        if seed in bad:
            raise bad[seed]
        return {
            "rows": [{"seed": seed, "metric": "w2", "value": seed / 3}],
            "files": {},
            "seconds": 1.0,
        }

    monkeypatch.setattr(sweep, "run_point", run_point)
    return done, bad


def test_a_failed_run_is_said_and_the_others_go_on(toml, capfd, counted):
    done, bad = counted
    arguments = [*toml(SHORT + "[grid]\nseed = [0, 1, 2]\n"), "--workers", 0]
    bad[1] = FloatingPointError("the loss is\nnot finite")
    code, out, err = iflow(capfd, *arguments)
    assert code == 1 and done == [0, 1, 2] and states(arguments[2]) == ["ok", "failed", "ok"]
    assert err == "iflow: 1 of 3 runs failed; manifest.json says why\n"
    assert out.count("FloatingPointError: the loss is not finite\n") == 1
    assert "2 of 3 runs are done, 1 failed" in out
    bad.clear()
    assert iflow(capfd, *arguments)[0] == 0 and done == [0, 1, 2, 1]
    rows = pd.read_csv(arguments[2] / "results.csv")
    assert (
        list(rows.columns) == [*COLUMNS]
        and list(rows.seed) == [0, 1, 2]
        and list(rows.value) == [0, 1 / 3, 2 / 3]
    )
    assert list(rows.run_id) == ["seed=0", "seed=1", "seed=2"]


def test_what_is_unchanged_is_not_done_again(toml, capfd, counted, monkeypatch):
    done, _ = counted
    arguments = [*toml(SHORT + "[grid]\nseed = [0, 1]\n"), "--workers", 0]
    iflow(capfd, *arguments)
    toml(SHORT + "[grid]\nseed = [2, 1]\n")  # one new, one old; seed 0 is no longer asked for
    iflow(capfd, *arguments)
    assert done == [0, 1, 2] and list(table(arguments[2]).seed) == ["2", "1"]
    iflow(capfd, *arguments, "--fresh")
    assert done == [0, 1, 2, 2, 1]
    (key,) = (k for k in manifest(arguments[2])["runs"] if k.startswith("seed=2"))
    (arguments[2] / "runs" / f"{key}.json").write_text("{")  # damaged
    iflow(capfd, *arguments)
    assert done[5:] == [2]
    other = sweep.identity("science:train") | {"iflow_lib": "other code"}
    monkeypatch.setattr(sweep, "identity", lambda target: other)
    iflow(capfd, *arguments)
    assert done[6:] == [2, 1] and manifest(arguments[2])["code"] == other


def test_an_interrupted_sweep_keeps_what_has_ended(toml, capfd, counted):
    done, bad = counted
    arguments, bad[2] = (
        [*toml(SHORT + "[grid]\nseed = [0, 1, 2, 3]\n"), "--workers", 0],
        KeyboardInterrupt(),
    )
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (130, "") and "2 of 4 runs are done" in out
    assert manifest(arguments[2])["status"] == "interrupted" and states(arguments[2]) == [
        "ok",
        "ok",
        "not run",
        "not run",
    ]
    bad.clear()
    assert iflow(capfd, *arguments)[0] == 0 and done == [0, 1, 2, 2, 3]


def test_one_process_in_a_folder(toml, capfd, counted):
    from filelock import FileLock

    arguments = [*toml(SHORT + "[grid]\nseed = [0]\n"), "--workers", 0]
    arguments[2].mkdir()
    with FileLock(arguments[2] / ".lock"):
        code, _, err = iflow(capfd, *arguments)
    assert code == 2 and "already writing to" in err and err.count("\n") == 1 and not counted[0]


def test_a_worker_with_other_code_does_nothing(science):
    code = sweep.identity("science:train")
    assert code["science:train"] == provenance.sha256(science / "science.py")
    wrong = code | {"iflow_lib": "0" * 64, "torch": "1.0"}
    with pytest.raises(
        sweep.RunError,
        match=r"has another iflow_lib, another torch \(.+, here it is 1.0\): install",
    ):
        sweep.run_point({"run": "science:train", "parameters": {}, "device": "cpu"}, wrong)


def test_settings_that_make_no_sense_are_skipped(toml, capfd):
    grid = "[grid]\npath = ['line', 've']\nnfes = [[1, 2], [1]]\n"
    arguments = [*toml(SHORT + "[parameters]\nsteps = 1\n" + grid), "--workers", 0]
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (0, "") and states(arguments[2]) == ["skipped", "ok", "ok", "ok"]
    assert "skipped path=line/nfes=[1, 2]: a line is sampled in one step" in out
    assert "3 of 4 runs are done, 0 failed, 1 skipped" in out
    grid = "[grid]\npath = ['line']\nnfes = [[2]]\n"
    assert iflow(capfd, *toml(SHORT + grid), "--workers", 0)[0] == 1  # nothing was done


def test_a_bad_row_fails_its_run_and_no_other(toml, capfd):
    kinds = ["none", "empty", "row", "number", "complex", "run_id", "array", "exit", "good"]
    arguments = [*toml(f"run = 'science:ends'\n[grid]\nkind = {kinds}\n"), "--workers", 0]
    code, out, err = iflow(capfd, *arguments)
    assert code == 1 and states(arguments[2]) == ["failed"] * 8 + ["ok"]
    assert "kind=empty: the function returned no rows" in out
    assert err.count("\n") == 1 and "SystemExit(3)" in out and "list of dicts" in out


def test_a_module_beside_the_sweep_file_is_found_from_there(toml, capfd, tmp_path):
    (tmp_path / "beside.py").write_text("def train(seed=0): return []")
    code, _, err = iflow(capfd, *toml("run = 'beside:train'\n[grid]\nseed = [0]\n"))
    assert code == 2 and f"beside lies beside grid.toml: start it there, cd {tmp_path}" in err
    assert err.count("\n") == 1


def test_what_a_function_imports_is_part_of_its_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    package = tmp_path / "swept"
    package.mkdir()
    (tmp_path / "swept_helper.py").write_text("NUMBER = 3\n")
    (package / "near.py").write_text("import json\nfrom swept_helper import NUMBER\n")
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("from .near import NUMBER\n\ndef f(seed: int = 0): pass\n")
    codes = []
    for number in (3, 4):
        (tmp_path / "swept_helper.py").write_text(f"NUMBER = {number}\n")
        codes.append(sweep.identity.__wrapped__("swept.main:f"))
    assert {"swept.main:f", "swept", "swept.near", "swept_helper"} < codes[0].keys()
    changed = [name for name, value in codes[0].items() if codes[1][name] != value]
    assert changed == ["swept_helper"] and "json" not in codes[0]


def test_rows_are_checked_and_one_thread_does_the_work(science, monkeypatch):
    seen = []

    def function(value: int = 1, device: str = "auto"):
        seen.append((torch.get_num_threads(), device))
        return (
            [{"metric": "w2", "value": value, "wrong": 1}]
            if value > 1
            else [{"metric": "w2", "value": value}]
        )

    monkeypatch.setattr(sweep, "load_function", lambda name: function)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    settings = {"run": "science:train", "parameters": {}, "device": "cpu"}
    try:
        done = sweep.run_point(settings, {})
        with pytest.raises(ValueError, match="unknown column 'wrong'"):
            sweep.run_point(settings | {"parameters": {"value": 2}}, {})
        assert torch.get_num_threads() == 2 and seen == [(1, "cpu")] * 2
    finally:
        torch.set_num_threads(before)
    assert tuple(done["rows"][0]) == COLUMNS and done["rows"][0]["value"] == 1


def test_a_run_that_kills_its_workers_is_said_in_a_line():
    from distributed import KilledWorker

    error = KilledWorker("run_point-1", None, 3)
    assert (
        sweep._line(error)
        == "every worker that tried it died, 4 in all; often that is for want of memory"
    )


# ---- workers, real trainings, and kill -9


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The table of ``EIGHT`` made in one process without dask."""
    folder = tmp_path_factory.mktemp("truth")
    (folder / "grid.toml").write_text(EIGHT)
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["sweep", str(folder / "grid.toml"), "--workers", "0", "--out", str(folder / "out")]
        )
    assert end.value.code == 0
    found = table(folder / "out")
    assert len(found) == 8 * 2 and found.value.nunique() == 16
    return found


def ended(folder: Path) -> int:
    return len(list((folder / "runs").glob("*.json")))


class KillAWorker(threading.Thread):
    """Kills one of the processes that ``find`` gives when the second run has ended."""

    def __init__(self, folder: Path, find):
        super().__init__(daemon=True)
        self.folder, self.find, self.done_then = folder, find, None
        self.start()

    def run(self):
        while ended(self.folder) < 2:
            time.sleep(0.02)
        self.find()[0].kill()
        self.done_then = ended(self.folder)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]


@linux
def test_a_worker_that_is_killed_is_replaced(toml, capfd, truth):
    arguments, me = [*toml(EIGHT), "--workers", 2], psutil.Process()
    killer = KillAWorker(arguments[2], lambda: workers_of(me))
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (0, ""), out + err
    assert 2 <= killer.done_then < 8 and states(arguments[2]) == ["ok"] * 8
    assert table(arguments[2]).equals(truth)
    assert manifest(arguments[2])["cluster"] == {"workers": 2, "threads": 2} and not workers_of(me)


@linux
def test_a_sweep_that_is_killed_goes_on(toml, capfd, truth, tmp_path):
    arguments = toml(EIGHT)
    process = subprocess.Popen(
        [sys.executable, "-m", "iflow_runner.cli", "sweep", *map(str, arguments), "--workers", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while ended(arguments[2]) < 2 and process.poll() is None:
            time.sleep(0.02)
        workers = workers_of(psutil.Process(process.pid))
        process.kill()
        assert process.wait() == -signal.SIGKILL and workers
        assert not psutil.wait_procs(workers, timeout=20)[1]  # they notice
    finally:
        process.kill()
    before = {file: file.stat().st_mtime_ns for file in (arguments[2] / "runs").iterdir()}
    assert 2 <= len(before) < 8 and manifest(arguments[2])["status"] == "running"
    assert (arguments[2] / ".workers").is_dir()  # of the killed one
    code, out, _ = iflow(capfd, *arguments, "--workers", 1)
    assert code == 0, out
    assert {file: file.stat().st_mtime_ns for file in before} == before and ended(arguments[2]) == 8
    assert not (arguments[2] / ".workers").exists()
    assert table(arguments[2]).equals(truth)


@pytest.fixture
def scheduler(tmp_path, science):
    """Address of a ``dask scheduler`` on loopback, and its two ``dask worker`` processes, the first with two threads."""
    started, file = [], tmp_path / "scheduler.json"

    def start(*arguments):
        with open(tmp_path / "dask.log", "a") as log:
            started.append(
                psutil.Popen(
                    [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                    cwd=science,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        deadline = time.monotonic() + 60
        while not file.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        for threads in "21":
            start(
                "worker",
                "--scheduler-file",
                str(file),
                "--host",
                "127.0.0.1",
                "--nthreads",
                threads,
            )
        yield json.loads(file.read_text())["address"], started[1:]
    finally:
        children = [child for process in started for child in process.children(recursive=True)]
        for process in [*started, *children]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(started, timeout=20)


@pytest.mark.long
@linux
def test_a_scheduler_started_by_hand(toml, capfd, truth, scheduler, monkeypatch):
    address, processes = scheduler
    arguments = [*toml(EIGHT), "--scheduler", address]
    killer = KillAWorker(arguments[2], lambda: workers_of(processes[0]))
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (0, ""), out + err
    assert 2 <= killer.done_then < 8 and states(arguments[2]) == ["ok"] * 8
    assert table(arguments[2]).equals(truth)
    assert manifest(arguments[2])["cluster"]["workers"] in (1, 2)  # that were there at the start
    other = sweep.identity("science:train") | {"iflow_lib": "0" * 64}
    monkeypatch.setattr(sweep, "read_sweep", with_code(sweep.read_sweep, other))
    code, out, err = iflow(
        capfd, arguments[0], "--scheduler", address, "--out", arguments[2].parent / "new"
    )
    assert (
        code == 2
        and "has another iflow_lib: install the same there and start it again" in err
        and err.count("\n") == 1
    )
    assert not (arguments[2].parent / "new").exists()


def with_code(read, code):
    return lambda *given, **named: dataclasses.replace(read(*given, **named), code=code)


RECORDS = """
assert seed != 1, "one is unlucky"
import os
os.makedirs(f"{out_dir}/tables"), os.makedirs(f"{out_dir}/figures")
with open(f"{out_dir}/tables/01_first.csv", "w") as file:
    file.write("HEAD\\n" + "01_first" + "," * 11 + f"w2,{seed / 3},,,\\n")
with open(f"{out_dir}/figures/01_first-line.png", "wb") as file:
    file.write(b"a picture")
""".replace("HEAD", ",".join(COLUMNS))


def notebook_project(folder: Path) -> None:
    """A checkout whose notebook records a row and a figure, and fails with seed 1."""
    (folder / "notebooks").mkdir()
    (folder / "results" / "reference").mkdir(parents=True)
    (folder / "notebooks" / "profiles.toml").write_text("[quick.'01_first']\n")
    parameters = 'seed: int = 0\ndevice: str = "auto"\nout_dir: str = ""'
    write_notebook(folder / "notebooks" / "01_first.ipynb", RECORDS, parameters=parameters)


def check_notebook_sweep(out: Path, seeds: list[int]) -> None:
    rows = pd.read_csv(out / "results.csv")
    assert list(rows.run_id) == [f"01_first/seed={seed}" for seed in seeds]
    assert list(rows.value) == [seed / 3 for seed in seeds]
    keys = [key for key, run in manifest(out)["runs"].items() if run["status"] == "ok"]
    assert sorted(p.stem for p in (out / "notebooks").iterdir()) == sorted(keys)
    assert all(
        (out / "figures" / key / "01_first-line.png").read_bytes() == b"a picture" for key in keys
    )


def test_notebooks(toml, capfd, tmp_path, monkeypatch):
    notebook_project(tmp_path)
    for module in (plan, sweep):
        monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    sweep.identity.cache_clear()
    arguments = [*toml("notebook = '01'\n[grid]\nseed = [1, 2]\n"), "--workers", 0]
    code, out, err = iflow(capfd, *arguments)
    assert code == 1 and states(arguments[2]) == ["failed", "ok"]
    assert err.count("\n") == 1 and "AssertionError: one is unlucky" in out
    assert "running" not in out
    check_notebook_sweep(arguments[2], [2])


@pytest.mark.long
@linux
def test_notebooks_on_workers(tmp_path):
    """In a checkout of its own, since workers are processes that no monkeypatch reaches."""
    for package in ("iflow_lib", "iflow_runner"):
        ignored = shutil.ignore_patterns("assets", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    notebook_project(tmp_path)
    (tmp_path / "seeds.toml").write_text("notebook = '01'\n[grid]\nseed = [0, 1, 2]\n")
    done = subprocess.run(
        [sys.executable, "-m", "iflow_runner.cli", "sweep", "seeds.toml", "--workers", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    out = tmp_path / "results" / "runs" / "sweep-seeds"
    assert done.returncode == 1 and states(out) == ["ok", "failed", "ok"], done.stderr
    assert done.stderr.count("\n") == 1 and "AssertionError: one is unlucky" in done.stdout
    check_notebook_sweep(out, [0, 2])


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(sweep.read_sweep(ROOT / "experiments" / "sweep.toml", tmp_path / "new").runs) == 16
    defaults, _ = sweep.function_parameters("experiments.plane_sweep:train")
    assert set(defaults) == set(inspect.signature(plane_sweep.train).parameters)
