"""The page of ``quality``: one HTML file with its style and its figures inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .measures import ALL, MEASURES
from .pictures import MOST, Picture

if TYPE_CHECKING:  # pandas is heavy, and quality imports this module
    import pandas as pd

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #dfe3e8; --back: #fbfbfa;
  --card: #fff; --real: #3c4048; --synthetic: #0072b2; --other: #9aa1ab; --best: #0b7a53; --bad: #b3561e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333b46;
  --back: #14181d; --card: #1b2027; --real: #c9ced6; --synthetic: #56b4e9; --other: #78818d; --best: #56c596; --bad: #f0a070; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); max-width: 46rem; } li { color: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .8rem 0; font-size: .9rem; color: var(--soft); }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .4rem; vertical-align: -.08rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1rem; }
.curves { grid-template-columns: repeat(3, 1fr); }
figure { margin: 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; min-width: 0; }
figcaption { font-size: .92rem; font-weight: 600; overflow-wrap: anywhere; }
figcaption small { display: block; font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
svg text { fill: var(--soft); font-size: 11px; } svg text.mine { fill: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:last-child { white-space: normal; min-width: 9rem; } td.n, th.n { text-align: right; white-space: nowrap; } td small { color: var(--soft); }
summary { cursor: pointer; color: var(--soft); margin: .6rem 0; }
"""
_COLOURS = {"synthetic": "var(--synthetic)", "real": "var(--real)"}
_OTHER = "var(--other)"


