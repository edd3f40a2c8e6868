"""Draw samples of an exported model with numpy and onnxruntime alone.

    python examples/sample_onnx.py model.onnx -n 1000 --out rows.csv

A table or windows of series are written as CSV, samples of other models as an .npy array. The file
``model.json`` must lie beside ``model.onnx``, as ``iflow export`` writes it.
"""

import argparse
import csv
import hashlib
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import onnxruntime


def load(file, like=None, threads=0):
    """Return an onnxruntime session, and what the JSON file beside the model says.

    like: names of the columns that are expected, or None. threads: of a session, 0 for all cores.
    ValueError where the two files do not belong together, or the model makes other columns.
    """
    file = Path(file)
    beside = file.with_suffix(".json")
    for each in (file, beside):
        if not each.is_file():
            raise ValueError(
                f"{each} is missing: expected what `iflow export MODEL --out {file}` writes"
            )
    content = file.read_bytes()
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        fits = about["layout"] == 1 and about["sha256"] == hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{beside} is not the file that was written with {file}: export the model again"
        )
    made = [str(c["name"]) for c in about.get("columns", about.get("channels", []))]
    if like is not None and sorted(like) != sorted(made):
        raise ValueError(
            f"{file} was exported for other columns: it makes {', '.join(made) or 'none with names'}, "
            f"and expected are {', '.join(like)}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session, about


def inputs(about, n, seed, label=None):
    """Return what the model is given for n samples: noise, and classes and moments where it takes them."""
    rng = np.random.default_rng(seed)
    given = {"noise": rng.standard_normal((n, *about["inputs"]["noise"])).astype(np.float32)}
    if about["noise"]["law"] == "student":  # PFGM++: one chi-square for each sample
        free = about["noise"]["degrees"]
        root = np.sqrt(free / rng.chisquare(free, n)).astype(np.float32)
        given["noise"] *= root.reshape(-1, *[1] * (given["noise"].ndim - 1))
    chosen = None
    if "calendar" in about["inputs"]:  # windows begin when those of the data did
        chosen = rng.integers(len(about["positions"]), size=n)
        given["calendar"] = calendar(about, stamps(about, chosen))
    if "labels" in about["inputs"]:
        given["labels"] = np.asarray(labels(about, n, rng, chosen, label), dtype=np.int64)
    return given, chosen


def labels(about, n, rng, chosen, label):
    """Return n classes: the one that is asked for, else as often as in the data, else none (-1)."""
    names = about.get("entities") or list(range(about["classes"]))
    if label is not None:
        found = [i for i, name in enumerate(names) if str(name) == str(label)]
        if not found:
            raise ValueError(
                f"no class {label!r}: expected one of {', '.join(map(str, names[:20]))}"
            )
        return found * n
    if chosen is not None:
        return np.asarray(about["labels"])[chosen]
    if about.get("shares"):
        return np.searchsorted(np.cumsum(about["shares"])[:-1], rng.random(n), side="right")
    if not about["knows_no_class"]:
        raise ValueError(
            f"this model makes nothing without a class: give one below {about['classes']}"
        )
    return [-1] * n


def stamps(about, chosen):
    """Return the moments of the steps of windows, (n, T), datetime64 in UTC."""
    origin = np.datetime64(about["origin"], "ns")
    steps = np.asarray(about["positions"])[chosen][:, None] + np.arange(about["length"])
    return origin + steps * np.timedelta64(about["every"], "ns")


def calendar(about, utc):
    """Return the calendar features of moments (n, T): a cosine and a sine each, (n, T, K)."""
    zone, day = ZoneInfo(about["timezone"]), np.timedelta64(1, "D")
    once, back = np.unique(utc.astype("datetime64[s]"), return_inverse=True)
    clock = [
        datetime.fromtimestamp(int(s), timezone.utc).astimezone(zone) for s in once.astype(int)
    ]
    local = np.array([t.replace(tzinfo=None) for t in clock], dtype="datetime64[s]")
    date = local.astype("datetime64[D]")
    hour = (local - date) / day
    turns = {
        "hour": hour,
        "weekday": ((date.astype(int) + 3) % 7 + hour) / 7,  # 1970-01-01 was a Thursday
        "month": ((date - date.astype("datetime64[Y]")) / day + hour) / 365.25,
    }
    angles = 2 * np.pi * np.stack([turns[name] for name in about["calendar"]], axis=1)
    told = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(once), -1)
    return told[back.ravel()].reshape(*utc.shape, -1).astype(np.float32)


