"""experiments/workshop_check.py says when the room is ready, and what is missing when it is not."""

import re
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import write_notebook

from experiments import workshop_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")
CONNECTS = """
import socket, urllib.request
for call in (lambda: urllib.request.urlopen("http://example.org"), lambda: socket.create_connection(("192.0.2.1", 80)),
             lambda: socket.socket().connect(("192.0.2.1", 80))):
    try:
        call()
    except OSError as error:
        assert "without a network" in str(error), error
    else:
        raise AssertionError("there is a network")
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    module = workshop_check
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "check_reference", lambda: 5)
    monkeypatch.setattr(module, "MEMORY_GB", 0)  # of the machine that runs the tests
    monkeypatch.setattr(module, "DISK_GB", 0)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "workshop.md").write_text(
        "<!-- plan -->\n| [01_first](a) | do | 60 s |\n<!-- /plan -->\n"
    )
    return module


def planned(*_, **__):
    """The plan of the page that the fixture writes names no notebook of this checkout."""


def ran(seconds=12.0, status="ok", error=None):
    return lambda *_, **__: {
        "status": status,
        "notebooks": {"01_first": {"status": status, "seconds": seconds, "error": error}},
    }


def test_the_plan_names_notebooks_and_its_times_fit(tool):
    plan = tool.plan(PAGE)
    assert len(plan) >= 3 and all((ROOT / "notebooks" / f"{name}.ipynb").is_file() for name in plan)
    assert sum(plan.values()) < 15 * 60
    for part, length in (
        ("90 minutes", 90),
        ("half a day", 210),
    ):  # the rows' minutes follow one another, and fill the time
        rows = re.findall(
            r"^\| (\d+):(\d\d) to (\d+):(\d\d) \|",
            PAGE[PAGE.index(f"## The plan for {part}") :],
            flags=re.M,
        )
        times = [(60 * int(a) + int(b), 60 * int(c) + int(d)) for a, b, c, d in rows]
        times = times[: next(i for i, (_, end) in enumerate(times) if end == length) + 1]
        assert times[0][0] == 0 and all(
            a[1] == b[0] and a[0] < a[1] for a, b in zip(times, times[1:])
        )


def test_notebooks_run_without_a_network(tool, project):
    write_notebook(project / "01_first.ipynb", CONNECTS)
    assert tool.rehearse({"01_first": 600}, "quick", "cpu", project / "out", project)[0][0]


def test_ready(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "make_plan", planned)
    monkeypatch.setattr(tool.execute, "reproduce", ran())
    assert tool.main([]) == 0
    out = capsys.readouterr().out
    assert "01_first took 12 s, the plan has 1 min 0 s" in out and out.endswith(
        "the room is ready\n"
    )
    assert "MISSING" not in out and "5 shipped files are whole" in out


def damaged():
    raise ValueError("reference/plane.csv was altered")


def refused(*_, **__):
    raise ValueError("unknown profile 'quik'")


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("sys", namedtuple("sys", "version_info")((3, 9, 1)), "Python 3.9 (3.10 to 3.13"),
        ("DISK_GB", 10**6, "GB free on the disk"),
        ("MEMORY_GB", 10**6, "GB of memory free"),
        ("check_reference", damaged, "plane.csv was altered"),
        ("execute.reproduce", ran(61), "01_first took 1 min 1 s, the plan has 1 min 0 s"),
        (
            "execute.reproduce",
            ran(3, "failed", "cell 2: ValueError: no"),
            "01_first: failed. cell 2: ValueError: no",
        ),
        ("execute.reproduce", refused, "unknown profile"),
        ("importlib.util.find_spec", lambda name: None, "jupyterlab, ipykernel"),
    ],
)
def test_not_ready(tool, monkeypatch, capsys, name, value, words):
    monkeypatch.setattr(tool, "make_plan", planned)
    monkeypatch.setattr(tool.execute, "reproduce", ran())
    *place, name = name.split(".")
    target = tool
    for part in place:
        target = getattr(target, part)
    monkeypatch.setattr(target, name, value)
    assert tool.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("MISSING") and words in line for line in lines), lines
    assert re.fullmatch(r"the room is not ready: 1 of \d checks failed", lines[-1])


def test_interrupted(tool, monkeypatch):
    monkeypatch.setattr(tool, "make_plan", planned)
    monkeypatch.setattr(tool.execute, "reproduce", ran(status="interrupted"))
    assert tool.main([]) == 130
