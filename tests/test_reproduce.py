"""The main job: what is recorded, what is run again, and that failures leave everything whole."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import results_of as results
from conftest import run, write_notebook
from exact import one_line

import iflow_lib
from iflow_runner import provenance, report
from iflow_runner import recorder as results_module
from iflow_runner.plan import make_plan, read_notebook, typed
from iflow_runner.recorder import COLUMNS, Recorder

RECORDS = """
import matplotlib.pyplot as plt
from iflow_runner.recorder import Recorder

record = Recorder("01_first", out_dir)
record.rows([{"dataset": "plane", "method": "map", "nfe": n, "metric": "w2", "value": n / 3} for n in nfes])
figure, axes = plt.subplots(figsize=(2, 1))
record.figure(figure, "line", caption="One & <only>.")
record.save()
import os, sys, iflow_lib
print(sys.executable, iflow_lib.__file__, os.environ["OMP_NUM_THREADS"])
"""
# the same without the library, which is quicker
WRITES = """
import os
for name in ("tables/01_first.csv", "figures/01_first-line.png"):
    os.makedirs(os.path.dirname(f"{out_dir}/{name}"))
    with open(f"{out_dir}/{name}", "w") as file:
        file.write(HEAD if steps < 3 else "metric,value")
""".replace("HEAD", repr(",".join(COLUMNS) + "\n"))


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ---- a run that succeeds


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of two notebooks, the first of which records a table and a figure."""
    folder = tmp_path_factory.mktemp("project") / "notebooks"
    folder.mkdir()
    (folder / "profiles.toml").write_text('[quick."01_first"]\nsteps = 2\nnfes = [1, 2, 4]\n')
    write_notebook(folder / "01_first.ipynb", RECORDS, title="# What does one step of $x_0$ do?")
    write_notebook(folder / "02_second.ipynb", "1 + 1", parameters="")
    return folder, run(folder)


def test_files(done):
    folder, manifest = done
    out = results(folder)
    assert manifest["status"] == "ok"
    assert files(out) == {
        "notebooks/01_first.ipynb",
        "notebooks/02_second.ipynb",
        "tables/01_first.csv",
        "results.csv",
        "figures/01_first-line.png",
        "manifest.json",
        "index.html",
        ".lock",
    }
    assert not list(out.glob(".unf*"))
    assert (out / "figures/01_first-line.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*/")), "the notebooks' own folder was touched"


def test_table(done):
    rows = list(csv.reader((results(done[0]) / "results.csv").open(newline="")))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 4
    first = dict(zip(*rows[:2]))
    assert {c: v for c, v in first.items() if v} == {
        "run_id": "01_first",
        "dataset": "plane",
        "method": "map",
        "nfe": "1",
        "metric": "w2",
        "value": str(1 / 3),
    }


def test_manifest(done):
    folder, manifest = done
    text = (results(folder) / "manifest.json").read_text()
    assert json.loads(text) == manifest
    first = manifest["notebooks"]["01_first"]
    assert first["parameters"] == {
        "steps": 2,
        "rate": 0.5,
        "label": "x",
        "nfes": [1, 2, 4],
        "flag": True,
        "device": "cpu",
    }
    assert (
        first["title"] == "What does one step of x_0 do?"
        and first["seconds"] > 0
        and first["error"] is None
    )
    assert first["files"]["tables/01_first.csv"] == provenance.sha256(
        results(folder) / "tables/01_first.csv"
    )
    environment = manifest["environment"]
    assert (
        environment["versions"]["torch"] == torch.__version__.partition("+")[0]
        and environment["threads"] >= 1
    )
    assert (
        manifest["commit"] is None and manifest["lock_sha256"] is None
    )  # this small project has neither
    assert manifest["data_sha256"]["fashion_mnist.npz"] and manifest["started"].endswith("Z")
    assert str(folder.parent) not in text and os.path.expanduser("~") + os.sep not in text


def test_executed_notebook(done):
    text = (results(done[0]) / "notebooks" / "01_first.ipynb").read_text()
    notebook = json.loads(text)
    printed = "".join(
        o.get("text", "") if isinstance(o.get("text", ""), str) else "".join(o["text"])
        for c in notebook["cells"]
        for o in c.get("outputs", ())
    )
    assert printed.split() == [
        sys.executable,
        iflow_lib.__file__,
        str(done[1]["environment"]["threads"]),
    ]
    assert str(done[0].parent) not in text
    assert notebook["metadata"]["papermill"]["parameters"]["out_dir"] == ""


