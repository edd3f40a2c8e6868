"""The main job killed, limited, continued, and told what has changed."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pandas as pd
import psutil
import pytest
import rich.console
from conftest import results_of as out_of
from conftest import run, write_notebook
from exact import one_line

from iflow_runner import cli, execute, kernel, plan, progress
from iflow_runner.plan import make_plan

posix = pytest.mark.skipif(os.name != "posix", reason="kills by signals")
#: trains for a second or two, with checkpoints all the time, and records what came out
TRAINS = """
import torch, iflow_lib as ifl
from iflow_runner.recorder import Recorder
record = Recorder(NAME, out_dir)
torch.manual_seed(0)
model = ifl.FlowMap(ifl.MLP(dim=2, hidden=16, layers=2), ifl.RectifiedFlow())
config = ifl.TrainConfig(steps=STEPS, batch_size=64, device="cpu", progress=False, checkpoint_minutes=1e-3,
                         out_dir=record.checkpoint_dir("model"))
run = ifl.fit(model, ifl.FlowMatching(), torch.randn(256, 2), config, resume="auto")
"""
#: records a row, without the library
RECORDED = """
from iflow_runner.recorder import Recorder
record = Recorder("01_first", out_dir)
record.rows([{"dataset": "x", "method": "map", "metric": "loss", "value": 1}])
record.save()
"""
#: counts on from where an earlier attempt had come
COUNTS = """
import pathlib, time
from iflow_runner.recorder import Recorder
folder = pathlib.Path(Recorder(NAME, out_dir).checkpoint_dir("model"))
folder.mkdir(parents=True, exist_ok=True)
step = max((int(file.name) for file in folder.iterdir()), default=0)
while True:
    step += 1
    (folder / str(step)).touch()
    time.sleep(0.05)
"""
RECORDS = """
record.rows([{"dataset": "x", "method": "map", "metric": "loss", "value": v} for v in run.history.loss])
record.save()
"""


def trains(file, steps: int) -> None:
    trains = TRAINS.replace("STEPS", str(steps)).replace("NAME", repr(file.stem))
    write_notebook(file, trains, RECORDS)


@pytest.fixture
def started():
    """started(folder): the job in a process of its own. None of them outlives the test."""
    processes = []

    def start(folder) -> subprocess.Popen:
        code = (
            # a shell that starts jobs in the background tells them to ignore Ctrl-C
            "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from iflow_runner.execute import reproduce\n"
            "from iflow_runner.plan import make_plan\n"
            f"sys.exit(reproduce(make_plan(folder={str(folder)!r}), jobs=2)['status'] != 'ok')"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    """Wait until a condition holds, as long as the process is there."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


# ---- killed and continued


def of(folder) -> list[psutil.Process]:
    """The processes of all notebooks at work in the folder of a run."""
    return [p for work in (folder / execute.WORK).glob("*_*") for p in kernel.processes(work)]


@pytest.mark.long
@posix
def test_killed_twenty_times_and_continued_is_the_undisturbed_run(project, started):
    names = ["01_first", "02_second", "03_third"]
    trains(project / "01_first.ipynb", 1000)
    trains(project / "02_second.ipynb", 2000)
    write_notebook(
        project / "03_third.ipynb",
        "import csv, os\nfile = f'{out_dir}/reads/02_second.csv'",
        """
from iflow_runner.recorder import Recorder
record = Recorder("03_third", out_dir)
record.rows([{"metric": "n", "value": len(list(csv.DictReader(open(file))))}])
record.save()""",
        iflow={"reads": ["02_second"]},
    )
    (project / "profiles.toml").write_text("[quick]\n")
    out, rng, kills, ended = out_of(project), random.Random(0), 0, True

    def table():
        return pd.read_csv(out / "results.csv").drop(columns="seconds")

    assert started(project).wait(120) == 0
    whole = table()
    assert len(whole) == 20 + 40 + 1
    while kills < 20 or not ended:
        if ended:  # at first, and where it ended before the last kill: everything is to be done
            assert table().equals(whole)
            for name in names:
                (out / "notebooks" / f"{name}.ipynb").unlink()
        process = started(project)
        try:
            assert process.wait(rng.uniform(0.2, 5) if kills < 20 else 120) == 0
            ended = True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, ended = kills + 1, False
            json.loads((out / "manifest.json").read_text())  # whole at every moment
    assert table().equals(whole)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "ok" and not (out / ".unfinished").exists()
    # not p.cmdline(): it raises an error for a stranger's process that has just ended
    lines = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(out) in " ".join(line)]


