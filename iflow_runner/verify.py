"""``iflow verify``: does a run agree with the committed results?

Both are the one tidy table (``recorder.COLUMNS``). A *cell* is all rows with the same data set,
path, objective, anchor, network, gradient steps, network calls, method, metric and number of
samples; its rows differ in their seeds. A cell that both tables have agrees if the means differ by
no more than the metric's tolerance, or than two standard errors of that difference. The spread over
seeds is the reference's on both sides: a run that diverges must not be excused by its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provenance import sha256
from .recorder import COLUMNS, reference

if TYPE_CHECKING:
    import pandas as pd

#: Columns that say what was measured; those that hold text, and those that hold whole numbers.
TEXT = ("dataset", "path", "objective", "anchor", "network", "method", "metric")
CELL = (*TEXT[:5], "step", "nfe", *TEXT[5:], "n_samples")
#: (relative, absolute) tolerance of a cell's mean. float32 sums in another order, on another processor
#: or with another number of threads, move a trained model's distances this much with all else equal;
#: kernel distances may be 0. One point more or less in a wrong mode moves an rms.
TOLERANCES = {
    "w2": (0.1, 0.01),
    "off_support": (0.1, 0.01),
    "rms_to_exact": (0.1, 0.02),
    "frechet": (0.05, 0.2),
    "kernel": (0.05, 0.02),
}
OTHERWISE = (0.05, 1e-6)
SUMS = "SHA256SUMS"


def check_reference(folder: str | Path | None = None) -> int:
    """Compare every file under ``results/reference`` with its checksum and return their number.

    Raises:
        FileNotFoundError: With one line that names a missing file.
        ValueError: With one line that names a file that was altered.
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


def verify(run: str | Path, against: str | Path | None = None) -> pd.DataFrame:
    """Compare a run with the committed results, or with another run.

    Args:
        run: Folder with a ``results.csv``, or with the tables that experiments write.
        against: The same, or None: every tidy table in ``results/reference``, after its checksums
            have been checked.

    Returns:
        One row for each cell of both: ``CELL``, n and mean of either side, ``allowed`` (the largest
        difference that agrees) and ``agrees``. ``table.attrs["only_in_run"]`` is the number of the
        run's cells that the other side does not have, and ``only_in_reference`` the reverse.

    Raises:
        FileNotFoundError: For a folder that is no run, and a reference with a file missing.
        ValueError: For tables without a common cell, a file that is no table or has no rows, and a
            reference that was altered.
    """
    mine = _cells(_read(Path(run)))
    if against is None:
        check_reference()
    theirs = _cells(_read(Path(against) if against else reference()))
    both = theirs.join(mine, how="inner", lsuffix="_reference", rsuffix="_run").reset_index()
    if both.empty:
        raise ValueError(
            f"{run} and {against or 'results/reference'} have nothing in common: "
            f"{_why_apart(mine, theirs)}; compare with a run of the same profile by --against RUN"
        )
    both["allowed"] = [_allowed(row) for row in both.itertuples()]
    moved = (both.mean_run - both.mean_reference).abs()
    both["agrees"] = (moved <= both.allowed) | both.mean_run.isna() & both.mean_reference.isna()
    both.attrs["only_in_run"] = len(mine) - len(both)
    both.attrs["only_in_reference"] = len(theirs) - len(both)
    return both


def _read(folder: Path) -> pd.DataFrame:
    """The results of a run, or every tidy table of a folder."""
    import pandas as pd

    results = folder / "results.csv"
    files = [results] if results.is_file() else sorted(folder.glob("*.csv"))
    tables = [table for table in map(_table, files) if set(table) == set(COLUMNS)]
    if results.is_file() and not tables:
        expected = ", ".join(COLUMNS)
        raise ValueError(f"{results} is no table of results: expected the columns {expected}")
    if not tables:
        raise FileNotFoundError(
            f"{folder} is no run: it has no results.csv, nor a table such as plane.csv"
        )
    # a row that was written twice counts once
    return pd.concat(tables).drop_duplicates([*CELL, "seed", "run_id", "value"])


def _table(file: Path) -> pd.DataFrame:
    """A csv file, whose values are numbers if it is one of results."""
    import pandas as pd

    try:
        table = pd.read_csv(file)
    except ValueError as error:  # pandas' own and those of decoding are ValueErrors too
        why = " ".join(str(error).split())
        raise ValueError(
            f"{file} cannot be read as a table of results ({why}): run its notebook or experiment again"
        ) from None
    if set(table) != set(COLUMNS):
        return table
    if table.empty:
        raise ValueError(
            f"{file} has no rows: expected results; run its notebook or experiment first"
        )
    values = pd.to_numeric(table["value"], errors="coerce")
    wrong = table["value"][values.isna() & table["value"].notna()]
    if len(wrong):
        raise ValueError(
            f"{file} has {wrong.iloc[0]!r} in the column value: expected numbers; write the table again"
        )
    return table.assign(value=values)


def _cells(table: pd.DataFrame) -> Any:
    """For each cell n, mean (NaN if any value is) and standard deviation (0 for a single row)."""
    import pandas as pd

    # NaN is not equal to itself, and so no part of a key
    table = table.fillna({name: "" if name in TEXT else -1 for name in CELL})
    table = table.astype({name: "str" if name in TEXT else "int64" for name in CELL})
    values = table.groupby(list(CELL))["value"]
    mean, sd = values.agg(lambda v: v.mean(skipna=False)), values.std()
    return pd.DataFrame({"n": values.size(), "mean": mean, "sd": sd.fillna(0.0)})


def _why_apart(mine: Any, theirs: Any) -> str:
    """Name the columns in which two tables of cells have no value in common."""
    said = []
    for column in CELL:
        here, there = (
            sorted(set(cells.index.get_level_values(column))) for cells in (mine, theirs)
        )
        if not set(here) & set(there):
            values = [", ".join(map(str, v[:3])) + ", ..." * (len(v) > 3) for v in (here, there)]
            said.append(f"{column} is {values[0]} here and {values[1]} there")
    return " and ".join(said) or f"no cell with the same {', '.join(CELL[:-1])} and {CELL[-1]}"


def _allowed(row: Any) -> float:
    relative, absolute = TOLERANCES.get(row.metric, OTHERWISE)
    spread = row.sd_reference * (1 / row.n_reference + 1 / row.n_run) ** 0.5
    return max(relative * abs(row.mean_reference) + absolute, 2 * spread)