def test_page(done):
    html = (results(done[0]) / "index.html").read_text()
    for part in (
        "What does one step of x_0 do?",
        "figures/01_first-line.png",
        "One &amp; &lt;only&gt;.",
        'href="results.csv"',
        'href="notebooks/01_first.ipynb"',
        'class="ok"',
        "0.3333",
        done[1]["environment"]["cpu"],
    ):
        assert part in html, part
    assert "://" not in html and "{{" not in html  # stands alone; no unfilled place in the template


@pytest.mark.parametrize(
    "seconds, text", [(0.2, "0 s"), (59.6, "1 min 0 s"), (75.3, "1 min 15 s"), (7262, "2 h 1 min")]
)
def test_duration(seconds, text):
    assert provenance.duration(seconds) == text


# ---- running again


def test_unchanged_is_not_run_again(project, capsys, monkeypatch):
    def stamps():
        return {p.name: p.stat().st_mtime_ns for p in (results(project) / "notebooks").iterdir()}

    def changed(**options):
        before = stamps()
        assert run(project, **options)["status"] == "ok"
        return sorted(name[:2] for name, stamp in stamps().items() if stamp != before[name])

    run(project)
    capsys.readouterr()
    assert changed() == [] and capsys.readouterr().out.count("unchanged") == 2
    write_notebook(
        project / "02_second.ipynb",
        "seen = extra, label",
        parameters='label: str = "x"\nextra: int = 1',
    )
    (results(project) / "notebooks" / "01_first.ipynb").write_text("damaged")
    assert changed() == ["01", "02"]
    assert changed(parameters={"steps": "5"}) == ["01"]
    # one notebook keeps the results of the others
    manifest = run(project, "02", parameters={"extra": 2}, fresh=True)
    assert [e["status"] for e in manifest["notebooks"].values()] == ["ok", "ok"]
    assert manifest["notebooks"]["02_second"]["parameters"] == {"label": "x", "extra": 2}
    assert "from an earlier run" not in report.page(manifest | {"started": "0"}, [])
    assert "from an earlier run" in report.page(manifest | {"started": "9"}, [])
    # a full disk leaves what was there
    before = {p: p.read_bytes() for p in results(project).rglob("*") if p.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        run(project, fresh=True)
    assert "No space left" in one_line(error)
    assert {p: p.read_bytes() for p in results(project).rglob("*") if p.is_file()} == before


# ---- failures


def test_failure(project):
    write_notebook(project / "01_first.ipynb", WRITES, "if steps == 2: raise KeyError(out_dir)")
    assert (
        run(project, parameters={"steps": 1})["status"] == "ok"
        and len(files(results(project))) == 8
    )
    manifest = run(project)
    assert manifest["status"] == "failed"
    assert manifest["notebooks"]["01_first"]["error"] == "cell 5: KeyError: 'OUT'"
    assert "KeyError" in (results(project) / "notebooks" / "01_first.ipynb").read_text()
    # nothing of the failed notebook is left that could be taken for a result
    assert files(results(project)) == {
        "notebooks/01_first.ipynb",
        "notebooks/02_second.ipynb",
        "results.csv",
        "manifest.json",
        "index.html",
        ".lock",
    }
    assert (results(project) / "results.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert "KeyError" in (results(project) / "index.html").read_text()
    assert manifest["notebooks"]["02_second"]["status"] == "ok"  # from before
    manifest = run(project, parameters={"steps": 3})
    assert (
        "tables/01_first.csv must have the columns run_id, dataset,"
        in manifest["notebooks"]["01_first"]["error"]
    )


def test_others_go_on_after_a_failure(project):
    write_notebook(project / "01_first.ipynb", "import os; os._exit(1)")
    # an earlier job that was killed left its work and, the disk being faulty, a damaged manifest
    (results(project) / ".unfinished" / "01_first" / "out" / "tables").mkdir(parents=True)
    (results(project) / "manifest.json").write_text("{")
    manifest = run(project)
    assert (
        manifest["status"] == "failed"
        and "died in cell 4" in manifest["notebooks"]["01_first"]["error"]
    )
    assert manifest["notebooks"]["02_second"]["status"] == "ok"
    assert files(results(project)) == {
        "notebooks/01_first.ipynb",
        "notebooks/02_second.ipynb",
        "results.csv",
        "manifest.json",
        "index.html",
        ".lock",
    }
    assert not list(results(project).glob(".unf*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_interruption(project, tmp_path):
    write_notebook(
        project / "01_first.ipynb",
        f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(99)",
    )
    code = (
        # a shell that starts jobs in the background tells them to ignore Ctrl-C
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from iflow_runner.execute import reproduce\nfrom iflow_runner.plan import make_plan\n"
        f"sys.exit(reproduce(make_plan(folder={str(project)!r}), jobs=1)['status'] != 'interrupted')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.time() + 60
        while not (tmp_path / "begun").exists() and time.time() < end and process.poll() is None:
            time.sleep(0.1)
        with pytest.raises(OSError) as error:  # one job at a time in a folder
            run(project)
        assert f"process {process.pid} is already writing" in one_line(error)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == ""
    out = results(project)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [e["status"] for e in manifest["notebooks"].values()] == ["interrupted", "not run"]
    assert [p.name for p in (out / ".unfinished").iterdir()] == ["01_first"]  # to go on from
    assert "interrupted in cell 4" in (out / "index.html").read_text()


# ---- what is wrong is said before anything runs


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(profile="quik"), ["unknown profile: 'quik'", "quick, other"]),
        (dict(notebooks=["03"]), ["unknown notebook: '03'", "01_first, 02_second"]),
        (dict(notebooks=[""]), ["unknown notebook: ''"]),
        (
            dict(parameters={"stpes": 1}),
            ["unknown parameter of 01_first, 02_second: 'stpes'", "extra, flag"],
        ),
        (
            dict(parameters={"steps": 1}, notebooks=["02"]),
            ["unknown parameter of 02_second: 'steps'", "there are extra, label"],
        ),
        (dict(parameters={"device": "cpu"}), ["'device' is set by --device"]),
        (dict(parameters={"out_dir": "x"}), ["'out_dir' is set by --out"]),
        (
            dict(parameters={"steps": "many"}),
            ["steps of 01_first must be a whole number", "'many'"],
        ),
        (dict(parameters={"steps": 2.0}), ["whole number", "2.0"]),
        (dict(parameters={"steps": True}), ["whole number", "True"]),
        (dict(parameters={"rate": "nan"}), ["a number", "'nan'"]),
        (dict(parameters={"rate": "1e999"}), ["a number"]),
        (dict(parameters={"flag": "1"}), ["true or false", "'1'"]),
        (dict(parameters={"label": 3}), ["text", "3"]),
        (dict(parameters={"nfes": "1"}), ["a list", "'1'"]),
        (dict(parameters={"nfes": "[1, 2.5]"}), ["each item", "2.5"]),
    ],
)
def test_wrong_use(project, options, words):
    with pytest.raises((ValueError, OSError)) as error:
        make_plan(folder=project, **options)
    text = one_line(error)
    assert all(w in text for w in words), text
    assert not results(project).exists()


@pytest.mark.parametrize(
    "value, default, expected",
    [
        ("7", 3, 7),
        ("1_000", 3, 1000),
        (" -7 ", 3, -7),
        ("2", 0.5, 2.0),
        ("1e-3", 0.5, 1e-3),
        (2, 0.5, 2.0),
        ("true", False, True),
        ("False", True, False),
        ("7", "x", "7"),
        ("[1, 2]", [3], [1, 2]),
        ("[1, 2]", [0.5], [1.0, 2.0]),
        ("[]", [3], []),
    ],
)
def test_typed(value, default, expected):
    got = typed("p", value, default)
    assert got == expected and type(got) is type(expected)


def test_wrong_files(project, tmp_path):
    def complaint(**options):
        with pytest.raises((ValueError, OSError)) as error:
            make_plan(folder=project, **options)
        return one_line(error)

    (tmp_path / "file").write_text("")
    assert "cannot write to" in complaint(out=tmp_path / "file")
    assert "cannot write to" in complaint(out=tmp_path / "file" / "below")
    assert "holds other files and no earlier run" in complaint(out=project)
    profiles = (project / "profiles.toml").read_text()
    (project / "profiles.toml").write_text(profiles + '"02_second" = {steps = 3}\n')
    assert "profile other: parameter of 02_second: 'steps'; there are label" in complaint()
    (project / "profiles.toml").write_text("[quick")
    assert "not valid TOML" in complaint()
    (project / "profiles.toml").write_text("[quick]\nsteps = 3\n")
    assert "one table for each notebook" in complaint()
    (project / "profiles.toml").write_text(profiles)
    write_notebook(project / "02_second.ipynb", parameters="steps: int = 1 + n")
    assert "may only hold lines like" in complaint()
    write_notebook(project / "02_second.ipynb", parameters="steps: tuple = (1, 2)")
    assert "steps is declared as tuple, and its default is (1, 2)" in complaint()
    (project / "02_second.ipynb").write_text("{}")
    assert "02_second.ipynb is damaged or not a notebook" in complaint()
    (project / "profiles.toml").unlink()
    assert "profiles.toml is missing" in complaint()


def test_real_profiles():
    """Every table of profiles.toml is for a notebook that exists, and fits what it declares."""
    folder = results_module.checkout() / "notebooks"
    for profile in ("smoke", "quick", "full"):
        for task in make_plan(profile=profile, make=False).tasks:
            declared = read_notebook(folder / f"{task.name}.ipynb").parameters
            assert declared.get("out_dir") == "" and declared.get("device") == "auto"


# ---- the recorder and the reference


def test_recorder_rows(tmp_path):
    record = Recorder("nb", str(tmp_path))
    record.rows(
        pd.DataFrame(
            {"metric": ["w2", "w2"], "value": [0.1, float("nan")], "nfe": [1, None], "seed": [0, 1]}
        )
    )
    record.rows(
        [
            {"metric": "w2", "value": np.float32(0.5), "run_id": "own"},
            {"metric": "w2", "value": torch.tensor(0.25)},
        ]
    )
    record.save()
    table = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "nb.csv").read_text())))
    assert [(r["run_id"], r["value"], r["nfe"], r["seed"]) for r in table] == [
        ("nb", "0.1", "1", "0"),
        ("nb", "nan", "", "1"),
        ("own", "0.5", "", ""),
        ("nb", "0.25", "", ""),
    ]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"metric": "w2", "value": 1, "loss": 2}, "unknown column 'loss'"),
        ({"value": 1}, "needs a metric"),
        ({"metric": "w2"}, "number as value"),
        ({"metric": "w2", "value": "1"}, "number as value"),
        ({"metric": "w2", "value": 1j}, "number as value"),
        ({"metric": "w2", "value": torch.zeros(2)}, "number as value"),
        ({"metric": "w2", "value": 1, "run_id": 3}, "run_id in a row of results must be text"),
        (
            {"metric": "w2", "value": 1, "nfe": [1]},
            "nfe in a row of results must be text or a finite",
        ),
        ({"metric": "w2", "value": 1, "seconds": float("inf")}, "finite number, got inf"),
        (3, "must be a dict, got a int"),
    ],
)
def test_recorder_refuses(row, words):
    with pytest.raises(ValueError) as error:
        Recorder("nb").rows([row])
    assert words in one_line(error)