@pytest.mark.long
@posix
def test_killed_with_two_at_work_both_go_on(project, started):
    """Killed in the middle of two trainings: what had ended is not run again, both trainings go on."""
    (project / "profiles.toml").write_text("[quick]\n")
    write_notebook(project / "00_zeroth.ipynb", "1 + 1")
    names = ["01_first", "02_second"]
    for name in names:
        write_notebook(project / f"{name}.ipynb", COUNTS.replace("NAME", repr(name)))
    out, process = out_of(project), started(project)
    saved = {n: out / execute.WORK / n / "out" / ".training" / "model" for n in names}

    def steps(name: str) -> list[int]:
        return [int(file.name) for file in saved[name].glob("[0-9]*")]

    wait_for(lambda: all(steps(name) for name in names), process)
    kernels = of(out)
    assert len(kernels) == 2
    for orphan in kernels:
        orphan.suspend()  # it cannot notice that its parent has gone
    process.send_signal(signal.SIGKILL)
    process.wait()
    zeroth = (out / "notebooks" / "00_zeroth.ipynb").stat().st_mtime_ns
    assert [state for state, _ in states(project).values()] == ["unchanged", *["would go on"] * 2]
    reached = {name: max(steps(name)) for name in names}
    process = started(project)
    for name in names:
        before = set(steps(name))
        wait_for(lambda: set(steps(name)) - before, process)  # noqa: B023
        assert min(set(steps(name)) - before) > reached[name] > 0
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in kernels)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert (out / "notebooks" / "00_zeroth.ipynb").stat().st_mtime_ns == zeroth
    manifest = json.loads((out / "manifest.json").read_text())
    assert [e["status"] for e in manifest["notebooks"].values()] == ["ok", *["interrupted"] * 2]
    assert manifest["status"] == "interrupted" and not of(out)
    assert [state for state, _ in states(project).values()] == ["unchanged", *["would go on"] * 2]


@posix
def test_children_of_a_kernel_that_died_with_its_runner_are_found(project, tmp_path, started):
    """The session of the kernel outlives it, and its number was kept."""
    file = tmp_path / "child"
    write_notebook(
        project / "01_first.ipynb",
        f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(file)!r}, "w").write(str(child.pid))
