"""``index.html`` of a run: one self-contained page from the manifest, the rows of results and the run's folder."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from ..provenance import duration

HEAD_ROWS = 12
#: What is shown of the table, where it is not empty; the CSV has every column.
_SHOWN = (
    "dataset",
    "path",
    "objective",
    "method",
    "nfe",
    "seed",
    "step",
    "metric",
    "value",
    "n_samples",
    "seconds",
)
_NUMBERS = {
    "nfe",
    "seed",
    "step",
    "value",
    "n_samples",
    "seconds",
    "reference",
    "this run",
    "allowed",
}
_LONG = {"value", "seconds", "reference", "this run", "allowed"}


def page(
    manifest: dict, rows: list[dict], out: Path | None = None, made: dict[str, str] | None = None
) -> str:
    """The page, for a manifest of ``reproduce`` and its results (dicts of text).

    out: the run's folder, with results.csv, figures and executed notebooks; then everything is in the page, which stands
    alone: no other file, no network. Without it, as while the run goes on: a light page that links to figures and tables.
    made: what ``shown`` has made of some notebooks already.
    """
    entries = manifest["notebooks"]
    bodies, style, script, policy = {}, _STYLE, "", ""
    if out is not None:
        from . import notebook_page as pages

        entries = {
            name: entry
            | {"figures": [f for f in entry.get("figures", ()) if (out / f["file"]).is_file()]}
            for name, entry in entries.items()
        }
        made = made or {}
        bodies = {
            name: made.get(name) or shown(name, entry, out, entries)
            for name, entry in entries.items()
            if (out / _file(name)).is_file()
        }
        style, script = _STYLE + pages.style(), _SCRIPT
        policy = _POLICY.format(b64encode(sha256(script.encode()).digest()).decode())
    notebooks = "".join(
        _notebook(name, entry, manifest["started"], name in bodies)
        for name, entry in entries.items()
    )
    parts = {
        "Notebooks": f'<div class="wide"><table class="runs"><thead><tr><th>Notebook, as executed</th><th>Status</th>'
        f'<th class="n">Time</th></tr></thead>\n<tbody>\n{notebooks}</tbody></table></div>',
        "Agreement": _agreement(out) if out is not None and rows else "",
        "Results": _results(rows, out is not None),
        "Figures": "".join(
            _figures(name, entry, out, bodies.get(name, ""))
            for name, entry in entries.items()
            if entry.get("figures")
        ),
        "Rendered notebooks": "".join(bodies.values()),
        "How it was made": f"<dl>\n{_facts(manifest)}</dl>\n"
        + _manifest(manifest, out is not None),
    }
    parts = {title: text for title, text in parts.items() if text}
    links = "".join(f'<a href="#{_id(title)}">{title}</a>\n' for title in parts)
    return _PAGE.substitute(
        policy=policy,
        profile=escape(manifest["profile"]),
        status=escape(manifest["status"]),
        style=style,
        summary=_summary(manifest),
        links=f"<nav>\n{links}</nav>" if out is not None else "",
        body="".join(
            f'<h2 id="{_id(title)}">{title}</h2>\n{text}\n' for title, text in parts.items()
        ),
        script=script and f"<script>{script}</script>",
    )


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _file(name: str) -> str:
    return f"notebooks/{name}.ipynb"


def _summary(manifest: dict) -> str:
    ok = sum(e["status"] == "ok" for e in manifest["notebooks"].values())
    took = "" if manifest["status"] == "running" else f", {duration(manifest['seconds'])}"
    started = manifest["started"].replace("T", " ").replace("Z", " UTC")
    return escape(
        f"{ok} of {len(manifest['notebooks'])} notebooks done on {manifest['device']}, started {started}{took}"
    )


def _notebook(name: str, entry: dict, started: str, shown: bool) -> str:
    title, file = escape(entry["title"]), f"{escape(name)}"
    if _file(name) in entry.get("files", {}):
        file = f'<a href="{quote(_file(name))}">{file}.ipynb</a>'
    if shown:
        title = f'<a href="#nb-{escape(name)}">{title}</a>'
    notes = [escape(entry["error"])] if entry.get("error") else []
    if entry["status"] == "ok" and entry["started"] < started:
        notes.append("from an earlier run")
    took = duration(entry["seconds"]) if "seconds" in entry else ""
    settings = ", ".join(f"{k} = {v!r}" for k, v in entry.get("parameters", {}).items())
    return (
        f"<tr><td>{title}<small>{file}{''.join(f'<br>{n}' for n in notes)}</small>"
        + _more(
            "traceback",
            f"<pre>{escape(entry.get('traceback') or '')}</pre>" if entry.get("traceback") else "",
        )
        + _more("parameters", settings and f"<code>{escape(settings)}</code>")
        + f'</td><td>{_status(entry)}</td><td class="n">{took}</td></tr>\n'
    )


def _status(entry: dict) -> str:
    return f'<b class="{escape(entry["status"].replace(" ", "-"))}">{escape(entry["status"])}</b>'


def _more(title: str, html: str) -> str:
    return f"<details><summary>{title}</summary>{html}</details>" if html else ""


def shown(name: str, entry: dict, out: Path, names) -> str:
    """The executed notebook of an entry, folded, for ``page``. names: the notebooks that links may lead to."""
    from . import notebook_page as pages

    try:
        body = pages.notebook(out / _file(name), entry["figures"], names)
    except Exception as error:  # a notebook that cannot be shown must not cost the page
        body = f"<p>It could not be shown: {escape(f'{type(error).__name__}: {error}')}</p>"
    took = f" {duration(entry['seconds'])}" if "seconds" in entry else ""
    return (
        f'<details class="notebook" id="{pages.anchor(escape(name))}"><summary><span>{escape(entry["title"])}</span>'
        f'<small>{_status(entry)}{took}</small></summary>\n<div class="body">'
        f'<label class="tools"><input type="checkbox" checked> code</label>\n{body}</div></details>\n'
    )


def _figures(name: str, entry: dict, out: Path | None, shown: str) -> str:
    figures = ""
    for figure in entry["figures"]:
        file, caption = figure["file"], escape(figure["caption"])
        if out is None:
            image = f'<a href="{quote(file)}"><img src="{quote(file)}" alt="{caption or escape(name)}" loading="lazy"></a>'
        else:  # once in the page: the script copies it from the notebook that shows it
            source = (
                f'data-figure="{escape(file)}"'
                if f'<img id="{escape(file)}"' in shown
                else f'src="data:image/png;base64,{b64encode((out / file).read_bytes()).decode()}"'
            )
            image = f'<button type="button" title="larger"><img {source} alt="{caption or escape(name)}"></button>'
        figures += f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"
    title = escape(entry["title"])
    title = f'<a href="#nb-{escape(name)}">{title}</a>' if shown else title
    return f'<h3>{title}</h3>\n<div class="gallery">{figures}</div>\n'


def _results(rows: list[dict], whole: bool) -> str:
    if not rows:
        return ""
    columns = [c for c in _SHOWN if any(r[c] for r in rows)]
    rows = sorted(rows, key=lambda r: r["method"] == "floor")
    if whole:
        return (
            _sheet(columns, rows, f"{len(rows):,} rows", search=True)
            + '<p>The heads of the columns sort. Every column is in <a href="results.csv">results.csv</a>, beside this '
            "page.</p>"
        )
    more = f"{HEAD_ROWS} of {len(rows):,} rows" if len(rows) > HEAD_ROWS else "All rows"
    return (
        f'<div class="wide">{_table(columns, rows[:HEAD_ROWS])}</div>'
        f'<p>{more}; everything is in <a href="results.csv">results.csv</a>.</p>'
    )


def _sheet(columns, rows: list[dict], caption: str, search: bool = False) -> str:
    """A table that the page's script sorts and searches."""
    find = (
        '<input type="search" placeholder="Search, e.g. spiral map" aria-label="Search the table">'
        if search
        else ""
    )
    return (
        f'<div class="sheet"><div class="tools">{find}<span role="status">{caption}</span>'
        f'<button type="button" class="all" hidden>Show all</button></div>'
        f'<div class="wide">{_table(columns, rows)}</div></div>\n'
    )


