"""Figures: the right lines in the right colours, and one-line errors."""

import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from exact import one_line

from iflow_lib import plotting

ROWS = [
    {
        "dataset": "d",
        "path": path,
        "method": method,
        "nfe": nfe,
        "seed": seed,
        "metric": "w2",
        "value": (2 + seed) / nfe,
    }
    for path, method in (
        ("rectified", "euler"),
        ("rectified", "heun"),
        ("ve", "map"),
        ("pfgmpp", "map"),
    )
    for nfe in (2, 4, 8)
    for seed in range(3)
]
FLOOR = [{"dataset": "d", "method": "floor", "metric": "w2", "value": v} for v in (0.1, 0.2)]


@pytest.fixture(autouse=True)
def close():
    plotting.use_style()
    yield
    plt.close("all")


def test_quality():
    axes = plotting.quality_against_nfe(pd.DataFrame(ROWS + FLOOR), plt.figure().add_subplot())
    lines = {
        line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")
    }
    assert list(lines) == [
        "Integration Flow, VE",
        "Integration Flow, PFGM++",
        "Rectified Flow, Euler",
        "Rectified Flow, Heun",
    ]
    for name, line in lines.items():
        assert line.get_color() == plotting.METHOD_COLORS[name]
        assert line.get_xdata().tolist() == [2, 4, 8] and line.get_ydata() == pytest.approx(
            [1.5, 0.75, 0.375]
        )
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "2",
        "4",
        "8",
    ] and axes.get_xscale() == "log"
    heights = sorted(t.get_position()[1] for t in axes.texts)
    assert (
        len(heights) == 5 and min(b - a for a, b in zip(heights, heights[1:])) > 0.03
    )  # none on top of another


def test_ticks_that_are_too_near_are_left_out():
    rows = [*ROWS, *({**row, "nfe": row["nfe"] - 1} for row in ROWS if row["method"] == "heun")]
    axes = plotting.quality_against_nfe(pd.DataFrame(rows))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3", "4", "8"]


def test_one_seed():
    axes = plotting.quality_against_nfe(pd.DataFrame(ROWS)[lambda d: d["seed"] == 0], label=False)
    assert len(axes.get_lines()) == 4 and not axes.texts


@pytest.mark.parametrize(
    "x, columns, shape",
    [
        (torch.zeros(5, 1, 28, 28), None, (58, 88)),
        (torch.zeros(4, 3, 8, 8, requires_grad=True), 4, (8, 35, 3)),
    ],
)
def test_image_grid(x, columns, shape):
    image = (
        plotting.image_grid(x, plt.figure().add_subplot(), columns=columns)
        .get_images()[0]
        .get_array()
    )
    assert image.shape == shape and image[0, 0].max() == 0.5


def test_scatter():
    axes = plotting.scatter_2d(
        torch.tensor([[0.0, 1.0], [2.0, -1.0]]), plt.figure().add_subplot(), limit=3
    )
    assert (
        axes.get_xlim() == axes.get_ylim() == (-3, 3)
        and len(axes.collections[0].get_offsets()) == 2
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: plotting.image_grid(torch.zeros(3, 2, 8, 8)), "(3, 2, 8, 8)"),
        (lambda: plotting.scatter_2d(torch.zeros(3, 3)), "(3, 3)"),
        (lambda: plotting.quality_against_nfe(pd.DataFrame(ROWS), metric="w1"), "one metric"),
    ],
)
def test_wrong_use(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in one_line(error)


def test_names_have_colours():
    for path in ("rectified", "ve", "pfgmpp"):
        for method in ("map", "euler", "heun"):
            assert plotting.method_name(path, method) in plotting.METHOD_COLORS


CALLS = """def deeper(n):
    return ifl.sample(model, n=n, nfe=1)

deeper(0)"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Code -> what a notebook shows of its error, as lines."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Shell(InteractiveShell):  # not the one that get_ipython() finds
        def _showtraceback(self, kind, error, lines):
            self.lines = "\n".join(lines).split("\n")

    main = sys.modules["__main__"]  # the shell puts its own in place
    shell = Shell(
        ipython_dir=str(tmp_path_factory.mktemp("ipython")),
        config=Config(HistoryManager={"enabled": False}),
    )
    try:
        shell.set_custom_exc((ValueError, OSError), plotting.show_short_error)
        shell.run_cell(
            "import iflow_lib as ifl, torch\nmodel = ifl.FlowMap(ifl.MLP(dim=2), ifl.RectifiedFlow())"
        )

        def run(code):
            shell.lines = []
            assert shell.run_cell(code, store_history=True).error_in_exec is not None
            return shell.lines

        yield run
    finally:
        shell.restore_sys_module_state()
        sys.modules["__main__"] = main


@pytest.mark.parametrize(
    "code, first, second",
    [
        (
            CALLS,
            "ValueError: n must be",
            "line 2 of this cell: return ifl.sample(model, n=n, nfe=1)",
        ),
        (
            "ifl.FlowMap.from_pretrained('nowhere')",
            "FileNotFoundError: no model in nowhere",
            "line 1 of this cell: ifl.",
        ),
        (
            "ifl.data.load('moons')",
            "ValueError: unknown data set 'moons'",
            "line 1 of this cell: ifl.data.load",
        ),
        (
            "n = -1\nif n < 0:\n    raise ValueError(f'need n > 0; got {n}')",
            "ValueError: need n > 0; got -1",
            "line 3 of this cell",
        ),
    ],
)
def test_errors_are_short(shown, code, first, second):
    lines = shown(code)
    assert len(lines) == 2 and lines[0].startswith(first) and lines[1].strip().startswith(second), (
        lines
    )
    assert len(shown("%tb\nraise KeyError")) > 2  # another kind is as ever


@pytest.mark.parametrize(
    "code", ["torch.zeros(2).reshape(3)", "import json\njson.loads('{')", "1 / 0"]
)
def test_errors_from_elsewhere_are_whole(shown, code):
    assert len(shown(code)) > 3