time.sleep(600)""",
    )
    (project / "profiles.toml").write_text("[quick]\n")
    (project / "02_second.ipynb").rename(project / "02_second")
    process = started(project)
    wait_for(lambda: file.is_file() and file.read_text(), process)
    child = psutil.Process(int(file.read_text()))
    for one in (psutil.Process(process.pid), child.parent()):
        one.kill()
        one.wait()
    assert child.is_running() and of(out_of(project)) == [child]
    write_notebook(project / "01_first.ipynb", "1 + 1")
    assert run(project)["status"] == "ok"
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    # the number of a session that is over may go to another process: that is left alone
    work = tmp_path / "work"
    work.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for number in (os.getsid(0), gone.pid):
        (work / "sessions.json").write_text(json.dumps([[number, 1.0]]))
        assert not list(kernel._sessions(work)) and not kernel.processes(work)


def test_one_that_had_ended_when_it_was_killed_is_taken_in(project, monkeypatch):
    """The moment between a notebook's end and the moving of its files."""
    write_notebook(project / "01_first.ipynb", RECORDED)

    def killed(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(execute._Run, "install", killed)
        with pytest.raises(MemoryError):
            run(project, "01")
    assert (out_of(project) / execute.WORK / "01_first" / "entry.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(execute, "run_notebook", killed)
        with pytest.raises(MemoryError):  # of the second notebook, and only of that
            run(project)
    manifest = run(project, "01")
    assert manifest["status"] == "ok"
    assert (
        manifest["notebooks"]["01_first"]["seconds"] > 0
        and len(pd.read_csv(out_of(project) / "results.csv")) == 1
    )


# ---- several at once


def test_jobs_run_at_once_and_change_no_result(project, monkeypatch):
    names = [f"{i:02d}_notebook" for i in (3, 4, 5)]
    for i, name in enumerate(names):
        write_notebook(
            project / f"{name}.ipynb",
            f"""
from iflow_runner.recorder import Recorder
import os, time
record = Recorder({name!r}, out_dir)
record.rows([{{"metric": "threads", "value": int(os.environ["OMP_NUM_THREADS"])}},
             {{"metric": "sum", "value": sum(x**0.5 for x in range({i + 9}))}}])
record.save()
print("at", time.time())
time.sleep(1)
print("at", time.time())""",
            iflow={"reads": [names[0]] if i == 2 else []},
        )
    tables = []
    for number in (1, 3):
        assert run(project, *names, jobs=number, fresh=True)["status"] == "ok"
        tables.append((out_of(project) / "results.csv").read_text())
        texts = [(out_of(project) / "notebooks" / f"{name}.ipynb").read_text() for name in names]
        times = [[float(t) for t in re.findall(r"at (\d+\.\d+)", text)] for text in texts]
        (begin_3, end_3), (begin_4, end_4), (begin_5, _) = times
        assert (begin_4 < end_3 and begin_3 < end_4) == (number > 1)
        assert begin_5 > end_3  # it reads the other's table
    assert tables[0] == tables[1]
    table = pd.read_csv(out_of(project) / "results.csv")
    assert list(table.run_id) == [name for name in names for _ in range(2)]
    assert set(table.value[table.metric == "threads"]) == {1}
    tasks = make_plan(folder=project, make=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(2**33))
    assert execute.default_jobs(tasks) == 4
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(2**32 + 2**31))
    assert execute.default_jobs(tasks) == 3
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(2**20))
    assert execute.default_jobs(tasks) == 1


@dataclass
class Memory:
    available: int
    total: int = 2**34


# ---- limited in time


@posix
def test_a_time_limit_stops_the_kernel_and_all_its_children(project, tmp_path):
    pids = tmp_path / "pids"
    write_notebook(
        project / "01_first.ipynb",
        f"""
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
ids = [os.getpid(), subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
code = f"import subprocess; print(subprocess.Popen({{sleep}}, stdout=-3, stderr=-3).pid)"
middle = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # its child outlives it
with open({str(pids)!r}, "w") as file:
    file.write(" ".join(map(str, [*ids, int(middle.stdout)])))
time.sleep(600)""",
        "print('never')",
    )
    start = time.monotonic()
    manifest = run(project, time_limit=20, jobs=1)
    assert time.monotonic() - start < 60
    first = manifest["notebooks"]["01_first"]
    assert (
        first["status"] == "failed"
        and first["error"] == "stopped in cell 4 by its time limit of 20 s"
    )
    assert manifest["notebooks"]["02_second"]["status"] == "ok" and manifest["status"] == "failed"
    numbers = [int(n) for n in pids.read_text().split()]
    assert len(numbers) == 4
    alive = [
        n
        for n in numbers
        if psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE
    ]
    assert not alive
    with pytest.raises(SystemExit) as wrong:
        cli.main(["reproduce", "--time-limit", "0"])
    assert wrong.value.code == 2


def test_trainings_of_a_failed_notebook_stay_until_it_ends_well(project):
    write_notebook(
        project / "01_first.ipynb",
        """
import pathlib
from iflow_runner.recorder import Recorder
model = pathlib.Path(Recorder("01_first", out_dir).checkpoint_dir("model"))
print("found", model.is_dir())
model.mkdir(parents=True, exist_ok=True)
(model / "state.json").write_text("half")
(model / "progress.txt").write_text("50%")
pathlib.Path(out_dir, "half").write_text("a result")
assert pathlib.Path(out_dir).parents[2].joinpath("ready").is_file()""",
    )
    out = out_of(project)
    assert run(project, "01")["status"] == "failed"
    left = out / execute.WORK / "01_first" / "out"
    assert [p.relative_to(left).as_posix() for p in left.rglob("*")] == [
        ".training",
        ".training/model",
        ".training/model/state.json",
    ]
    assert [state for state, _ in states(project).values()] == ["would go on", "would run"]
    (out / "ready").touch()
    assert run(project, "01")["status"] == "ok"
    assert "found True" in (out / "notebooks" / "01_first.ipynb").read_text()
    assert not list(out.rglob(".training")) and not (out / execute.WORK).exists()
    assert (out / "half").is_file()


