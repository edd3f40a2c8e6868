"""Notebooks in a real JupyterLab in a headless browser: they run, their figures appear, and their sliders move.

The server is on the loopback address with a token, and its folders are the test's own; it works on copies. Screenshots
are kept in results/runs/lab-screenshots.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("jupyterlab")
browser = pytest.importorskip("browser", reason="needs playwright")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PICTURES = ROOT / "results" / "runs" / "lab-screenshots"
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },  # no network
    "@jupyterlab/notebook-extension/tracker": {
        "windowingMode": "none"
    },  # the whole notebook is in the page
}
PANEL = "window.panel"  # the notebook that is open
PICTURE = "img.widget-image"
PATIENCE = 300  # seconds at most for each thing that is waited for, on a busy machine; all of it takes about two minutes
STALL = 150  # seconds without a cell that ends, far more than the longest one takes


class Stalled(Exception):
    """Lab and a kernel wait for each other."""


def copy_notebook(name: str, folder: Path) -> int:
    """A copy with the parameters of the smoke profile, without outputs; the number of figures that the original holds."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    at = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    profile = tomllib.loads((NOTEBOOKS / "profiles.toml").read_text(encoding="utf-8"))["smoke"][
        name
    ]
    lines = "\n".join(f"{key} = {value!r}" for key, value in (profile | {"device": "cpu"}).items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return figures


@contextmanager
def server(folder: Path, root: Path):
    """JupyterLab on ``root`` -> its address, with the token."""
    settings = folder / "settings"
    for name, value in SETTINGS.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    token, runtime = secrets.token_hex(24), folder / "runtime"
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_TOKEN": token,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                "--ServerApp.port=0",
                f"--ServerApp.root_dir={root}",
                "--LabApp.expose_app_in_browser=True",
                "--LabApp.extension_manager=readonly",
                "--LanguageServerManager.autodetect=False",
            ],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:

            def address() -> str:
                assert process.poll() is None, (folder / "lab.log").read_text()[-3000:]
                (info,) = [json.loads(f.read_text()) for f in runtime.glob("jpserver-*.json")] or [
                    {}
                ]
                return info.get("url", "")

            url = browser.wait(address, PATIENCE, "JupyterLab's address")
            yield f"{url}lab?reset&token={token}"
        finally:
            process.terminate()  # it shuts its kernels down
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def stack(log: Path) -> str:
    """Where the kernels that run stand: they are aborted, and then say so in the server's log."""
    before = len(log.read_text())
    for process in psutil.Process().children(recursive=True):
        if "ipykernel_launcher" in process.cmdline():
            process.send_signal(signal.SIGABRT)
    time.sleep(5)
    return log.read_text()[before:][:6000]


def run_all(page, name: str, log: Path) -> list[dict]:
    """Open a notebook, run all cells as its menu does, and what came out of each code cell."""
    page.evaluate(
        f"jupyterapp.commands.execute('docmanager:open', {{path: '{name}.ipynb', factory: 'Notebook'}})"
        ".then(panel => { window.panel = panel; jupyterapp.shell.activateById(panel.id); })"
    )
    browser.wait(
        lambda: page.evaluate(
            f"jupyterapp.shell.currentWidget === {PANEL}"
            f" && {PANEL}.sessionContext?.session?.kernel?.status == 'idle'"
        ),
        PATIENCE,
        f"the kernel of {name}",
    )
    page.evaluate(
        "window.ran = null; jupyterapp.commands.execute('notebook:run-all-cells')"
        ".then(() => { window.ran = true; }, e => { window.ran = String(e); }); 1"
    )
    ended, since = 0, time.monotonic()
    while not (ran := page.evaluate("window.ran")):
        now = page.evaluate(f"{PANEL}.content.widgets.filter(c => c.model.executionCount).length")
        if now > ended:
            ended, since = now, time.monotonic()
        if time.monotonic() - since > STALL:
            status = page.evaluate(f"{PANEL}.sessionContext.session.kernel.status")
            raise Stalled(
                f"{name}: {ended} cells have ended, the kernel is {status!r}, and stands in\n{stack(log)}"
            )
        time.sleep(0.25)
    assert ran is True, ran
    cells = page.evaluate(f"""{PANEL}.content.widgets.filter(c => c.model.type == 'code').map(c => ({{
        id: c.model.id, count: c.model.executionCount, outputs: c.model.outputs.toJSON(),
        images: [...c.node.querySelectorAll('.jp-RenderedImage img')].map(i => i.complete && i.naturalWidth)}}))""")
    for cell in cells:
        errors = [
            f"{o['ename']}: {o['evalue']}" for o in cell["outputs"] if o["output_type"] == "error"
        ]
        assert not errors, f"{name}, {cell['id']}: {errors}"
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1)), (
        f"{name}: not every cell ran"
    )
    return cells


def inside(page, cell: str, expression: str):
    """A JavaScript expression with ``visible(css)``: the elements of a cell that match and are not hidden."""
    return page.evaluate(f"""(() => {{
        const node = {PANEL}.content.widgets.find(c => c.model.id == '{cell}').node;
        const visible = css => [...node.querySelectorAll(css)].filter(e => e.getClientRects().length);
        return {expression}; }})()""")


def scroll_to(page, cell: str, css: str, share: float = 0.5) -> dict:
    """Scrolls to an element of a cell; the place in the window at a share of its width, half of its height."""
    inside(page, cell, f"visible('{css}')[0].scrollIntoView({{block: 'center'}})")
    place = f"(r => ({{x: r.x + {share} * r.width, y: r.y + r.height / 2}}))"
    return inside(page, cell, f"{place}(visible('{css}')[0].getBoundingClientRect())")