@pytest.mark.parametrize("rows", [None, 3, "w2", {"metric": "w2", "value": 1}])
def test_rows_must_be_a_list(rows):
    with pytest.raises(ValueError) as error:
        Recorder("nb").rows(rows)
    assert "must be a list of dicts" in one_line(error)


def test_recorder_without_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Recorder("nb", "")
    record.rows([{"metric": "w2", "value": 1}])
    record.figure(None, "name")
    record.save()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="letters, digits"):
        record.figure(None, "../name")


def test_checkpoint_folder(tmp_path):
    record = Recorder("nb", str(tmp_path))
    assert record.checkpoint_dir("ve-seed.0_1") == str(tmp_path / ".training" / "ve-seed.0_1")
    assert Recorder("nb").checkpoint_dir("ve") == ""
    assert not list(tmp_path.iterdir())
    for name in ("", "..", ".hidden", "a/b", "a b", None, 3):
        with pytest.raises(ValueError, match="letters, digits, -, _ and dots") as error:
            record.checkpoint_dir(name)
        assert repr(name) in one_line(error)


@pytest.mark.parametrize(
    "code, refused",
    [
        ("from iflow_runner.recorder import reference as r", True),
        ("from iflow_runner.recorder import reference\nr = reference", True),
        ("from iflow_runner.recorder import reference\nlist(map(reference, names))", True),
        ("from iflow_runner import recorder\nr = recorder.reference", True),
        ("reference = 3\nprint(reference, table.reference)", False),  # not ours
    ],
)
def test_reference_is_called_by_its_own_name(tmp_path, code, refused):
    write_notebook(tmp_path / "01_first.ipynb", code)
    if not refused:
        read_notebook(tmp_path / "01_first.ipynb")
        return
    with pytest.raises(ValueError) as error:
        read_notebook(tmp_path / "01_first.ipynb")
    assert "call reference by its own name" in one_line(error)