def rows(about, out, start=0):
    """Return the columns of a table, lists by name; None where a value is missing."""
    table, n = {}, len(next(iter(out.values())))
    for c in about["columns"]:
        values = np.full(n, c.get("value"), dtype=object)
        if "first" in c:
            numbers = range(c["first"] + start, c["first"] + start + n)
            plain = c["prefix"] is None
            values = [i if plain else f"{c['prefix']}{i:0{c['digits']}d}" for i in numbers]
        elif "output" in c:
            found = out[c["output"]][:, c["at"]]
            named = "labels" in c
            values = np.array(c["labels"], object)[found] if named else typed(found, c)
            if "missing" in c:
                values = np.where(out["missing"][:, c["missing"]], None, values)
        table[c["name"]] = list(values)
    return table


def typed(found, column):
    """Return numbers in the type of a column, and dates as they were written; objects of Python."""
    values = found.astype(column["dtype"])
    if values.dtype.kind == "M":
        if "style" in column:
            moments = values.astype("datetime64[s]").tolist()
            return np.array([t.strftime(column["style"]) for t in moments], dtype=object)
        whole = (values == values.astype("datetime64[s]")).all()
        return np.datetime_as_string(values, unit="s" if whole else "ns").astype(object)
    if values.dtype.kind == "m":  # as 1:22:59
        return np.array([str(t) for t in values.astype("timedelta64[us]").tolist()], dtype=object)
    if values.dtype.kind == "f":  # 0.1 of float32 is to be written as 0.1
        return np.array([float(text) for text in values.astype(str)], dtype=object)
    return np.array(values.tolist(), dtype=object)


def windows(about, out, given, chosen):
    """Return windows as a long table: a row a step, lists by name."""
    values = out["values"]
    n, steps, _ = values.shape
    table = {"window": np.repeat(np.arange(n), steps).tolist()}
    if "labels" in given:
        names = np.array(about["entities"], dtype=object)[given["labels"]]
        table[about["entity"]] = np.repeat(names, steps).tolist()
    if chosen is not None:
        moments = stamps(about, chosen).ravel()
        table[about["time"]] = np.datetime_as_string(moments, unit="s", timezone="UTC").tolist()
    else:
        table["step"] = np.tile(np.arange(steps), n).tolist()
    for i, channel in enumerate(about["channels"]):
        column, kind = values[:, :, i].ravel(), np.dtype(channel["dtype"])
        column = (
            np.rint(column) if kind.kind in "iu" else column > 0.5 if kind.kind == "b" else column
        )
        table[channel["name"]] = column.astype(kind).tolist()
    return table


def draw(session, about, n, seed=None, label=None, start=0, run=None):
    """Return n samples: lists by the name of a column, or an array (n, ...) for a model without names.

    start: number of the first row, by which identifiers count. run: options of onnxruntime for this call.
    """
    given, chosen = inputs(about, n, seed, label)
    out = dict(zip(about["outputs"], session.run(about["outputs"], given, run)))
    if about["kind"] == "table":
        return rows(about, out, start)
    return windows(about, out, given, chosen) if about["kind"] == "series" else out["x"]


def main(arguments=None):
    """Write samples into a file; exit with 2 and one line where something is wrong."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", type=Path)
    options.add_argument("-n", type=int, default=1000, help="samples (default: 1000)")
    options.add_argument("--seed", type=int, help="of the noise (default: another one each time)")
    options.add_argument("--label", help="class or entity of all samples")
    options.add_argument("--like", type=Path, help="a CSV file whose columns the model must make")
    options.add_argument(
        "--out", type=Path, required=True, help="a .csv or .npy file, which is new"
    )
    asked = options.parse_args(arguments)
    try:
        if asked.n < 1 or (asked.seed or 0) < 0:
            raise ValueError(
                f"-n must be at least 1 and --seed at least 0, got {asked.n}, {asked.seed}"
            )
        like = next(csv.reader(asked.like.open(encoding="utf-8")), []) if asked.like else None
        session, about = load(asked.model, like)
        ending = ".npy" if about["kind"] == "samples" else ".csv"
        if asked.out.suffix != ending or asked.out.exists():
            raise ValueError(f"--out must be a new {ending} file, got {asked.out}")
        made = draw(session, about, asked.n, asked.seed, asked.label)
        part = asked.out.with_name(f".{asked.out.name}.part{ending}")  # whole or not at all
        if isinstance(made, dict):
            with part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([list(made), *zip(*made.values())])
        else:
            np.save(part, made)
        part.replace(asked.out)
    except (ValueError, OSError) as error:
        print(f"{options.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{asked.n} samples in {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