def _table(columns, rows: list[dict]) -> str:
    head = "".join(f"<th{_align(c)}>{c}</th>" for c in columns)
    body = "".join("<tr>" + "".join(_cell(r[c], c) for c in columns) + "</tr>\n" for r in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str, column: str) -> str:
    short = f"{float(text):.4g}" if column in _LONG and text else text
    exact = f' data-v="{escape(text)}"' if short != text else ""
    return f"<td{_align(column)}{exact}>{escape(short)}</td>"


def _align(column: str) -> str:
    return ' class="n"' if column in _NUMBERS else ""


def _agreement(out: Path) -> str:
    """What ``iflow verify`` says of the run in the folder."""
    from .. import verify

    try:
        table = verify.verify(out)
    except (ValueError, OSError) as error:
        return f"<p><code>iflow verify</code> says: {escape(str(error).replace(str(out), 'this run'))}</p>"
    columns = {"mean_reference": "reference", "mean_run": "this run"}
    cells = [
        {column: "" if str(value) in ("nan", "-1") else str(value) for column, value in row.items()}
        for row in table.rename(columns=columns).to_dict("records")
    ]
    names = (
        "dataset",
        "path",
        "objective",
        "method",
        "nfe",
        "metric",
        "reference",
        "this run",
        "allowed",
    )
    names = [c for c in dict.fromkeys((*names, *verify.CELL)) if any(cell[c] for cell in cells)]
    moved = [cell for cell in cells if cell["agrees"] == "False"]
    most = f'<b class="ok">{len(cells) - len(moved)} of {len(cells)} cells agree</b> with the committed results'
    apart = f', <b class="failed">{len(moved)} moved</b>' if moved else ""
    more = table.attrs["only_in_run"]
    more = f"; {more:,} more of this run have no reference" if more else ""
    return (
        f"<p><code>iflow verify</code> says: {most}{apart}{more}. A cell is one metric of one setting, its mean over "
        "the seeds; it may differ as far as the table allows.</p>\n"
        + (f'<div class="wide moved">{_table(names, moved)}</div>' if moved else "")
        + _more("all cells", _sheet(names, cells, f"{len(cells):,} cells"))
    )


