"""The table of experiments/gpu.py: what was measured on one card beside what was on others, and what it must show."""

import csv
import io
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from experiments.common import ROOT
from experiments.store import manifest_text, read_manifest
from iflow_lib.io import write_together
from iflow_runner.provenance import git_state, sha256, utc_now

#: Jumps, and the Euler steps that they should match.
JUMPS, EULER = (1, 2, 4), (8, 16, 32)
PARTS = ("tests", "speed", "sampling", "quality")
COLUMNS = tuple(
    "card part run dataset network params path objective precision mode batch nfe method seed step n_samples "
    "metric value low high unit share_of_ceiling ceiling repetitions note".split()
)


class Skip(Exception):
    """A measurement that is not made; the message says why."""


class Budget:
    """The seconds that a part has.

    until: the time at which they are over. clock: gives the time now.
    """

    def __init__(self, until: float, clock: Callable[[], float] = time.time):
        self.until, self.clock = until, clock

    def left(self) -> float:
        return self.until - self.clock()


@dataclass(frozen=True)
class Cell:
    """A measurement: rows that come into the table together.

    run: its name, which begins with its part. need: seconds that must be left to begin it. measure: makes the rows.
    """

    run: str
    need: float
    measure: Callable[[Budget], list[dict]]


class Results:
    """The table ``gpu.csv`` in a folder, with its manifest, as one card sees it. Every change is on the disk at once.

    card: name of the card. about: what the manifest says of it.
    """

    def __init__(self, out: Path, card: str, about: dict | None = None):
        self.file, self.card = Path(out) / "gpu.csv", card
        self.rows: list[dict[str, str]] = []
        self.manifest: dict = {"cards": {}, "plans": {}, "skipped": {}, "runs": {}}
        if self.file.is_file():
            with open(self.file, encoding="utf-8", newline="") as old:
                self.rows = list(csv.DictReader(old))
            self.manifest |= read_manifest(self.file)
        self.commit = git_state(ROOT)
        self.manifest["cards"][card] = self.manifest["cards"].get(card, {}) | (about or {})

    def mine(self) -> list[dict[str, str]]:
        """The rows of this card."""
        return [row for row in self.rows if row["card"] == self.card]

    def has(self, run: str) -> bool:
        """Whether a measurement is there. A check that failed is made again."""
        rows = [row for row in self.mine() if row["run"] == run]
        return bool(rows) and not any(
            row["metric"] == "passed" and row["value"] == "0" for row in rows
        )

    def find(self, **wanted) -> float | None:
        """The value of the row of this card that has what is wanted, None if there is none."""
        for row in self.mine():
            if all(row[column] == text(value) for column, value in wanted.items()):
                return float(row["value"])
        return None

    def add(self, run: str, rows: Iterable[dict], seconds: float) -> None:
        """Put the rows of a measurement in the place of earlier ones."""
        self.rows = [row for row in self.rows if (row["card"], row["run"]) != (self.card, run)]
        head = {"card": self.card, "part": run.split("/")[0], "run": run}
        self.rows += [{c: text((head | row).get(c)) for c in COLUMNS} for row in rows]
        key, how = self._key(run), {"made": utc_now(), **self.commit, "seconds": round(seconds, 1)}
        self.manifest["runs"][key] = how
        self.manifest["skipped"].pop(key, None)
        self.write()

    def forget(self, part: str) -> None:
        """Leave out what was measured of a part on this card."""
        self.rows = [r for r in self.rows if (r["card"], r["part"]) != (self.card, part)]
        for kept in ("runs", "skipped", "plans"):
            start = self._key(f"{part}/")
            known = self.manifest[kept].items()
            self.manifest[kept] = {key: v for key, v in known if not key.startswith(start)}

    def skip(self, whys: dict[str, str]) -> None:
        """Say why measurements are missing: {run: why}."""
        self.manifest["skipped"] |= {self._key(run): why for run, why in whys.items()}
        self.write()

    def plan(self, name: str, value: dict | None = None) -> dict | None:
        """Keep a decision that later calls on this card must follow, or give the one that is kept."""
        if value is not None:
            self.manifest["plans"][self._key(name)] = value
            self.write()
        return self.manifest["plans"].get(self._key(name))

    def write(self) -> None:
        """Write the table and its manifest, each whole or not at all."""
        cards = list(dict.fromkeys(row["card"] for row in self.rows))
        self.rows.sort(key=lambda row: (cards.index(row["card"]), PARTS.index(row["part"])))
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        lock = {"lock_sha256": sha256(ROOT / "requirements.lock")}
        about = {"made": utc_now(), **self.commit, **lock} | {
            name: self.manifest[name] for name in ("cards", "plans", "skipped", "runs")
        }
        manifest = self.file.with_suffix(".manifest.json")
        write_together({self.file: table.getvalue(), manifest: manifest_text(about)})

    def _key(self, run: str) -> str:
        return f"{self.card}: {run}"


