"""The shared style of figures, and short errors in notebooks.

The same method has the same colour and marker in every figure. Only ``short_errors`` is about
errors: ``use_style`` switches it on, because every notebook calls that first.
"""

from __future__ import annotations

import linecache
import math
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # heavy, and needed only where figures are drawn
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

#: Colours of methods, safe for colour-blind readers (after Okabe and Ito): cold for Integration Flow,
#: warm for the solvers that it is compared with.
METHOD_COLORS = {
    "Integration Flow, rectified": "#0072B2",
    "Integration Flow, VE": "#56B4E9",
    "Integration Flow, PFGM++": "#009E73",
    "Rectified Flow, Euler": "#D55E00",
    "Rectified Flow, Heun": "#E69F00",
    "VE, Euler": "#B5508B",
    "VE, Heun": "#DDA3C6",
    "PFGM++, Euler": "#6B4C9A",
    "PFGM++, Heun": "#B3A0D0",
    "floor": "#8A8F98",
    "data": "#3C4048",
}
_MARKERS = {"Integration Flow": "o", "Euler": "s", "Heun": "^"}
_OTHER_COLOR = "#8A8F98"
#: Packages whose errors are shown in two lines.
_OURS = ("iflow_lib", "iflow_runner")
#: How figures and tables name the paths.
PATH_LABELS = {"rectified": "rectified", "ve": "VE", "pfgmpp": "PFGM++"}
#: How figures and tables name the sets in the plane.
SETS = {
    "eight_gaussians": "eight Gaussians",
    "checkerboard": "checkerboard",
    "two_moons": "two moons",
    "spiral": "spiral",
    "pinwheel": "pinwheel",
}


def use_style() -> None:
    """Set seaborn's ticks theme with our sizes and palette, and switch on ``short_errors``.

    Call it once, in the first cell of a notebook.
    """
    import seaborn as sns

    short_errors()
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=list(METHOD_COLORS.values()),
        rc={
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#9AA0A8",
            "xtick.color": "#555B64",
            "ytick.color": "#555B64",
            "axes.labelcolor": "#3C4048",
            "text.color": "#24292F",
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "#E6E8EB",
            "grid.linewidth": 0.8,
            "lines.linewidth": 2.0,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 10,
        },
    )


def short_errors() -> None:
    """Show errors that our packages or a cell raise in two lines, in a notebook.

    A ValueError or OSError then says what is wrong, and which line of the cell asked for it;
    ``%tb`` shows the calls in between. Errors from elsewhere stay as they are. Outside a notebook
    nothing changes.
    """
    ipython = sys.modules.get("IPython")  # loaded, where there is a notebook
    if shell := ipython and ipython.get_ipython():
        shell.set_custom_exc((ValueError, OSError), show_short_error)