def _manifest(manifest: dict, whole: bool) -> str:
    if not whole:
        return '<p class="last">All of this, with checksums, is in <a href="manifest.json">manifest.json</a>.</p>'
    text = escape(json.dumps(manifest, indent=2, ensure_ascii=False), quote=False)
    return '<p class="last">All of this, with checksums:</p>' + _more(
        "manifest.json", f"<pre>{text}</pre>"
    )


def _facts(manifest: dict) -> str:
    env = manifest["environment"]
    commit = (manifest["commit"] or "unknown")[:12] + (
        " with uncommitted changes" if manifest["dirty"] else ""
    )
    facts = {
        "Processor": f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads used, {env['memory_gb']} GB",
        "GPU": env["gpu"] or "not used",
        "System": env["system"],
        "Commit": commit,
        "Lock file": (manifest["lock_sha256"] or "none")[:12],
        "Data": ", ".join(
            f"{name} {digest[:12]}" for name, digest in manifest["data_sha256"].items()
        )
        or "none",
        "Versions": ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v),
    }
    return "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>\n" for k, v in facts.items())


#: Nothing is loaded, and no script runs but the page's own.
_POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$policy<title>Integration Flow: $profile run, $status</title>
<style>
$style</style>
<h1>Integration Flow, $profile run: <span class="$status">$status</span></h1>
<p>$summary</p>
$links
$body
$script
</html>
""")

_STYLE = """\
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #dfe3e8; --back: #fbfbfa; --card: #fff;
        --code: #f3f4f6; --link: #0a5ea8; --good: #0b7a53; --bad: #b3261e; --wait: #8a6100; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333b46; --back: #14181d; --card: #1b2027; --code: #12161b;
          --link: #7db8f0; --good: #56c596; --bad: #ff8a80; --wait: #e5b94c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--back); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .6rem; color: var(--soft); font-weight: 600; }
