"""The committed notebooks: nbval runs each in a fresh kernel and compares its outputs; their stored outputs are clean.

`make test` runs the numbered notebooks; `make test-all` also the solutions and the template.
"""

import ast
import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import write_notebook

import iflow_lib as ifl
from iflow_runner import cli

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
TEMPLATE = ROOT / "notebooks" / "template.ipynb"
ALL = [*NOTEBOOKS, *SOLUTIONS, TEMPLATE]


def shown(notebook: Path) -> str:
    """A notebook's name below notebooks/, for the ids of tests."""
    return notebook.relative_to(ROOT / "notebooks").as_posix()


def test_the_series_is_there():
    names = {
        "00_start_here",
        "01_path_integrals",
        "02_one_line_many_clocks",
        "03_from_scratch",
        "04_x0_anchoring",
        "05_training",
        "06_nfe_vs_quality",
        "07_rectified_flow_and_reflow",
        "08_pfgmpp",
        "09_consistency_models",
        "13_claims",
    }
    assert {n.stem for n in NOTEBOOKS} >= names
    assert {n.name for n in SOLUTIONS} == {n.name for n in NOTEBOOKS}


def nbval(*notebooks, library=ROOT) -> subprocess.CompletedProcess:
    """Run notebooks in fresh kernels and compare their outputs, with the library that lies in a folder."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--verbosity=0",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "--nbval-sanitize-with",
        str(ROOT / "notebooks" / "nbval.cfg"),
        *map(str, notebooks),
    ]
    # two threads on small networks are slower than one; figures must appear in the notebook, wherever the tests run
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONPATH=str(library),
    )
    return subprocess.run(command, cwd=library, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    "notebook",
    [
        *(pytest.param(notebook, id=shown(notebook)) for notebook in NOTEBOOKS),
        *(
            pytest.param(notebook, id=shown(notebook), marks=pytest.mark.long)
            for notebook in (*SOLUTIONS, TEMPLATE)
        ),
    ],
)
def test_nbval(notebook):
    done = nbval(notebook)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout[-1000:]


@pytest.mark.parametrize("notebook", ALL, ids=shown)
def test_stored_outputs(notebook):
    """Executed top to bottom, no errors, warnings, progress bars, machine paths or figure reprs; not too big."""
    assert notebook.stat().st_size < 2_000_000
    code = [
        cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"<Figure|<Axes|it/s\]|Warning|/(home|root|tmp|work|Users)/", text), (
            text
        )


# ---- the parts of a notebook, as CONTRIBUTING.md names them


def missing_parts(file: Path) -> list[str]:
    """What a notebook lacks of the parts that each must have, in words."""
    notebook = nbformat.read(file, as_version=4)
    cells = notebook.cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code, missing = [cell for cell in cells if cell.cell_type == "code"], []

    def need(there, what):
        if not there:
            missing.append(what)

    head, number = cells[0].source, file.name[:2] if file.name[:2].isdecimal() else "NN"
    need(re.match(rf"# {number} · \S", head), f"a title '# {number} · ...'")
    for part in ("**Question.** ", "*For* ", "*Runtime:* "):
        need(re.search(rf"^{re.escape(part)}\S", head, re.M), f"{part.strip()} in the first cell")
    need(
        "**You will learn**" in head and len(re.findall(r"^\d\. \S", head, re.M)) >= 2,
        "two things you will learn",
    )

    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    need(
        len(tagged) == 1 and tagged[0] is code[0], "one cell tagged parameters, the first with code"
    )
    for line in tagged[0].source.splitlines() if tagged else ():
        found = re.fullmatch(r"\w+: (int|float|bool|str|list) = (.+?) +# \S.*", line)
        need(
            found and type(ast.literal_eval(found[2])).__name__ == found[1],
            f"a simple type or a comment in '{line}'",
        )
    need(
        len(code) > 1 and "raise ValueError(" in code[1].source,
        "an error for parameters out of range, below the imports",
    )

    need(
        isinstance(notebook.metadata.get("iflow", {}).get("reads"), list),
        "what it reads, in its metadata",
    )
    see = True
    for cell in cells:
        if cell.cell_type == "markdown":
            see = see or "**See:**" in cell.source
        elif any("image/png" in output.get("data", ()) for output in cell.outputs):
            need(see, f"what to see, above {cell.id}")
            see = False
    need(see, "what to see in the last picture")

    sections = re.split(r"^## +(.+)\n", text, flags=re.M)
    sections = dict(zip(sections[1::2], sections[2::2]))
    need(
        list(sections)[-3:] == ["What we learned", "Exercises", "References"],
        "the last three sections",
    )
    for name, count in ("What we learned", 3), ("Exercises", 2):
        points = re.findall(r"^(\d)\. \S", sections.get(name, ""), re.M)
        need(
            points == [str(i + 1) for i in range(count)],
            f"{count} points under {name}, not {len(points)}",
        )
    need(
        file == TEMPLATE or f"(solutions/{file.name})" in sections.get("Exercises", ""),
        "the link to its solutions",
    )
    need(re.search(r"^- \S", sections.get("References", ""), re.M), "references")
    return missing


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, TEMPLATE], ids=lambda n: n.stem)
def test_parts(notebook):
    assert missing_parts(notebook) == []


@pytest.mark.parametrize(
    "old, new, missing",
    [
        ("# 98 · ", "# Two · ", "a title '# 98"),
        ("*Runtime:* ", "*Time:* ", "*Runtime:* in the first cell"),
        ("seed: int = 0 ", "seed: int = 0.5 ", "a simple type"),
        ("seed: int = 0 ", "seed = 0 ", "a simple type"),
        ("raise ValueError(", "print(", "an error for parameters"),
        ("**See:**", "**Here:**", "what to see"),
        ("## Exercises", "## Tasks", "last three sections"),
        ("2. One that", "One that", "2 points under Exercises"),
        ("3. What disappoints", "What disappoints", "3 points under What we"),
        ("(solutions/98_x", "(98_x", "its solutions"),
        ("- Authors", "Authors", "references"),
        ('"reads"', '"uses"', "what it reads"),
        ('"parameters"', '"other"', "one cell tagged parameters"),
    ],
)
def test_a_missing_part_is_found(old, new, missing, tmp_path):
    file, text = (
        tmp_path / "98_x.ipynb",
        TEMPLATE.read_text(encoding="utf-8").replace("# NN · ", "# 98 · "),
    )
    text = text.replace("`solutions/NN_your_question.ipynb`", "[here](solutions/98_x.ipynb)")
    file.write_text(text, encoding="utf-8")
    assert missing_parts(file) == [] and old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    assert any(missing in words for words in missing_parts(file))


def test_notebooks_are_linted(tmp_path):
    """`ruff check .` of `make test` reads the notebooks' code too, and finds what is wrong there."""
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    seen = subprocess.run(
        [*ruff, "--show-files", "."], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    assert {str(notebook) for notebook in ALL} <= set(seen)
    broken = nbformat.read(TEMPLATE, as_version=4)
    broken.cells[2].source += "\nprint(nowhere)"
    nbformat.write(broken, tmp_path / "98_broken.ipynb")
    found = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 1 and "F821" in found.stdout and "nowhere" in found.stdout


# ---- a notebook's trainings can be continued


def watched_class(quality, marks):
    """Notebook 05's objective that keeps averages of the weights, from its cell."""
    cells = nbformat.read(ROOT / "notebooks" / "05_training.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "class Watched" in cell.source)
    tree = next(part for part in ast.parse(source).body if getattr(part, "name", None) == "Watched")
    names = {"ifl": ifl, "torch": torch, "copy": copy, "quality": quality, "marks": marks}
    exec(compile(ast.Module([tree], []), "05_training", "exec"), names)
    return names["Watched"]


def test_averages_of_a_killed_training_go_on(tmp_path):
    """Stopped between two checkpoints and continued, notebook 05's averages and what they were worth stay the same."""
    Watched = watched_class(
        lambda model: float(sum(weight.detach().sum() for weight in model.parameters())), (2, 7, 19)
    )
    kinds = {"0.9": (0.9, True), "0.999 from the start": (0.999, False)}

    class Killed(Watched):
        name = "Watched"  # a checkpoint knows whose it is

        def update_state(self, batch, drawn, loss, estimate):
            super().update_state(batch, drawn, loss, estimate)
            if batch.step == 12:
                raise RuntimeError("killed")

    def train(kind, folder):
        system = ifl.zoo.System("rectified", "integral", "eight_gaussians")
        objective = kind(system.objective(), kinds)
        out_dir = tmp_path / folder
        config = ifl.TrainConfig(
            steps=20,
            batch_size=16,
            checkpoint_every=5,
            progress=False,
            device="cpu",
            out_dir=out_dir,
        )
        data = ifl.data.load("eight_gaussians", n=100)
        ifl.fit(system.model(0, hidden=8), objective, data, config, resume="auto")
        objective.look(20)
        return objective

    entire = train(Watched, "entire")
    with pytest.raises(RuntimeError, match="killed"):
        train(Killed, "killed")
    again = train(Watched, "killed")
    for objective in again, train(Watched, "entire"):  # the second one has no step left to do
        assert objective.found == entire.found and len(entire.found) == 6
        assert set(objective.models) == set(entire.models) == set(kinds)
        for name in kinds:
            for mine, theirs in zip(
                objective.models[name].parameters(), entire.models[name].parameters()
            ):
                assert torch.equal(mine, theirs)


def test_trainings_of_a_run_keep_checkpoints():
    """Every training of a numbered notebook names a checkpoint folder, and goes on from it."""
    trainings = 0
    for notebook in NOTEBOOKS:
        cells = nbformat.read(notebook, as_version=4).cells
        for cell in (cell for cell in cells if cell.cell_type == "code"):
            found = len(re.findall(r"\bifl\.fit\(|\bzoo\.(?:train|finish)\(", cell.source))
            trainings += found
            assert len(re.findall(r"\bcheckpoint_dir\(", cell.source)) == found, cell.id
            fits = cell.source.count("ifl.fit(")
            assert cell.source.count('resume="auto"') == fits, cell.id
            assert "device.type, " not in cell.source.replace('"device": device.type', ""), cell.id
    assert trainings >= 8


# ---- can the checks of results fail?

MEASURES = """
import iflow_lib as ifl
from iflow_lib import metrics
from iflow_runner.recorder import Recorder, reference

model = ifl.FlowMap.from_pretrained(reference("checkpoints") / "eight_gaussians_rectified_integral")
real = metrics.real_pairs("eight_gaussians", 2000)(0)[1]
value = metrics.w2(ifl.sample(model, 2000, 1, "map", seed=1000).x, real)
rec = Recorder("01_small", out_dir)
rec.rows([{"dataset": "eight_gaussians", "path": "rectified", "objective": "IntegralIdentity", "anchor": "none",
           "network": "MLP", "step": 10000, "nfe": 1, "method": "map", "metric": "w2", "value": value, "n_samples": 2000}])
rec.save()
print(round(value, 2))
"""


def test_nbval_finds_a_changed_number(tmp_path):
    """Short: of two notebooks with the same code, the one whose stored output was changed fails."""
    source = "import iflow_lib as ifl\nprint(round(float(ifl.VarianceExploding().tau_max), 4))"
    for name, stored in ("right", "0.9877"), ("wrong", "0.9878"):
        write_notebook(tmp_path / f"{name}.ipynb", source)
        notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
        for count, cell in enumerate(notebook.cells[1:], 1):
            cell.execution_count = count
        notebook.cells[-1].outputs = [
            nbformat.v4.new_output("stream", name="stdout", text=f"{stored}\n")
        ]
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    done = nbval(tmp_path / "right.ipynb", tmp_path / "wrong.ipynb")
    assert re.search(r" 1 failed, \d+ passed", done.stdout), done.stdout
    assert "mismatch 'stdout'" in done.stdout and "0.9878" in done.stdout


@pytest.mark.long
def test_a_changed_number_is_found(tmp_path, capfd):
    """One number of the library, or of what a run stored, is changed: nbval and `iflow verify` fail, and only then."""
    model = "results/reference/checkpoints/eight_gaussians_rectified_integral"
    for package in ("iflow_lib", "iflow_runner"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copytree(ROOT / model, tmp_path / model)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "profiles.toml").write_text("[quick]\n")
    write_notebook(
        tmp_path / "notebooks" / "01_small.ipynb", MEASURES, iflow={"reads": ["checkpoints"]}
    )

    def reproduce(name: str) -> Path:
        command = [
            sys.executable,
            "-m",
            "iflow_runner.cli",
            "reproduce",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / name),
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(tmp_path)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    def verify(run: Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["verify", str(run)])
        return end.value.code, capfd.readouterr().out

    run = reproduce("run")
    stored = run / "notebooks" / "01_small.ipynb"
    assert verify(run) == (0, "1 of 1 cells agree, 0 moved; 0 more of this run have no reference\n")

    altered, notebook = tmp_path / "altered.ipynb", nbformat.read(stored, as_version=4)
    output = notebook.cells[-1].outputs[0]
    output.text = f"{float(output.text) + 0.01:.2f}\n"
    nbformat.write(notebook, altered)
    done = nbval(stored, altered, library=tmp_path)
    assert (
        re.search(r" 1 failed, \d+ passed", done.stdout) and "mismatch 'stdout'" in done.stdout
    ), done.stdout

    table = (run / "results.csv").read_text().splitlines()
    value = table[0].split(",").index("value")
    row = table[1].split(",")
    (run / "results.csv").write_text(
        "\n".join([table[0], ",".join([*row[:value], "0.3", *row[value + 1 :]])]) + "\n"
    )
    code, out = verify(run)
    assert code == 1 and "eight_gaussians" in out and "0 of 1 cells agree, 1 moved" in out

    library = tmp_path / "iflow_lib" / "networks.py"
    code = library.read_text(encoding="utf-8")
    assert code.count("math.pi / 2 * 2 **") == 1
    library.write_text(code.replace("math.pi / 2 * 2 **", "math.pi / 3 * 2 **"), encoding="utf-8")
    assert re.search(r" 1 failed, \d+ passed", nbval(stored, library=tmp_path).stdout)
    assert verify(reproduce("mutated"))[0] == 1