# ---- what has changed


def states(folder, **options) -> dict:
    job = make_plan(folder=folder, make=False, **options)
    return {name: (state, note) for name, state, note in execute.status(job)}


def test_status_says_what_would_run_and_why(project):
    reference = project.parent / "results" / "reference"
    reference.mkdir(parents=True)
    (reference / "plane.csv").write_text("a\n1\n")
    write_notebook(project / "01_first.ipynb", "print(steps)", iflow={"reads": ["plane.csv"]})
    write_notebook(project / "03_third.ipynb", "print(out_dir)", iflow={"reads": ["01_first"]})
    assert all(
        state == "would run" and "it has not run yet" in note
        for state, note in states(project).values()
    )
    assert not out_of(project).exists()  # it only looks
    assert run(project)["status"] == "ok"
    assert {state for state, _ in states(project).values()} == {"unchanged"}
    assert all(
        note.startswith("ran 20") and note.endswith(" s") for _, note in states(project).values()
    )

    def changed(reason, *names, **options):
        found = states(project, **options)
        assert {n for n, (state, _) in found.items() if state != "unchanged"} == set(names), found
        assert reason in found[names[0]][1], found

    def becomes(file, text, reason, *names):
        before = file.read_bytes() if file.is_file() else None
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        changed(reason, *names)
        file.unlink() if before is None else file.write_bytes(before)

    everyone = ("01_first", "02_second", "03_third")
    changed("its parameters: steps 2 is now 7", "01_first", "03_third", parameters={"steps": 7})
    assert (
        "reads the results of 01_first, which run"
        in states(project, parameters={"steps": 7})["03_third"][1]
    )
    plane = reference / "plane.csv"
    becomes(plane, "a\n2\n", "results/reference/plane.csv has changed", "01_first", "03_third")
    becomes(project.parent / "requirements.lock", "x", "requirements.lock has changed", *everyone)
    second = (project / "02_second.ipynb").read_text().replace("seen = ", "were = ")
    becomes(project / "02_second.ipynb", second, "its cells have changed", "02_second")
    executed = out_of(project) / "notebooks" / "02_second.ipynb"
    reason = "notebooks/02_second.ipynb is missing or was changed"
    becomes(executed, "{}", reason, "02_second")
    # a table that an earlier notebook of the run did not have before
    table = out_of(project) / "tables" / "01_first.csv"
    becomes(table, "run_id\n", "tables/01_first.csv has changed", "03_third")
    assert {state for state, _ in states(project).values()} == {"unchanged"}


def test_the_code_that_a_notebook_depends_on(project, tmp_path, monkeypatch):
    """The library and the recorder, wherever they lie; nothing else of the runner."""
    library, runner = tmp_path / "iflow_lib", tmp_path / "iflow_runner"
    shutil.copytree(
        plan.LIBRARY, library, ignore=lambda _, names: {"assets", "__pycache__"} & {*names}
    )
    shutil.copytree(plan.RUNNER, runner)
    monkeypatch.setattr(plan, "LIBRARY", library)
    monkeypatch.setattr(plan, "RUNNER", runner)
    (project / "02_second.ipynb").unlink()
    run(project)
    depends = {
        library / "paths.py": "the code of iflow_lib has changed",
        library / "objectives" / "base.py": "the code of iflow_lib has changed",
        library / "assets" / "more.npz": "the shipped data has changed",
        runner / "recorder.py": "the recorder has changed",
    }
    for file, reason in depends.items():
        file.parent.mkdir(exist_ok=True)
        before = file.read_text() if file.is_file() else ""
        file.write_text(f"{before}# more")
        assert {*states(project).values()} == {("would run", reason)}
        file.write_text(before)
        if not before:
            file.unlink()
    assert {state for state, _ in states(project).values()} == {"unchanged"}
    others = [
        f for f in runner.rglob("*.*") if f.is_file() and f not in (*depends, runner / "files.py")
    ]
    assert len(others) > 10
    for file in others:
        file.write_bytes(file.read_bytes() + b"# more")
    assert {state for state, _ in states(project).values()} == {"unchanged"}
    write_notebook(project / "01_first.ipynb", "from iflow_runner.verify import verify")
    run(project)
    (runner / "verify.py").write_text("")  # this one uses it
    assert {*states(project).values()} == {("would run", "the recorder has changed")}