def page(
    table: pd.DataFrame,
    summary: pd.DataFrame,
    intervals: pd.DataFrame,
    *,
    shapes: str,
    predicted: str,
    notes: Sequence[str],
    pictures: Sequence[Picture],
) -> str:
    """Write what was found as one HTML page. The arguments are those parts of a ``Quality``.

    Args:
        table: Values of each measure, column or pair, and source.
        summary: Means, one row a measure and one column a source.
        intervals: Half their intervals.
        shapes: How many rows there are, in words.
        predicted: The score of the prediction, in words.
        notes: What to know when reading it.
        pictures: Distributions and curves.

    Returns:
        The page; it asks for no other file.
    """
    measures = [name for name in MEASURES if (table["measure"] == name).any()]
    cards = "".join(_card(name, table[table["measure"] == name], predicted) for name in measures)
    parts = [
        f"<h1>Quality of synthetic data</h1><p>{escape(shapes)}</p>",
        _key(),
        "<h2>Beside real rows and baselines</h2>"
        "<p>Each dot is the mean over seeds, its bar the 95 % interval. The green line is what a "
        "perfect sampler would score on endless data; <b>real</b>, training rows in the place of "
        "synthetic ones, is what can be reached with this much.</p>",
        f'<div class="cards">{cards}</div>',
        _notes(notes),
        _pictures(pictures),
        *(
            _details(name, table[table["measure"] == name])
            for name in measures
            if (table[table["measure"] == name]["of"] != ALL).sum() > table["source"].nunique()
        ),
        _whole(summary, intervals),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Quality of synthetic data</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _key() -> str:
    names = {"synthetic": "synthetic", "real": "real (the floor)", "": "baselines"}
    dots = "".join(
        f'<span><i style="background:{_COLOURS.get(name, _OTHER)}"></i>{text}</span>'
        for name, text in names.items()
    )
    return f'<div class="key">{dots}</div>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in notes) + "</ul>"


# ------------------------------------------------------------------------------- dots of one measure


def _card(name: str, rows: pd.DataFrame, predicted: str) -> str:
    """One measure: a dot and an interval for each source."""
    measure = MEASURES[name]
    about = measure.about.format(utility=predicted)
    overall = rows[rows["of"] == ALL] if (rows["of"] == ALL).any() else rows
    return (
        f"<figure><figcaption>{escape(name)} <small>{escape(measure.sense)}. {escape(about)}</small>"
        f"</figcaption>{_dots(overall, measure.best)}</figure>"
    )


def _dots(rows: pd.DataFrame, best: float | None) -> str:
    points = [
        (str(source), float(value), float(half) if math.isfinite(half) else 0.0)
        for source, value, half in zip(rows["source"], rows["value"], rows["interval"])
        if math.isfinite(value)
    ]
    if not points:
        return "<p>not defined here</p>"
    ends = [value for _, value, _ in points]
    # a wide interval of a baseline is cut off, so that it does not press the rest together
    ends += [v + sign * h for name, v, h in points if name in _COLOURS for sign in (-1, 1)]
    ends += [] if best is None else [best]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 0.01
    low, high = low - room, high + room
    left, right, step = 105, 290, 20

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    height = step * len(points) + 20
    marks = [
        f'<line x1="{left}" x2="{right}" y1="{height - 16}" y2="{height - 16}" stroke="var(--line)"/>',
    ]
    if best is not None:
        marks.append(
            f'<line x1="{at(best):.1f}" x2="{at(best):.1f}" y1="0" y2="{height - 16}" stroke="var(--best)" '
            'stroke-width="1.5"/>'
            f'<text x="{at(best):.1f}" y="{height - 3}" text-anchor="middle">{best:g}</text>'
        )
    for i, (source, value, half) in enumerate(points):
        y, colour = step * i + 10, _COLOURS.get(source, _OTHER)
        mine = ' class="mine"' if source == "synthetic" else ""
        marks.append(f'<text{mine} x="0" y="{y + 4}">{escape(source)}</text>')
        if half:
            marks.append(
                f'<line x1="{at(value - half):.1f}" x2="{at(value + half):.1f}" y1="{y}" y2="{y}" '
                f'stroke="{colour}" stroke-width="2"/>'
            )
        marks.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
        marks.append(f'<text{mine} x="340" y="{y + 4}" text-anchor="end">{value:.3f}</text>')
    return f'<svg viewBox="0 0 340 {height}" role="img">{"".join(marks)}</svg>'


# ------------------------------------------------------------------------ distributions and curves


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    curves = any(p.kind == "line" for p in pictures)
    what = "Channels" if curves else "Columns"
    shown = "".join(
        f"<figure><figcaption>{escape(p.title)}</figcaption>{_drawn(p)}</figure>" for p in pictures
    )
    return (
        f"<h2>{what}</h2><p>Grey is held-out real data, blue is synthetic; shares, with what lies "
        f"beyond the middle 99 % of the real values in the outer bins. At most {MOST} are shown.</p>"
        f'<div class="pictures{" curves" if curves else ""}">{shown}</div>'
    )


def _drawn(picture: Picture) -> str:
    return _bars(picture) if picture.kind == "bars" else _lines(picture)


def _lines(picture: Picture) -> str:
    """Steps or curves, real behind synthetic."""
    values = [*picture.real, *picture.synthetic]
    steps = picture.kind == "steps"
    low, high = (0.0 if steps else min(values)), max(values)
    high = high if high > low else low + 1.0
    n = len(picture.real)

    def height(v: float) -> float:
        return 84 - (v - low) / (high - low) * 80

    def path(row: Sequence[float], close: bool) -> str:
        if steps:
            width = 240 / n
            corners = [
                f"{x:.1f},{height(v):.1f}"
                for i, v in enumerate(row)
                for x in (i * width, (i + 1) * width)
            ]
        else:
            corners = [f"{i * 240 / max(1, n - 1):.1f},{height(v):.1f}" for i, v in enumerate(row)]
        ends = ["240,84", "0,84"] if close else []
        return " ".join([*corners, *ends])

    real = (
        f'<polygon points="{path(picture.real, True)}" fill="var(--real)" opacity=".28"/>'
        if steps
        else f'<polyline points="{path(picture.real, False)}" fill="none" stroke="var(--real)" stroke-width="2"/>'
    )
    top = "" if steps else f'<text x="240" y="10" text-anchor="end">{low:.3g} to {high:.3g}</text>'
    return (
        f'<svg viewBox="0 0 240 100" role="img">{real}'
        f'<polyline points="{path(picture.synthetic, False)}" fill="none" stroke="var(--synthetic)" stroke-width="2"/>'
        '<line x1="0" x2="240" y1="84" y2="84" stroke="var(--line)"/>'
        f'<text x="0" y="97">{escape(picture.labels[0])}</text>'
        f'<text x="240" y="97" text-anchor="end">{escape(picture.labels[1])}</text>{top}</svg>'
    )


def _bars(picture: Picture) -> str:
    """Two bars for each category, real above synthetic."""
    most = max([*picture.real, *picture.synthetic]) or 1.0
    rows = []
    for i, (label, real, mine) in enumerate(zip(picture.labels, picture.real, picture.synthetic)):
        y = 17 * i
        short = label if len(label) <= 13 else f"{label[:12]}…"
        rows.append(
            f'<text x="0" y="{y + 11}">{escape(short)}<title>{escape(label)}</title></text>'
            f'<rect x="85" y="{y + 1}" width="{real / most * 110:.1f}" height="6" fill="var(--real)" opacity=".45"/>'
            f'<rect x="85" y="{y + 8}" width="{mine / most * 110:.1f}" height="6" fill="var(--synthetic)"/>'
            f'<text x="240" y="{y + 11}" text-anchor="end">{mine:.1%}</text>'
        )
    return f'<svg viewBox="0 0 240 {17 * len(picture.labels)}" role="img">{"".join(rows)}</svg>'


# ------------------------------------------------------------------------------------------- tables


def _details(name: str, rows: pd.DataFrame) -> str:
    """The values of each column or pair, the worst of the synthetic ones first."""
    wide = rows[rows["of"] != ALL].pivot(index="of", columns="source", values="value")
    wide = wide.reindex(columns=list(dict.fromkeys(rows["source"])))
    wide = wide.sort_values("synthetic", na_position="last")
    return (
        f"<details><summary>{escape(name)}: each of {len(wide):,}, the worst first</summary>"
        f"{_grid(['', *wide.columns], ([of, *row] for of, row in zip(wide.index, wide.to_numpy())))}</details>"
    )


def _whole(summary: pd.DataFrame, intervals: pd.DataFrame) -> str:
    sources = [c for c in summary.columns if c != "sense"]
    rows = (
        [m, *zip(summary.loc[m, sources], intervals.loc[m, sources]), summary.loc[m, "sense"]]
        for m in summary.index
    )
    return f"<h2>All of it</h2>{_grid(['', *sources, 'sense'], rows)}"


def _grid(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    names = "".join(
        f'<th class="n">{escape(str(h))}</th>'
        if 0 < i and h != "sense"
        else f"<th>{escape(str(h))}</th>"
        for i, h in enumerate(head)
    )
    return f'<div class="wide"><table><tr>{names}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    """A cell: a number, a number and half its interval, or text."""
    if isinstance(value, tuple):
        number, half = value
        beside = f" <small>± {half:.3f}</small>" if half > 0 else ""
        return f'<td class="n">{_number(number)}{beside}</td>'
    if isinstance(value, float):
        return f'<td class="n">{_number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
