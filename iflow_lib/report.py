"""``index.html`` of a run: one self-contained page from the manifest and the rows of results."""
from __future__ import annotations

from html import escape
from string import Template
from urllib.parse import quote

HEAD_ROWS = 12
#: What is shown of the table, where it is not empty; the CSV has every column.
_SHOWN = ("dataset", "path", "objective", "method", "nfe", "seed", "step", "metric", "value", "n_samples", "seconds")
_NUMBERS = {"nfe", "seed", "step", "value", "n_samples", "seconds"}


def duration(seconds: float) -> str:
    """``75.3 -> "1 min 15 s"``"""
    seconds = round(seconds)
    parts = [f"{seconds // 3600} h"] * (seconds >= 3600) + [f"{seconds // 60 % 60} min"] * (seconds >= 60)
    return " ".join([*parts, f"{seconds % 60} s"] if seconds < 3600 else parts)


def page(manifest: dict, rows: list[dict]) -> str:
    """The page, for a manifest of ``reproduce`` and its results (dicts of text)."""
    entries = manifest["notebooks"]
    figures = "".join(_figures(name, entry) for name, entry in entries.items() if entry.get("figures"))
    return _PAGE.substitute(
        profile=escape(manifest["profile"]), status=manifest["status"], summary=_summary(manifest),
        notebooks="".join(_notebook(name, entry, manifest["started"]) for name, entry in entries.items()),
        figures=figures and f"<h2>Figures</h2>{figures}", results=_results(rows), facts=_facts(manifest))


def _summary(manifest: dict) -> str:
    ok = sum(e["status"] == "ok" for e in manifest["notebooks"].values())
    took = "" if manifest["status"] == "running" else f", {duration(manifest['seconds'])}"
    started = manifest["started"].replace("T", " ").replace("Z", " UTC")
    return escape(f"{ok} of {len(manifest['notebooks'])} notebooks done on {manifest['device']}, started {started}{took}")


def _notebook(name: str, entry: dict, started: str) -> str:
    file = f"notebooks/{name}.ipynb"
    title = escape(entry["title"])
    if file in entry.get("files", {}):
        title = f'<a href="{quote(file)}">{title}</a>'
    notes = [escape(entry["error"])] if entry.get("error") else []
    if entry["status"] == "ok" and entry["started"] < started:
        notes.append("from an earlier run")
    took = duration(entry["seconds"]) if "seconds" in entry else ""
    settings = ", ".join(f"{k} = {v!r}" for k, v in entry.get("parameters", {}).items())
    return (f'<tr><td>{title}<small>{escape(name)}{"".join(f"<br>{n}" for n in notes)}</small>'
            + (f"<details><summary>parameters</summary><code>{escape(settings)}</code></details>" if settings else "")
            + f'</td><td><b class="{entry["status"].replace(" ", "-")}">{entry["status"]}</b></td>'
            f'<td class="n">{took}</td></tr>\n')


def _figures(name: str, entry: dict) -> str:
    shown = "".join(
        f'<figure><a href="{quote(f["file"])}"><img src="{quote(f["file"])}" alt="{escape(f["caption"] or name)}" '
        f'loading="lazy"></a><figcaption>{escape(f["caption"])}</figcaption></figure>\n' for f in entry["figures"])
    return f"<h3>{escape(entry['title'])}</h3>\n{shown}"


def _results(rows: list[dict]) -> str:
    if not rows:
        return ""
    columns = [c for c in _SHOWN if any(r[c] for r in rows)]
    head = "".join(f'<th{_align(c)}>{c}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td{_align(c)}>{escape(_short(r[c], c))}</td>" for c in columns) + "</tr>\n"
                   for r in sorted(rows, key=lambda r: r["method"] == "floor")[:HEAD_ROWS])
    more = f"{HEAD_ROWS} of {len(rows):,} rows" if len(rows) > HEAD_ROWS else "All rows"
    return (f'<h2>Results</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            f'<p>{more}; everything is in <a href="results.csv">results.csv</a>.</p>')


def _align(column: str) -> str:
    return ' class="n"' if column in _NUMBERS else ""


def _short(text: str, column: str) -> str:
    return f"{float(text):.4g}" if column in ("value", "seconds") and text else text


def _facts(manifest: dict) -> str:
    env = manifest["environment"]
    commit = (manifest["commit"] or "unknown")[:12] + (" with uncommitted changes" if manifest["dirty"] else "")
    facts = {
        "Processor": f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads used, {env['memory_gb']} GB",
        "GPU": env["gpu"] or "not used",
        "System": env["system"],
        "Commit": commit,
        "Lock file": (manifest["lock_sha256"] or "none")[:12],
        "Data": ", ".join(f"{name} {digest[:12]}" for name, digest in manifest["data_sha256"].items()) or "none",
        "Versions": ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v),
    }
    return "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>\n" for k, v in facts.items())


_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Integration Flow: $profile run, $status</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --line: #dfe3e8; --back: #fbfbfa; --card: #fff;
        --link: #0a5ea8; --good: #0b7a53; --bad: #b3261e; --wait: #8a6100; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333b46; --back: #14181d; --card: #1b2027; --link: #7db8f0;
          --good: #56c596; --bad: #ff8a80; --wait: #e5b94c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--back); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .6rem; color: var(--soft); font-weight: 600; }
p { margin: .3rem 0; color: var(--soft); }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
b { font-weight: 600; white-space: nowrap; }
.ok { color: var(--good); } .failed { color: var(--bad); } .interrupted, .running { color: var(--wait); }
.not-run { color: var(--soft); font-weight: 400; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.wide td, .wide th { padding: .3rem 1rem .3rem 0; white-space: nowrap; font-size: .88rem; }
.n { text-align: right; white-space: nowrap; }
small { display: block; color: var(--soft); overflow-wrap: anywhere; }
details { color: var(--soft); font-size: .85rem; } summary { cursor: pointer; }
code { font: .85em/1.5 ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
figure { margin: 0 0 1.6rem; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure img { display: block; max-width: 100%; height: auto; margin: auto; background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); margin-top: .8rem; font-size: .93rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
</style>
<h1>Integration Flow, $profile run: <span class="$status">$status</span></h1>
<p>$summary</p>
<h2>Notebooks</h2>
<table><thead><tr><th>Notebook, as executed</th><th>Status</th><th class="n">Time</th></tr></thead>
<tbody>
$notebooks</tbody></table>
$figures
$results
<h2>How it was made</h2>
<dl>
$facts</dl>
<p style="margin-top: 1rem">All of this, with checksums, is in <a href="manifest.json">manifest.json</a>.</p>
</html>
""")