def test_nothing_is_written_where_nothing_has_changed(project):
    run(project)
    before = {p: p.stat().st_mtime_ns for p in out_of(project).rglob("*") if p.name != ".lock"}
    assert run(project)["status"] == "ok"
    assert {
        p: p.stat().st_mtime_ns for p in out_of(project).rglob("*") if p.name != ".lock"
    } == before
    (out_of(project) / "index.html").unlink()  # as if it was killed before that was written
    assert run(project)["status"] == "ok" and (out_of(project) / "index.html").is_file()


def test_one_that_needs_a_failed_one_is_not_run(project):
    write_notebook(project / "01_first.ipynb", "1 / 0")
    write_notebook(project / "03_third.ipynb", "print(1)", iflow={"reads": ["01_first"]})
    manifest = run(project)
    assert [e["status"] for e in manifest["notebooks"].values()] == ["failed", "ok", "not run"]
    assert (
        manifest["status"] == "failed" and "01_first" in manifest["notebooks"]["03_third"]["error"]
    )
    trace = manifest["notebooks"]["01_first"]["traceback"]
    assert "ZeroDivisionError" in trace and "1 / 0" in trace and "\x1b" not in trace
    assert str(project.parent) not in trace


# ---- strict


@pytest.mark.parametrize(
    "profiles, words",
    [
        (
            '[quick."01_frist"]\nsteps = 1\n',
            ["in profile quick of profiles.toml: '01_frist'", "did you mean '01_first'?"],
        ),
        (
            '[quick]\n[full."01_first"]\nstep = 1\n',
            ["profile full: parameter of 01_first: 'step'", "did you mean 'steps'?"],
        ),
        (
            '[quick]\n[full."01_first"]\nsteps = 1.5\n',
            ["steps of 01_first must be a whole number, got 1.5"],
        ),
        (
            '[quick]\n[full."01_first"]\nidle = 2\n',
            ["parameter 'idle' of 01_first would change nothing", "no cell uses it"],
        ),
        ('[quick]\n[full."01_first"]\nout_dir = "x"\n', ["parameter of 01_first: 'out_dir'"]),
    ],
)
def test_profiles_are_checked_as_strictly(project, profiles, words):
    write_notebook(
        project / "01_first.ipynb",
        "print(steps, out_dir)",
        parameters='steps: int = 1\nidle: int = 0\nout_dir: str = ""',
    )
    (project / "profiles.toml").write_text(profiles)
    with pytest.raises(ValueError) as error:
        run(project)
    assert all(w in one_line(error) for w in words), one_line(error)
    assert not out_of(project).exists()


@pytest.mark.parametrize(
    "cells, about, words",
    [
        (dict(parameters=None), {}, ['no cell tagged "parameters"']),
        (
            dict(parameters="steps: int = 0.5"),
            {},
            ["steps is declared as int, and its default is 0.5"],
        ),
        (dict(language="R"), {}, ["written in R"]),
        (
            {},
            dict(iflow={"reads": "plane.csv"}),
            ["its metadata must declare what it reads", "plane.csv"],
        ),
        (
            {},
            dict(iflow={"reads": ["02_second"]}),
            ["earlier notebook that 01_first declares to read: '02_second'"],
        ),
        (
            {},
            dict(iflow={"reads": ["plane.csv"]}),
            ["results/reference/plane.csv, which is missing", "git"],
        ),
    ],
)
def test_broken_notebooks_are_named_before_anything_runs(project, cells, about, words):
    write_notebook(project / "01_first.ipynb", "print(1)", **cells, **about)
    (project / "profiles.toml").write_text("[quick]\n")
    with pytest.raises((ValueError, OSError)) as error:
        run(project)
    assert all(w in one_line(error) for w in words), one_line(error)
    assert not out_of(project).exists()