def text(value) -> str:
    """A cell of the table."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measure_all(cells: Iterable[Cell], results: Results, budget: Budget) -> dict[str, int]:
    """Make the measurements that are missing, as far as the time goes; what is skipped is said with a word.

    Returns how many were "measured", were "there" already, were "skipped".
    """
    count, too_late = {"measured": 0, "there": 0, "skipped": 0}, {}
    for cell in cells:
        left = budget.left()
        if results.has(cell.run):
            count["there"] += 1
        elif left < cell.need:  # a later one may be shorter
            too_late[cell.run] = f"{max(0, left):.0f} s were left, it needs {cell.need:.0f}"
        else:
            count["measured" if _measure(cell, results, budget) else "skipped"] += 1
    if too_late:
        results.skip(too_late)
        first, more = list(too_late)[:4], len(too_late) - 4
        rest = f", and {more} more, which gpu.manifest.json names" if more > 0 else ""
        say(f"skipped, {max(0, budget.left()):.0f} s are left: {'; '.join(first)}{rest}")
    return count | {"skipped": count["skipped"] + len(too_late)}


def _measure(cell: Cell, results: Results, budget: Budget) -> bool:
    """Make a measurement; whether it could be made. An error in one does not end the others."""
    start = budget.clock()
    try:
        rows = cell.measure(budget)
    except Skip as error:
        why = f"skipped: {error}"
    except Exception as error:
        why = f"failed: {type(error).__name__}: {_first_line(error)}"
    else:
        took = budget.clock() - start
        results.add(cell.run, rows, took)
        say(f"{cell.run}: {_summary(rows)} ({took:.1f} s, {budget.left():.0f} s left)")
        return True
    results.skip({cell.run: why})
    say(f"{cell.run}: {why}")
    return False


def say(line: str) -> None:
    print(line, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _summary(rows: list[dict]) -> str:
    """A few words on the first rows."""
    shown = []
    for row in rows[:4]:
        at = f" at {row['nfe']} calls" if row.get("nfe") else ""
        unit = f" {row['unit']}" if row.get("unit") else ""
        note = f" ({row['note']})" if row.get("note") else ""
        shown.append(f"{row['metric'].replace('_', ' ')}{at} {text(row['value'])}{unit}{note}")
    return ", ".join(shown)


# ------------------------------------------------------------------ the card
def card_name(device: torch.device) -> str:
    """What the column ``card`` says."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def about_card(device: torch.device) -> dict:
    """What the manifest says of a card and of the machine around it."""
    about: dict = {}
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        about = {
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{known.major}.{known.minor}",
            "memory_gb": round(known.total_memory / 2**30, 1),
            "multiprocessors": known.multi_processor_count,
        }
    return about | {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.split() or [None])[0]


# ------------------------------------------------------------------ what it must show
@dataclass(frozen=True)
class Demand:
    """Something that the table must show.

    what: in words. value: as measured, NaN if it was not. bound: NaN for none. most: the bound is the largest value that is
    allowed; otherwise the smallest. how: which rows the value comes from.
    """

    what: str
    value: float
    bound: float
    most: bool
    how: str = ""

    @property
    def verdict(self) -> str:
        if math.isnan(self.value):
            return "not measured"
        if math.isnan(self.bound):
            return "measured"
        good = self.value <= self.bound if self.most else self.value >= self.bound
        return "met" if good else "not met"

    @property
    def shown_bound(self) -> str:
        if math.isnan(self.bound):
            return ""
        return f"at {'most' if self.most else 'least'} {self.bound:g}"