p { margin: .3rem 0; color: var(--soft); } p.last { margin-top: 1rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
h3 > a, td > a { text-decoration: none; } :is(h3, td) > a:hover { text-decoration: underline; }
b { font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin-top: .9rem; font-size: .93rem; }
.ok, .failed, .interrupted, .running, .not-run { white-space: nowrap; }
.ok { color: var(--good); } .failed { color: var(--bad); } .interrupted, .running { color: var(--wait); }
.not-run { color: var(--soft); font-weight: 400; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.wide td, .wide th { padding: .3rem 1rem .3rem 0; white-space: nowrap; font-size: .88rem; }
.wide .runs :is(td, th) { padding: .5rem .75rem .5rem 0; white-space: normal; } .wide .runs td { font-size: 1rem; }
.wide .n { text-align: right; white-space: nowrap; }
.sheet .wide { max-height: 36rem; overflow: auto; } .sheet th { position: sticky; top: 0; background: var(--back); }
th button { all: unset; cursor: pointer; white-space: nowrap; position: relative; } th button:hover { color: var(--ink); }
th button::after { content: "\\2195"; position: absolute; left: calc(100% + .15em); opacity: .4; }
th[aria-sort] button { color: var(--ink); } th[aria-sort] button::after { opacity: 1; content: "\\2191"; }
th[aria-sort=descending] button::after { content: "\\2193"; }
button:focus-visible, summary:focus-visible, input:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.sheet > .tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin-bottom: .5rem;
                  color: var(--soft); font-size: .88rem; }
input[type=search], button.all { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
                                 border-radius: 6px; padding: .3rem .6rem; }
input[type=search] { width: 16rem; max-width: 100%; color: var(--ink); } button.all { cursor: pointer; color: var(--link); }
small { display: block; color: var(--soft); overflow-wrap: anywhere; } small a { color: inherit; }
details { color: var(--soft); font-size: .85rem; } summary { cursor: pointer; }
details > pre { max-height: 32rem; overflow: auto; background: var(--code); border-radius: 8px; padding: .8rem 1rem; }
code, pre { font: .85em/1.5 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; }
code { overflow-wrap: anywhere; }
figure { margin: 0 0 1.6rem; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure img { display: block; max-width: 100%; height: auto; margin: auto; background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); margin-top: .8rem; font-size: .93rem; }
.gallery:has(button) { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.gallery button { all: unset; display: block; cursor: zoom-in; width: 100%; margin: auto 0; }
.gallery:has(button) figure { margin: 0; display: flex; flex-direction: column; }
.gallery button img { max-height: 20rem; padding: .4rem; }
.gallery button + figcaption { font-size: .85rem; }
dialog { border: 0; padding: 0; margin: auto; max-width: 96vw; max-height: 96vh; background: none; }
dialog::backdrop { background: rgb(0 0 0 / .75); }
dialog figure { margin: 0; color: var(--ink); } dialog img { max-height: calc(96vh - 6rem); padding: .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""

#: Sorting, searching, larger figures, and links that open what they lead to. Without it everything is there, unsorted.
_SCRIPT = """
"use strict";
const LIMIT = 50;
const key = (row, column, number) => {
  const text = row.cells[column].dataset.v ?? row.cells[column].textContent;
  if (!number) return text;
  const value = text === "" ? NaN : Number(text.replace("inf", "Infinity"));
  return Number.isNaN(value) ? "" : value;
};
for (const sheet of document.querySelectorAll(".sheet:not(.notebook *)")) {
  const one = selector => sheet.querySelector(selector), heads = [...sheet.querySelectorAll("th")];
  const body = one("tbody"), all = one(".all"), status = one("[role=status]"), search = one("[type=search]");
  let rows = [...body.rows], whole = false;
  const show = () => {
    const words = (search ? search.value : "").toLowerCase().split(" ").filter(Boolean);
    const found = rows.filter(row => words.every(word => row.textContent.toLowerCase().includes(word)));
    body.replaceChildren(...(whole ? found : found.slice(0, LIMIT)));
    status.textContent = body.rows.length + " of " + rows.length + " rows" +
      (found.length < rows.length ? ", " + found.length + " found" : "");
    all.hidden = body.rows.length === found.length;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", number = head.classList.contains("n");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows = rows.map(row => [key(row, column, number), row]).sort(([a], [b]) =>
        a === b ? 0 : a === "" ? 1 : b === "" ? -1 : (a < b) === down ? 1 : -1).map(pair => pair[1]);
      show();
    });
  });
  if (search) search.addEventListener("input", show);
  all.addEventListener("click", () => { whole = true; show(); });
  show();
}
for (const image of document.querySelectorAll("img[data-figure]")) {
  const figure = document.getElementById(image.dataset.figure);
  if (figure) image.src = figure.src;
}
const large = document.createElement("dialog"), figures = [...document.querySelectorAll(".gallery button")];
let current = 0;
const enlarge = number => {
  current = (number + figures.length) % figures.length;
  const figure = figures[current].parentElement.cloneNode(true), image = figure.querySelector("img");
  image.removeAttribute("id");
  figure.firstChild.replaceWith(image);
  large.replaceChildren(figure);
  if (!large.open) large.showModal();
};
document.body.append(large);
figures.forEach((button, number) => button.addEventListener("click", () => enlarge(number)));
large.addEventListener("click", () => large.close());
large.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step) enlarge(current + step);
});
const reveal = hash => {
  let target = document.getElementById(hash.slice(1));
  try { target ??= document.getElementById(decodeURIComponent(hash.slice(1))); } catch { /* a lone percent sign */ }
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", () => reveal(location.hash));
document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (link) reveal(link.hash);
});
if (location.hash) reveal(location.hash);
"""