@pytest.mark.parametrize(
    "code, wanted, enough",
    [
        ("reference('plane.csv')", "'plane.csv'", "plane.csv"),
        ("recorder.reference('bench/a.csv')", "'bench/a.csv'", "bench"),
        ("reference(f'checkpoints/{label}')", "'checkpoints'", "checkpoints"),
        ("reference('checkpoints/') / 'a'", "'checkpoints'", "checkpoints"),
        ("reference(label)", "a name from elsewhere", "."),
        ("reference()", "a name from elsewhere", "."),
        ("%time reference('plane.csv')\nreference('plane.csv')", "'plane.csv'", "."),
        ("%time reference('plane.csv')", "'plane.csv'", "plane.csv"),
        ("table = %time reference('plane.csv')", "'plane.csv'", "plane.csv"),
        ("%%bash\ncat reference(label) |", "a name from elsewhere", "."),
    ],
)
def test_what_a_notebook_asks_for_must_be_declared(project, code, wanted, enough):
    """Else a change of it would not make the notebook run again."""
    committed = project.parent / "results" / "reference"
    for name in ("bench", "checkpoints"):
        (committed / name).mkdir(parents=True)
    (committed / "plane.csv").write_text("")
    for reads in ([], ["bench/a"], [enough]):
        write_notebook(project / "01_first.ipynb", code, iflow={"reads": reads})
        if reads == [enough]:
            plan = make_plan(["01"], folder=project, make=False)
            assert plan.tasks[0].needs[f"results/reference/{enough}"]
        else:
            with pytest.raises(ValueError) as error:
                make_plan(["01"], folder=project, make=False)
            assert f"01_first asks reference() for {wanted}, which its meta" in one_line(error)