def demands(table: pd.DataFrame, card: str) -> list[Demand]:
    """What the table of a card shows of what it must show."""
    rows = table[table.card == card]

    def part(**wanted) -> pd.DataFrame:
        found = rows
        for column, value in wanted.items():
            found = found[found[column] == value]
        return found

    def rate(objective: str, precision: str, mode: str) -> float:
        found = part(
            part="speed",
            network="UNet",
            objective=objective,
            precision=precision,
            mode=mode,
            metric="steps_per_second",
        ).value
        return float(found.iloc[-1]) if len(found) else math.nan

    fast = ("bfloat16", "compiled")
    velocity = rate("FlowMatching", *fast)
    peers = part(part="speed", metric="fit_over_peer").sort_values("value")
    trainers = {mode: rate("FlowMatching", "bfloat16", mode) for mode in ("compiled", "graphs")}
    trainers = {mode: value for mode, value in trainers.items() if not math.isnan(value)}
    best = max(trainers, key=trainers.__getitem__, default="")
    bare = rate("FlowMatching", "bfloat16", "replay, compiled")
    jump, mode = _jump_against_steps(part(part="sampling", metric="latency"))
    used = part(objective="FlowMatching", metric="steps_per_second", network="UNet")
    used = used[(used.precision == fast[0]) & (used["mode"] == fast[1])].share_of_ceiling
    won, compared = jumps_that_win(part(part="quality"))
    checks, none = part(metric="passed").value, math.nan
    return [
        Demand(
            "checks that passed, share",
            float(checks.astype(float).mean()),
            1.0,
            False,
            f"{len(checks)} checks",
        ),
        Demand(
            "compiled bfloat16 against eager float32, FlowMatching, times as fast",
            velocity / rate("FlowMatching", "float32", "eager"),
            3.0,
            False,
        ),
        Demand(
            "compiled bfloat16 against the fastest neighbour as it ships, times as fast",
            float(peers.value.iloc[0]) if len(peers) else none,
            1.5,
            False,
            str(peers.objective.iloc[0]) if len(peers) else "",
        ),
        Demand(
            "a training step beyond the bare replay, share of the replay",
            bare / trainers[best] - 1 if best else none,
            0.15,
            True,
            f"bfloat16, {best}" if best else "",
        ),
        Demand(
            "a step of IntegralIdentity against a velocity step, time",
            velocity / rate("IntegralIdentity, jvp", *fast),
            1.4,
            True,
            "bfloat16, compiled, forward mode",
        ),
        Demand("fifty Euler steps against one jump, time", jump, 45.0, False, mode),
        Demand(
            "comparisons of one, two, four jumps with 8, 16, 32 Euler steps that the jumps win, share",
            won / compared if compared else none,
            none,
            False,
            f"{compared} comparisons",
        ),
        Demand(
            "share of the card's bfloat16 products that compiled FlowMatching uses",
            float(used.iloc[-1]) if len(used) else none,
            none,
            False,
            "the rest is left",
        ),
    ]


def _jump_against_steps(latency: pd.DataFrame) -> tuple[float, str]:
    """The ratio at the largest batch, in the mode in which one jump is fastest."""
    if latency.empty:
        return math.nan, ""
    wide = latency.pivot_table(index=["batch", "mode"], columns="nfe", values="value")
    if not {1, 50} <= set(wide):
        return math.nan, ""
    wide = wide.dropna(subset=[1, 50])
    if not len(wide):
        return math.nan, ""
    largest = wide.loc[wide.index.get_level_values("batch").max()]
    mode = largest[1].idxmin()
    batch = int(wide.index.get_level_values("batch").max())
    return float(largest.loc[mode, 50] / largest.loc[mode, 1]), f"batch {batch}, {mode}"


def jumps_that_win(rows: pd.DataFrame) -> tuple[int, int]:
    """How many comparisons of jumps with Euler steps, same path and seed, the jumps win, and how many there are."""
    key = ["dataset", "step", "path", "seed"]
    value = rows[rows.metric == "frechet"].set_index([*key, "method", "nfe"]).value
    value = value[~value.index.duplicated(keep="last")].to_dict()
    pairs = []
    for (*model, method, nfe), found in value.items():
        if method == "map":
            against = (*model, "euler", float(EULER[JUMPS.index(nfe)]))
            pairs += [(found, value[against])] if against in value else []
    return sum(mine <= theirs for mine, theirs in pairs), len(pairs)


def show_demands(table: pd.DataFrame) -> None:
    """Print them for each card."""
    for card in dict.fromkeys(table.card):
        say(f"\n{card}: what it must show")
        for one in demands(table, card):
            value = "" if math.isnan(one.value) else f"{one.value:.3g}"
            how = f" ({one.how})" if one.how and value else ""
            say(f"  {one.verdict:12}  {value:>6}  {one.shown_bound:13}  {one.what}{how}")
