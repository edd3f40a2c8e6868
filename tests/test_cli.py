"""The command line: quick to answer, one line for wrong use, exit codes."""

import os
import subprocess
import sys
import time

import pytest
from conftest import write_notebook

from iflow_lib import __version__
from iflow_runner import cli, plan


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def iflow(capfd, *arguments):
    """(exit code, stdout, stderr) of the command line, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code, *capfd.readouterr()


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.setattr(plan, "checkout", lambda: project.parent)
    monkeypatch.chdir(project.parent)
    return project


def seconds_of(*arguments):
    """Processor seconds of a Python process, which on an idle machine are those on the clock; others may keep this one
    busy. (Windows does not tell the time of children: the clock there.)"""
    before, start = os.times(), time.perf_counter()
    answer = python(*arguments)
    assert answer.returncode == 0, answer.stderr
    after, clock = os.times(), time.perf_counter() - start
    spent = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return spent or clock


def test_help_within_a_third_of_a_second():
    assert "reproduce" in python("-m", "iflow_runner.cli", "--help").stdout
    assert any(seconds_of("-m", "iflow_runner.cli", "--help") < 0.3 for _ in range(3))


def test_import_adds_at_most_half_a_second():
    """The whole API, beyond torch itself, but what takes pandas along: ``frames`` (tests/test_structure.py)."""
    code = (
        "import time, torch; t = time.process_time(); import iflow_lib as ifl\n"
        "late = {'frames', 'SeriesFlow', 'TableFlow'}\n"
        "[getattr(ifl, name) for name in {*ifl.__all__} - late]; print(time.process_time() - t)"
    )
    assert any(float(python("-c", code).stdout) < 0.5 for _ in range(3))


def test_light_import():
    code = (
        "import sys, iflow_runner.cli, iflow_runner.execute\n"
        "print({'torch', 'pandas', 'papermill', 'matplotlib'} & {*sys.modules})"
    )
    assert python("-c", code).stdout.strip() == "set()"


def test_version_and_help(capfd):
    assert iflow(capfd, "--version") == (0, f"iflow {__version__}\n", "")
    for arguments in ([], ["--help"], ["reproduce", "-h"]):
        code, out, err = iflow(capfd, *arguments)
        assert code == 0 and "Usage:" in out and not err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["repro"], ["repro"]),
        (["reproduce", "--profil", "quick"], ["--profil"]),
        (["reproduce", "--profile"], ["--profile"]),
        (["reproduce", "--profile", "quik"], ["unknown profile: 'quik'", "quick, other"]),
        (["reproduce", "--device", "tpu"], ["unknown device 'tpu'", "expected auto, cpu, cuda"]),
        (["reproduce", "--device", "cuda:99"], ["'cuda:99' is not available"]),
        (["reproduce", "42"], ["unknown notebook: '42'", "01_first, 02_second"]),
        (
            ["reproduce", "-p", "size", "3"],
            ["unknown parameter of 01_first, 02_second: 'size'", "extra, flag, label"],
        ),
        (
            ["reproduce", "-p", "steps", "three"],
            ["steps of 01_first must be a whole number, got 'three'"],
        ),
        (
            ["reproduce", "-p", "steps", "1", "-p", "steps", "2"],
            ["-p steps is given more than once"],
        ),
        (["reproduce", "-p", "steps"], ["'-p' requires 2 arguments", "-p steps 200"]),
        (["reproduce", "-p"], ["'-p' requires 2 arguments"]),
        (["reproduce", "--parameter=steps"], ["requires 2 arguments", "such as -p steps 200"]),
        (["reproduce", "--parameter=steps", "--device", "cpu"], ["NAME VALUE"]),
        (["reproduce", "--parameter=steps=3", "4"], ["NAME VALUE"]),
        (["reproduce", "--jobs", "0"], ["'--jobs'", "0 is not in the range x>=1"]),
        (["reproduce", "--time-limit", "0"], ["more than 0 seconds, got 0"]),
        (["reproduce", "--time-limit", "nan"], ["more than 0 seconds, got nan"]),
        (["reproduce", "--out", "notebooks"], ["holds other files"]),
        (["reproduce", "--out", "notebooks/profiles.toml"], ["cannot write to"]),
    ],
)
def test_wrong_use(here, capfd, arguments, words):
    cpu = [] if {"--device", "-p", "--parameter=steps"} & {*arguments} else ["--device", "cpu"]
    code, out, err = iflow(capfd, arguments[0], *cpu, *arguments[1:])  # spares torch
    assert code == 2 and not out
    assert err.startswith("iflow: ") and err.count("\n") == 1
    assert all(w in err for w in words), err
    assert not (here.parent / "results").exists()


def test_real_process_and_real_notebooks():
    answer = python(
        "-m", "iflow_runner.cli", "reproduce", "--profile", "nonsense", "--device", "cpu"
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "iflow: unknown profile: 'nonsense'; there are smoke, quick, full\n"


def test_run(here, capfd, tmp_path):
    out_folder = tmp_path / "elsewhere"
    write_notebook(
        here / "01_first.ipynb",
        "assert steps != 13, f'{steps} is\\nunlucky'",
        "assert (label, flag) == ('a b', False)",
    )
    arguments = [
        "reproduce",
        "01",
        "--jobs",
        "2",
        "--device",
        "cpu",
        "-p",
        "label",
        "a b",
        "-p",
        "flag=false",
        "--out",
        str(out_folder),
    ]
    code, out, err = iflow(capfd, *arguments)
    assert (code, err) == (0, "") and (out_folder / "index.html").is_file()
    assert out.splitlines()[0] == "profile quick, device cpu, 1 notebook"
    assert out.splitlines()[-1] == f"results: {out_folder / 'index.html'}"
    assert not (here.parent / "results").exists()
    code, out, err = iflow(capfd, *arguments, "-p", "steps", "13")
    assert (code, err) == (1, "iflow: 01_first failed: cell 4: AssertionError: 13 is unlucky\n")
    assert "failed" in out