def test_a_missing_model_can_be_trained(project, monkeypatch):
    committed = results_module.reference()
    for name in ("checkpoints/ve_integral", "checkpoints/eight_gaussians_rectified_velocity/model"):
        monkeypatch.setattr(results_module, "checkout", lambda: project.parent)
        (project.parent / "results" / "reference").mkdir(parents=True, exist_ok=True)
        for table in ("plane", "images"):
            file = f"{table}.manifest.json"
            (project.parent / "results" / "reference" / file).write_text(
                (committed / file).read_text()
            )
        with pytest.raises(FileNotFoundError) as error:
            results_module.reference(name)
        command = f"python -m experiments.models {name.split('/')[1]}"
        assert re.search(
            rf"restore it with git, or train it with `{command}`, which took \d+ .* on cpu",
            one_line(error),
        )
    with pytest.raises(FileNotFoundError) as error:
        results_module.reference("checkpoints/nothing")
    assert one_line(error).endswith("restore it with git")


def test_reference(project, monkeypatch):
    folder = project.parent / "results" / "reference"
    folder.mkdir(parents=True)
    monkeypatch.setattr(results_module, "LIBRARY", project.parent / "iflow_lib")
    assert results_module.reference() == folder
    with pytest.raises(FileNotFoundError) as error:
        results_module.reference("nothing.csv")
    assert "results/reference/nothing.csv is missing" in one_line(error)
    (project / "profiles.toml").unlink()
    monkeypatch.chdir(project)
    with pytest.raises(FileNotFoundError) as error:
        results_module.reference("nothing.csv")
    assert "needs the checkout" in one_line(error)
