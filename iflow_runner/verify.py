"""``iflow verify``: does a run agree with the committed results? Both are the one tidy table (``results.COLUMNS``).

A *cell* is all rows with the same data set, path, objective, anchor, network, gradient steps, network calls, method, metric
and number of samples; its rows differ in their seeds. A cell that both tables have agrees if the means differ by no more
than the metric's tolerance, or than two standard errors of that difference. The spread over seeds is the reference's on
both sides: a run that diverges must not be excused by its own.
"""

from __future__ import annotations

from pathlib import Path

from .provenance import sha256
from .recorder import COLUMNS, reference

CELL = (
    "dataset",
    "path",
    "objective",
    "anchor",
    "network",
    "step",
    "nfe",
    "method",
    "metric",
    "n_samples",
)
#: (relative, absolute) tolerance of a cell's mean. float32 sums in another order, on another processor or with another
#: number of threads, move a trained model's distances this much with all else equal; kernel distances may be 0.
TOLERANCES = {"w2": (0.1, 0.01), "frechet": (0.05, 0.2), "kernel": (0.05, 0.02)}
OTHERWISE = (0.05, 1e-6)
SUMS = "SHA256SUMS"


def check_reference(folder=None) -> int:
    """Compare every file under ``results/reference`` with its checksum in SHA256SUMS; their number.

    Raises FileNotFoundError naming a missing file and ValueError naming one that was altered.
    """
    folder = Path(folder) if folder else reference()
    sums = folder / SUMS
    if not sums.is_file():
        raise FileNotFoundError(f"{folder.name}/{SUMS} is missing: restore it with git")
    lines = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
    for expected, name in lines:
        found = sha256(folder / name)
        if found is None:
            raise FileNotFoundError(f"{folder.name}/{name} is missing: restore it with git")
        if found != expected:
            raise ValueError(
                f"{folder.name}/{name} was altered: its sha256 is {found[:12]}..., {SUMS} has "
                f"{expected[:12]}..."
            )
    return len(lines)


def verify(run, against=None):
    """Compare a run with the committed results, or with another run: a pandas table, one row for each cell of both.

    run, against: folders with a ``results.csv``, or with the tables that the benchmarks write there; against None: every
    tidy table in ``results/reference``, after its checksums have been checked. Columns: ``CELL``, n and mean of either
    side, ``allowed`` (the largest difference that agrees) and ``agrees``. ``table.attrs["only_in_run"]``: number of the
    run's cells that the other side does not have.

    Raises FileNotFoundError or ValueError for a folder that is no run, tables without a common cell, and a reference that
    is not whole.
    """
    import pandas as pd

    mine, theirs = _cells(_read(run)), None
    if against is None:
        check_reference()
        tables = [pd.read_csv(file) for file in sorted(reference().glob("*.csv"))]
        theirs = _cells(pd.concat([table for table in tables if set(table) == set(COLUMNS)]))
    else:
        theirs = _cells(_read(against))
    both = theirs.join(mine, how="inner", lsuffix="_reference", rsuffix="_run").reset_index()
    if both.empty:
        raise ValueError(
            f"{run} and {against or 'results/reference'} have nothing in common: no cell with the same "
            f"{', '.join(CELL[:-1])} and {CELL[-1]}"
        )
    both["allowed"] = [_allowed(row) for row in both.itertuples()]
    apart = (both.mean_run - both.mean_reference).abs()
    both["agrees"] = (apart <= both.allowed) | both.mean_run.isna() & both.mean_reference.isna()
    both.attrs["only_in_run"] = len(mine) - len(both)
    return both


def _read(folder):
    import pandas as pd

    file, tables = Path(folder) / "results.csv", []
    for found in [file] if file.is_file() else sorted(Path(folder).glob("*.csv")):
        table = pd.read_csv(found)
        if set(table) == set(COLUMNS):
            tables.append(table)
        elif found == file:
            raise ValueError(
                f"{file} is no table of results: expected the columns {', '.join(COLUMNS)}"
            )
    if not tables:
        raise FileNotFoundError(
            f"{folder} is no run: it has no results.csv, nor a table such as plane.csv"
        )
    return pd.concat(tables)


def _cells(table):
    """Per cell: n, mean (NaN if any value is) and standard deviation, 0 for a single row."""
    gaps = {
        name: ""
        if name in ("dataset", "path", "objective", "anchor", "network", "method", "metric")
        else -1
        for name in CELL
    }  # NaN is not equal to itself, and so no part of a key
    table = table.fillna(gaps).astype(
        {name: "str" if gap == "" else "int64" for name, gap in gaps.items()}
    )
    groups = table.groupby(list(CELL)).value
    return groups.agg(n="size", mean=lambda values: values.mean(skipna=False), sd="std").fillna(
        {"sd": 0.0}
    )


def _allowed(row) -> float:
    relative, absolute = TOLERANCES.get(row.metric, OTHERWISE)
    return max(
        relative * abs(row.mean_reference) + absolute,
        2 * row.sd_reference * (1 / row.n_reference + 1 / row.n_run) ** 0.5,
    )