def test_the_nearest_spelling_is_named(project):
    for options, words in (
        (dict(parameters={"stpes": 1}), "did you mean 'steps'?"),
        (dict(profile="quikc"), "'quick'?"),
        (dict(notebooks=["01_frst"]), "did you mean '01_first'?"),
    ):
        with pytest.raises(ValueError, match="did you mean") as error:
            make_plan(folder=project, **options)
        assert words in one_line(error)


def test_a_whole_number_is_fine_where_a_number_is_declared(project):
    write_notebook(
        project / "02_second.ipynb",
        "%matplotlib inline\n!true\n[rate",
        parameters="rate: float = 1",
    )
    task = make_plan(["02"], folder=project, parameters={"rate": "2"}, make=False).tasks[0]
    assert task.parameters == {"rate": 2.0} and type(task.parameters["rate"]) is float


# ---- what is shown


def test_the_live_table(project, tmp_path, capsys):
    tasks = make_plan(folder=project, make=False).tasks
    with progress.ProgressTable(tasks, {"01_first": 61.0}, show=True) as shown:
        first, second = shown.start("01_first", tmp_path), shown.start("02_second", tmp_path / "2")
        first.cell = 3
        second.cell = 2

        def text():
            console = rich.console.Console(width=100, file=io.StringIO())
            console.print(shown.table())
            return console.file.getvalue()

        assert re.search(r"▶ +01_first +3 of \d+ +0 s +1 min 1 s\n", text())
        assert re.search(r"▶ +02_second +2 of \d+ +0 s *\n", text())
        for i, name in enumerate(("older", "newer")):
            bar = tmp_path / ".training" / name / "progress.txt"
            bar.parent.mkdir(parents=True)
            bar.write_text(f"{name} 42%")
            os.utime(bar, (i, i))
        assert "01_first: newer 42%\n" in text() and "older" not in text()
        bar.unlink()
        assert "01_first: older 42%\n" in text()
        shown.end("01_first", "ok", "1 min 15 s", 75.0)
        assert re.search(r"✓ +01_first +1 min 15 s +1 min 1 s\n", text()) and "42%" not in text()
    assert capsys.readouterr().out == (
        "running      01_first (1 of 2, expected 1 min 1 s)\nrunning      02_second (2 of 2)\n"
        "ok           01_first: 1 min 15 s\n"
    )


def test_the_training_bar_passes_through_without_a_terminal(project, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.2)
    write_notebook(
        project / "01_first.ipynb",
        """
import os, time
os.makedirs(f"{out_dir}/.training/a")
open(f"{out_dir}/.training/a/progress.txt", "w").write("FlowMatching: 42%")
time.sleep(2)""",
    )
    run(project, "01")
    said = capsys.readouterr().out
    words = r"^ +01_first: cell 4 of 4 after \d+ s, FlowMatching: 42%$"
    assert re.search(words, said, flags=re.M)
    assert not list(out_of(project).rglob(".training"))  # no result


def test_command_line_of_what_is_broken(project, capfd, monkeypatch):
    """One line, exit code 2, and nothing written."""
    monkeypatch.setattr(plan, "checkout", lambda: project.parent)

    def said(*arguments) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--device", "cpu"])
        out, err = capfd.readouterr()
        assert (
            end.value.code == 2
            and not out
            and err.count("\n") == 1
            and not out_of(project).exists()
        )
        return err

    good = (project / "01_first.ipynb").read_text()
    (project / "01_first.ipynb").write_text(good[:-20])
    for command in ("reproduce", "status"):
        assert "01_first.ipynb is damaged or not a notebook" in said(command)
    (project / "01_first.ipynb").write_text(good)
    with monkeypatch.context() as patch:
        patch.setattr(
            plan.importlib.util, "find_spec", lambda name: None if name == "ipykernel" else name
        )
        assert "running notebooks needs ipykernel: pip install 'iflow-lib[notebooks]'" in said(
            "reproduce"
        )
    assert "did you mean 'steps'?" in said("status", "-p", "step", "3")
    with pytest.raises(SystemExit) as end:
        cli.main(["status", "--device", "cpu"])
    assert end.value.code == 0
    assert capfd.readouterr().out.splitlines() == [
        "would run    01_first: it has not run yet",
        "would run    02_second: it has not run yet",
    ]
    assert not out_of(project).exists()