def shown(page, cell: str, css: str) -> str:
    """The pixels of the one picture that is shown in a cell; empty while there is none or more than one."""
    return inside(
        page,
        cell,
        f"""(images => {{
        if (images.length != 1 || !images[0].complete || !images[0].naturalWidth) return "";
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [images[0].naturalWidth, images[0].naturalHeight];
        canvas.getContext("2d").drawImage(images[0], 0, 0);
        return canvas.toDataURL(); }})(visible('{css}'))""",
    )


def move(page, name: str, cell: str, picture: str, there, back) -> None:
    """The slider: another picture is shown, and the screen changes; back again, and it is the first."""
    first = browser.wait(lambda: shown(page, cell, picture), 60, f"{name}: the slider's picture")
    scroll_to(page, cell, picture)
    before = page.screenshot(path=PICTURES / f"{name}-slider-before.png")
    there()
    browser.wait(
        lambda: shown(page, cell, picture) not in ("", first),
        60,
        f"{name}: the slider to change its picture",
    )
    assert page.screenshot(path=PICTURES / f"{name}-slider-after.png") != before
    back()
    browser.wait(
        lambda: shown(page, cell, picture) == first, 60, f"{name}: the slider to come back"
    )


def move_animation(page, name: str, cells: list[dict]) -> None:
    """matplotlib's animation as a page, with its own slider, by the mouse: Lab keeps the arrow keys for itself."""
    (cell,) = [
        c["id"]
        for c in cells
        if any("animation" in str(o.get("data", {}).get("text/html", "")) for o in c["outputs"])
    ]
    track = ".animation input[type=range]"
    move(
        page,
        name,
        cell,
        ".animation img",
        lambda: page.mouse.click(**scroll_to(page, cell, track, 0.9)),
        lambda: page.mouse.click(**scroll_to(page, cell, track, 0.02)),
    )


def move_widget(page, name: str, cells: list[dict]) -> None:
    """The slider of ipywidgets, by the arrow keys, and the switch beside it."""
    (cell,) = [
        c["id"]
        for c in cells
        if any(
            "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in c["outputs"]
        )
    ]
    browser.wait(
        lambda: inside(page, cell, "visible('.noUi-handle').length == 1"),
        60,
        f"the slider of {name}",
    )
    inside(page, cell, "visible('.noUi-handle')[0].focus({preventScroll: true})")
    move(
        page,
        name,
        cell,
        PICTURE,
        lambda: page.keyboard.press("ArrowRight"),
        lambda: page.keyboard.press("ArrowLeft"),
    )
    first, switch = (
        shown(page, cell, PICTURE),
        scroll_to(page, cell, ".widget-toggle-button:nth-child(3)"),
    )
    page.mouse.click(**switch)
    browser.wait(
        lambda: shown(page, cell, PICTURE) not in ("", first),
        60,
        f"{name}: the switch to change the picture",
    )
    page.screenshot(path=PICTURES / f"{name}-switched.png")


#: What is tried in each notebook beside running it: nothing, a film, a slider.
MOVE = {"00_start_here": None, "04_x0_anchoring": move_animation, "06_nfe_vs_quality": move_widget}


def open_and_run(names: list[str], folder: Path) -> None:
    """Run copies of notebooks in a JupyterLab of their own, and look at their figures and sliders."""
    root = folder / "notebooks"
    root.mkdir(parents=True)
    figures = {name: copy_notebook(name, root) for name in names}
    assert min(figures.values()) > 0
    with server(folder, root) as url, browser.window() as (page, _):
        page.goto(url, timeout=1000 * PATIENCE)
        browser.wait(
            lambda: page.evaluate(
                "window.jupyterapp ? jupyterapp.restored.then(() => true) : false"
            ),
            PATIENCE,
            "JupyterLab",
        )
        for name in names:
            cells = run_all(page, name, folder / "lab.log")
            drawn = [size for cell in cells for size in cell["images"]]
            assert len(drawn) == figures[name] and min(drawn) > 100, f"{name}: figures are missing"
            scroll_to(
                page, next(cell["id"] for cell in cells if cell["images"]), ".jp-RenderedImage img"
            )
            page.screenshot(path=PICTURES / f"{name}-figure.png")
            if MOVE[name]:
                MOVE[name](page, name, cells)
            page.evaluate(
                f"{PANEL}.context.save().then(() => {PANEL}.sessionContext.shutdown())"
                ".then(() => jupyterapp.commands.execute('application:close')).then(() => 1)"
            )
    assert sorted(p.stem for p in root.glob("*.ipynb")) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["00_start_here"], id="figures"),
        pytest.param(
            ["04_x0_anchoring", "06_nfe_vs_quality"], id="sliders", marks=pytest.mark.long
        ),
    ],
)
def test_notebooks_in_jupyterlab(names, tmp_path):
    if not browser.find():
        pytest.skip(f"needs Chromium; {browser.INSTALL}")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in names:
        for old in PICTURES.glob(f"{name}-*.png"):
            old.unlink()
    try:
        open_and_run(names, tmp_path / "first")
    except Stalled as stalled:
        # Seen once in some thirty runs, with ipykernel 7: a cell neither ends nor works. Others report such stalls of that
        # version, and it is locked no more; should one come all the same, the test starts again, and keeps the evidence.
        warnings.warn(f"stalled, and started again: {stalled}", stacklevel=1)
        open_and_run(names, tmp_path / "second")
