"""The sweep: its grid, what it refuses, and that neither dead workers nor a dead sweep change the table."""

import importlib.util
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
from conftest import write_notebook

from iflow_runner import cli, grid, sweep
from iflow_runner.recorder import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
SHORT = "[train]\nsteps = 30\nhidden = 16\nlayers = 2\nbatch_size = 64\ndraws = 1\nnfes = [1]\n"
EIGHT = (
    SHORT
    + "[grid]\nobjective = ['IntegralIdentity', 'X0Regression']\npath = ['PoissonFlow']\nseed = [0, 1, 2, 3]\n"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux has them")


def iflow(capfd, *arguments):
    """(exit code, stdout, stderr) of ``iflow sweep``, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", *map(str, arguments)])
    return end.value.code, *capfd.readouterr()


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
    return [run.label for run in grid.prepare(file, file.parent / "out", **options).runs]


def test_every_point_once_in_order(toml):
    file, *_ = toml(
        "[train]\nseed = 5\nsteps = 7\n[[grid]]\npath = ['RectifiedFlow', 've']\nseed = [1, 0]\n"
        "[[grid]]\npath = ['rectified', 'PoissonFlow']\nseed = [0]\n"
    )
    assert labels(file) == [
        "path=rectified/seed=1",
        "path=rectified/seed=0",
        "path=ve/seed=1",
        "path=ve/seed=0",
        "path=pfgmpp/seed=0",
    ]
    runs = grid.prepare(file, file.parent / "out").runs
    assert len({run.key for run in runs}) == 5 and all(
        run.settings["train"]["steps"] == 7 for run in runs
    )
    assert grid.prepare(file, file.parent / "out", device="cuda").runs[0].key != runs[0].key


def test_what_makes_no_sense_is_left_out_and_counted(toml):
    file, *_ = toml(
        "[train]\n[grid]\nobjective = ['FlowMatching', 'IntegralIdentity', 'X0Regression']\n"
        "anchor = ['none', 'self', 'per_example']\nnfes = [[1], [16]]\n"
    )
    found = grid.prepare(file, file.parent / "out")
    assert len(found.runs) == 2 + 2 + 6  # no jumps of an integral at 16 calls
    assert found.notes == [
        "skipped 2 of 18: FlowMatching has no anchor 'self'",
        "skipped 2 of 18: FlowMatching has no anchor 'per_example'",
        "skipped 2 of 18: IntegralIdentity is not sampled with nfes = [16]",
        "skipped 2 of 18: IntegralIdentity has no anchor 'per_example'",
    ]


def test_a_large_grid_needs_yes(toml):
    file, *_ = toml(f"[train]\n[grid]\nseed = {list(range(101))}\nsteps = {list(range(1, 101))}\n")
    with pytest.raises(ValueError, match="expands to 10,100 runs, more than 10,000: say --yes"):
        grid.prepare(file)
    assert len(grid.prepare(file, file.parent / "out", yes=True).runs) == 10_100


def test_every_kind_of_training_can_be_named():
    from iflow_lib import zoo as studies

    assert {*grid.kinds().values()} == {*studies.KINDS}
    assert {*grid._PATHS.values()} == {*studies.PATH_NAMES}


def test_notebook_parameters_are_those_of_the_profile(toml):
    file, *_ = toml(
        "notebook = '05'\nprofile = 'smoke'\n[parameters]\nn = 50\n[grid]\nseed = [3]\n"
    )
    (run,) = grid.prepare(file, file.parent / "out").runs
    profile = {
        "seed": 3,
        "seeds": 2,
        "steps": 20,
        "hidden": 64,
        "batch_size": 256,
        "trials": 2,
        "trial_steps": 10,
        "n": 50,
    }
    assert run.settings == {
        "notebook": "05_training",
        "profile": "smoke",
        "parameters": profile,
        "device": "cpu",
    }


# ---- what is refused


@pytest.mark.parametrize(
    "text, words",
    [
        ("[train", ["grid.toml is not valid TOML"]),
        ("[grid]\nseed = [0]", ["must have notebook = ", "it has grid"]),
        ("notebook = '05'\n[train]\n[grid]\nseed = [0]", ["must have notebook"]),
        ("trian = 1\n[train]\n[grid]\nseed = [0]", ["must have notebook", "trian"]),
        ("train = 3\n[grid]\nseed = [0]", ["must be tables"]),
        ("notebook = '42'\n[grid]\nseed = [0]", ["unknown notebook '42'", "05_training"]),
        (
            "notebook = '05'\nprofile = 'quik'\n[grid]\nseed = [0]",
            ["unknown profile 'quik'", "smoke, quick"],
        ),
        ("notebook = 5\n[grid]\nseed = [0]", ["must be text"]),
        (
            "notebook = '05'\n[grid]\nsede = [0]",
            ["unknown parameter 'sede' (did you mean 'seed'?)", "05_training has seed"],
        ),
        ("notebook = '05'\n[grid]\ndevice = ['cpu']", ["it is set by --device"]),
        (
            "notebook = '05'\n[parameters]\nsteps = '20'\n[grid]\nseed = [0]",
            ["steps must be a whole number, got '20'"],
        ),
        ("notebook = '05'\n[grid]\nseed = [0, 1.5]", ["seed must be a whole number, got 1.5"]),
        ("[train]\nsteps = true\n[grid]\nseed = [0]", ["steps must be a whole number, got True"]),
        ("[train]\n[grid]\nsteps = [10, 0]", ["steps must be at least 1, got 0"]),
        ("[train]\n[grid]\nseed = [-1]", ["seed must be at least 0, got -1"]),
        ("[train]\n[grid]\nlr = [0]", ["lr must be more than 0"]),
        ("[train]\n[grid]\nnfes = [1, 2]", ["nfes must be a list like [1, 2], got 1"]),
        ("[train]\nnfes = []\n[grid]\nseed = [0]", ["nfes must be at least 1, got []"]),
        (
            "[train]\n[grid]\nobjective = ['FlowMatchin']",
            ["no 'FlowMatchin' (did you mean 'FlowMatching'?)", "X0Regression"],
        ),
        ("[train]\n[grid]\npath = ['line']", ["path has no 'line'", "RectifiedFlow"]),
        ("[train]\n[grid]\ndataset = ['emoji']", ["dataset has no 'emoji'", "checkerboard"]),
        (
            "[train]\n[grid]\nanchor = ['selv']",
            ["anchor has no 'selv' (did you mean 'self'?)", "per_example"],
        ),
        ("[train]\n[grid]\nseed = 3", ["seed in the grid must be a list of values, got 3"]),
        ("[train]\n[grid]\nseed = []", ["expands to nothing"]),
        ("[train]\n[grid]", ["expands to nothing"]),
        ("[train]", ["expands to nothing"]),
        (
            "[train]\n[grid]\nanchor = ['self']\nobjective = ['FlowMatching']",
            ["to nothing: skipped 1 of 1: FlowMatching"],
        ),
        (
            f"[train]\n[grid]\nseed = {list(range(101))}\nsteps = {list(range(1, 101))}",
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
        (["--workers", "-1"], ["at least 0"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--device", "cuda:99"], ["cuda:99", "not available"]),
    ],
)
def test_wrong_options(toml, capfd, options, words):
    refused(capfd, [*toml(EIGHT), *options], words)


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
        assert (
            code == 2 and "holds other files and no earlier sweep" in err and err.count("\n") == 1
        )
    code, _, err = iflow(capfd, file, "--out", file / "in")
    assert code == 2 and "cannot write to" in err and err.count("\n") == 1


# ---- what is kept (nothing is trained here)


@pytest.fixture
def counted(monkeypatch):
    """Runs that only note their seed; a seed in ``bad`` raises what is there."""
    done, bad = [], {}

    def run_point(settings, code):
        seed = settings["train"]["seed"]
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
    arguments = [*toml("[train]\n[grid]\nseed = [0, 1, 2]\n"), "--workers", 0]
    bad[1] = FloatingPointError("the loss is\nnot finite")
    code, out, err = iflow(capfd, *arguments)
    assert code == 1 and done == [0, 1, 2] and states(arguments[2]) == ["ok", "failed", "ok"]
    assert err.startswith("iflow: seed=1-") and err.endswith(
        " failed: FloatingPointError: the loss is not finite\n"
    )
    assert err.count("\n") == 1 and "2 of 3 runs are done, 1 failed" in out
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
    arguments = [*toml("[train]\n[grid]\nseed = [0, 1]\n"), "--workers", 0]
    iflow(capfd, *arguments)
    toml("[train]\n[grid]\nseed = [2, 1]\n")  # one new, one old; seed 0 is no longer asked for
    iflow(capfd, *arguments)
    assert done == [0, 1, 2] and list(table(arguments[2]).seed) == ["2", "1"]
    iflow(capfd, *arguments, "--fresh")
    assert done == [0, 1, 2, 2, 1]
    (key,) = (k for k in manifest(arguments[2])["runs"] if k.startswith("seed=2"))
    (arguments[2] / "runs" / f"{key}.json").write_text("{")  # damaged
    iflow(capfd, *arguments)
    assert done[5:] == [2]
    other = sweep.identity() | {"iflow_lib": "other code"}
    monkeypatch.setattr(grid, "identity", lambda notebook: other)
    iflow(capfd, *arguments)
    assert done[6:] == [2, 1] and manifest(arguments[2])["code"] == other


def test_an_interrupted_sweep_keeps_what_has_ended(toml, capfd, counted):
    done, bad = counted
    arguments, bad[2] = (
        [*toml("[train]\n[grid]\nseed = [0, 1, 2, 3]\n"), "--workers", 0],
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

    arguments = [*toml("[train]\n[grid]\nseed = [0]\n"), "--workers", 0]
    arguments[2].mkdir()
    with FileLock(arguments[2] / ".lock"):
        code, _, err = iflow(capfd, *arguments)
    assert (
        code == 2 and "another process writes to" in err and err.count("\n") == 1 and not counted[0]
    )


def test_a_worker_with_other_code_does_nothing():
    code = sweep.identity()
    with pytest.raises(
        sweep.RunError,
        match=r"has another iflow_lib, another torch \(.+, here it is 1.0\): install",
    ):
        sweep.run_point(
            {"train": {}, "device": "cpu"}, code | {"iflow_lib": "0" * 64, "torch": "1.0"}
        )


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
    assert (
        len(found) == 4 + 4 * 2 and found.value.nunique() == 12
    )  # the recipe has its spread beside W2
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
    assert (code, err) == (0, ""), err
    assert 2 <= killer.done_then < 8 and states(arguments[2]) == ["ok"] * 8
    assert table(arguments[2]).equals(truth)
    assert manifest(arguments[2])["cluster"]["kind"] == "LocalCluster" and not workers_of(me)


@linux
def test_a_sweep_that_is_killed_goes_on(toml, capfd, truth, tmp_path):
    arguments = toml(EIGHT)
    process = subprocess.Popen(
        [sys.executable, "-m", "iflow_runner.cli", "sweep", *map(str, arguments), "--workers", "1"],
        cwd=ROOT,
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
    assert iflow(capfd, *arguments, "--workers", 1)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before and ended(arguments[2]) == 8
    assert not (arguments[2] / ".workers").exists()
    assert table(arguments[2]).equals(truth)


@pytest.fixture
def scheduler(tmp_path):
    """Address of a ``dask scheduler`` on loopback, and its two ``dask worker`` processes, the first with two threads."""
    started, file = [], tmp_path / "scheduler.json"

    def start(*arguments):
        with open(tmp_path / "dask.log", "a") as log:
            started.append(
                psutil.Popen(
                    [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                    cwd=tmp_path,
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


@linux
def test_a_scheduler_started_by_hand(toml, capfd, truth, scheduler, monkeypatch):
    address, processes = scheduler
    arguments = [*toml(EIGHT), "--scheduler", address]
    killer = KillAWorker(arguments[2], lambda: workers_of(processes[0]))
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (0, ""), err
    assert 2 <= killer.done_then < 8 and states(arguments[2]) == ["ok"] * 8
    assert table(arguments[2]).equals(truth)
    assert manifest(arguments[2])["cluster"]["kind"] == "scheduler"
    other = sweep.identity() | {"iflow_lib": "0" * 64}
    monkeypatch.setattr(grid, "identity", lambda notebook: other)
    code, out, err = iflow(
        capfd, arguments[0], "--scheduler", address, "--out", arguments[2].parent / "new"
    )
    assert (
        code == 2
        and "has another iflow_lib: install the same there and start it again" in err
        and err.count("\n") == 1
    )
    assert not (arguments[2].parent / "new").exists()


RECORDS = """
assert seed != 1, "one is unlucky"
import os
os.makedirs(f"{out_dir}/tables"), os.makedirs(f"{out_dir}/figures")
with open(f"{out_dir}/tables/01_first.csv", "w") as file:
    file.write("HEAD\\n" + "01_first" + "," * 11 + f"w2,{seed / 3},,,\\n")
with open(f"{out_dir}/figures/01_first-line.png", "wb") as file:
    file.write(b"a picture")
""".replace("HEAD", ",".join(COLUMNS))


@linux
def test_notebooks_on_workers(tmp_path):
    """In a checkout of its own, since workers are processes that no monkeypatch reaches."""
    (tmp_path / "iflow_lib").mkdir()
    for file in (ROOT / "iflow_lib").glob("*.py"):
        shutil.copy(file, tmp_path / "iflow_lib")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "results" / "reference").mkdir(parents=True)
    (tmp_path / "notebooks" / "profiles.toml").write_text("[quick.'01_first']\n")
    write_notebook(
        tmp_path / "notebooks" / "01_first.ipynb",
        RECORDS,
        parameters='seed: int = 0\ndevice: str = "auto"\nout_dir: str = ""',
    )
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
    assert done.stderr.count("\n") == 1 and "AssertionError: one is unlucky" in done.stderr
    rows = pd.read_csv(out / "results.csv")
    assert list(rows.run_id) == ["01_first/seed=0", "01_first/seed=2"] and list(rows.value) == [
        0,
        2 / 3,
    ]
    keys = [key for key, run in manifest(out)["runs"].items() if run["status"] == "ok"]
    assert sorted(p.stem for p in (out / "notebooks").iterdir()) == sorted(keys)
    assert all(
        (out / "figures" / key / "01_first-line.png").read_bytes() == b"a picture" for key in keys
    )


def test_the_example_and_its_benchmark(tmp_path, monkeypatch):
    assert len(grid.prepare(ROOT / "benchmarks" / "sweep.toml", tmp_path / "new").runs) == 16
    (tmp_path / "tiny.toml").write_text(SHORT + "[grid]\nseed = [0]\n")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = importlib.util.spec_from_file_location(
        "benchmark_of_sweep", ROOT / "benchmarks" / "sweep.py"
    )
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "sweep.py",
            "--repetitions",
            "1",
            "--workers",
            "0",
            "--out",
            str(tmp_path),
            "--file",
            str(tmp_path / "tiny.toml"),
        ],
    )
    benchmark.main()
    found = pd.read_csv(tmp_path / "sweep.csv")
    assert list(found.ratio) == [1] and list(found.runs) == [1] and found.seconds[0] > 0
    assert json.loads((tmp_path / "sweep.manifest.json").read_text())["sweep"]["grid"] == {
        "seed": [0]
    }