def show_short_error(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> None:
    """Handle an error for IPython's ``set_custom_exc``; see ``short_errors``.

    Args:
        shell: The interactive shell.
        kind: The class of the error.
        error: The error.
        trace: Its traceback.
        tb_offset: How many frames IPython leaves out.
    """
    frames = list(traceback.walk_tb(trace))
    cells = [
        (frame.f_code.co_filename, line)
        for frame, line in frames
        if frame.f_globals is shell.user_global_ns
    ]
    raised_in = frames[-1][0].f_globals if frames else {}
    package = (raised_in.get("__package__") or "").partition(".")[0]
    if cells and (raised_in is shell.user_global_ns or package in _OURS):
        file, line = cells[-1]
        code = linecache.getline(file, line).strip()
        where = f"    line {line} of this cell{'' if code.startswith('raise') else ': ' + code}"
        # IPython asks the error itself how to show it
        vars(error)["_render_traceback_"] = lambda: [f"{kind.__name__}: {error}", where]
    try:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    finally:
        vars(error).pop("_render_traceback_", None)


def method_name(path: str, method: str) -> str:
    """Return how figures name a method.

    Args:
        path: Column path of a row of results, such as "ve".
        method: Column method, such as "map".

    Returns:
        The name, such as "Integration Flow, VE".
    """
    if method in ("floor", "data"):
        return method
    shown = PATH_LABELS.get(path, path)
    if method == "map":
        return f"Integration Flow, {shown}"
    return f"{'Rectified Flow' if path == 'rectified' else shown}, {method.capitalize()}"


def quality_against_nfe(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    metric: str | None = None,
    ylabel: str = "",
    title: str = "",
    label: bool = True,
) -> Axes:
    """Plot a metric against the network calls for each sample, both axes logarithmic.

    Each method is a line through the means of its rows, shaded from the least to the greatest
    value. Rows with the method "floor" make a grey line at their mean, and a grey band where nine
    in ten of them lie.

    Args:
        df: Rows of results of one data set, one for each seed, with columns dataset, path, method,
            nfe, metric and value.
        ax: The axes to draw on; None takes the current ones.
        metric: Which metric, if there are several.
        ylabel: Label of the vertical axis; the metric's name if empty.
        title: Title of the axes.
        label: Whether to name the lines at the right.

    Returns:
        The axes.

    Raises:
        ValueError: For no rows, or rows of several metrics or data sets.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    df = df if metric is None else df[df["metric"] == metric]
    if df["metric"].nunique() != 1 or df["dataset"].nunique() > 1:
        metrics, sets = sorted(set(df["metric"])), sorted(set(df["dataset"]))
        raise ValueError(
            f"need rows of one metric and one data set, got metrics {metrics} and data sets {sets}"
        )
    ax = plt.gca() if ax is None else ax
    names = [method_name(p, m) for p, m in zip(df["path"], df["method"])]
    order = {name: i for i, name in enumerate(METHOD_COLORS)}
    ends = {}
    for name in sorted(set(names) - {"floor"}, key=lambda n: (order.get(n, len(order)), n)):
        values = df[[n == name for n in names]].groupby("nfe")["value"]
        mean, low, high = values.mean(), values.min(), values.max()
        color, marker = METHOD_COLORS.get(name, _OTHER_COLOR), _marker(name)
        ax.fill_between(mean.index.astype(float), low, high, color=color, alpha=0.18, linewidth=0)
        ax.plot(
            mean.index.astype(float),
            mean,
            color=color,
            marker=marker,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            linestyle="--" if name.endswith("Heun") else "-",
            label=name,
            zorder=3 if name.startswith("Integration Flow") else 2,
        )
        ends[name] = mean.iloc[-1]
    floor = df["value"][[n == "floor" for n in names]]
    if len(floor):
        low, high = floor.quantile([0.05, 0.95])
        ax.axhspan(low, high, color=METHOD_COLORS["floor"], alpha=0.2, linewidth=0, zorder=0)
        ax.axhline(floor.mean(), color=METHOD_COLORS["floor"], linewidth=1, zorder=0)
        ends["floor"] = floor.mean()
    calls = sorted(int(n) for n in df["nfe"].dropna().unique())
    # Heun's 7 and 15 calls stand too near to Euler's 8 and 16 for two numbers
    ticks = [n for n in calls if not any(n < m < 1.25 * n for m in calls)]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="network calls per sample (NFE)",
        title=title,
        xticks=ticks,
        xticklabels=ticks,
        ylabel=ylabel or df["metric"].iloc[0],
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    if label:
        _label_ends(ax, ends)
    return ax


def _marker(name: str) -> str:
    return next((m for part, m in _MARKERS.items() if part in name), "D")


def _label_ends(ax: Axes, ends: Mapping[str, float]) -> None:
    """Write names right of the axes, each where its line ends, so that none touches another."""
    size = 9.5
    ax.figure.canvas.draw()  # the heights need the final limits and layout
    gap = 1.5 * size * ax.figure.dpi / 72 / ax.get_window_extent().height
    to_axes = ax.transAxes.inverted()
    names = sorted(ends, key=lambda name: ends[name])
    heights = [to_axes.transform(ax.transData.transform((1, ends[n])))[1] for n in names]
    for _ in range(200):
        for i in range(len(heights) - 1):
            push = max(0, gap - (heights[i + 1] - heights[i])) / 2
            heights[i], heights[i + 1] = heights[i] - push, heights[i + 1] + push
    # none below the axes, if there is room above
    lift = max(0, min(0.02 - heights[0], 0.98 - heights[-1]))
    for name, y in zip(names, [h + lift for h in heights]):
        color = METHOD_COLORS.get(name, _OTHER_COLOR)
        ax.plot(
            1.035,
            y,
            marker=_marker(name) if name != "floor" else "_",
            color=color,
            markersize=6,
            clip_on=False,
            transform=ax.transAxes,
        )
        ax.text(
            1.065,
            y,
            "data against data" if name == "floor" else name,
            color="#24292F",
            fontsize=size,
            va="center",
            transform=ax.transAxes,
        )


def _array(x: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def image_grid(
    x: Any, ax: Axes | None = None, *, columns: int | None = None, title: str = ""
) -> Axes:
    """Show images side by side on one axes.

    Args:
        x: Images (n, C, H, W) in [-1, 1], C 1 or 3.
        ax: The axes to draw on; None takes the current ones.
        columns: Images in a row; None makes the sheet as square as can be.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ValueError: For another shape, or no images.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    x = _array(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(f"need images (n, 1 or 3, H, W), got shape {x.shape}")
    ax = plt.gca() if ax is None else ax
    n, channels, height, width = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows, pad = math.ceil(n / columns), max(1, height // 14)
    sheet = np.ones((rows * (height + pad) - pad, columns * (width + pad) - pad, channels))
    for i, image in enumerate(np.clip(x.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)):
        top, left = i // columns * (height + pad), i % columns * (width + pad)
        sheet[top : top + height, left : left + width] = image
    ax.imshow(
        sheet.squeeze(-1) if channels == 1 else sheet,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def scatter_2d(
    x: Any,
    ax: Axes | None = None,
    *,
    color: str = METHOD_COLORS["data"],
    title: str = "",
    limit: float | None = None,
) -> Axes:
    """Show points in the plane on one axes, square, without ticks.

    Args:
        x: Points (n, 2).
        ax: The axes to draw on; None takes the current ones.
        color: Colour of the points.
        title: Title of the axes.
        limit: Both axes show [-limit, limit]; None holds all points.

    Returns:
        The axes.

    Raises:
        ValueError: For another shape.
    """
    import matplotlib.pyplot as plt

    x = _array(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"need points (n, 2), got shape {x.shape}")
    ax = plt.gca() if ax is None else ax
    alpha = min(0.7, max(0.15, 700 / max(1, len(x))))
    ax.scatter(x[:, 0], x[:, 1], s=4, alpha=alpha, color=color, linewidths=0, rasterized=True)
    limit = limit or 1.05 * float(abs(x).max(initial=0.1))
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], title=title)
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    return ax
