"""The report of a run, from a folder written by hand: what it says, that it stands alone, and that it works."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from iflow_runner import report, verify
from iflow_runner.recorder import COLUMNS, csv_text, reference

pytest.importorskip("nbconvert")
pytest.importorskip("latex2mathml")
from iflow_runner.report import notebook as conversion  # noqa: E402
from iflow_runner.report.mathematics import mathml  # noqa: E402

TEXT = r"""## One & the *same*

A mean $\mathbb E[x_0\mid x_t]$ and

$$x_s=\frac{1}{2}\Big(x_t-t\,u\Big)^{2}$$

\begin{align}a&=b\\c&<d\end{align}

What no converter knows: $\nosuch{x}$. [Second](02_second.ipynb#Its-end), [above](#One-&-the-same), [a file](../docs/a.md),
[no notebook](99_none.ipynb), [a paper](https://example.org/paper).
"""
FRAME = (  # as matplotlib's films: a slider, buttons and a script that exchanges the pictures
    "<link rel='stylesheet' href='https://example.org/icons.css'><img id='film'>"
    "<button id='play' onclick='film.src = frames_of_film[1]'><i class='fa fa-play'></i></button>"
    '<script>const frames_of_film = ["data:image/png;base64,{0}", "data:image/png;base64,{1}"];'
    "film.src = frames_of_film[0]</script>"
)
#: Everything that a notebook may try. HOST is a server that must not be asked.
HARM = [
    "<script>try {{ parent.harm = 1; }} catch {{}} try {{ top.document.title = 'harm'; }} catch {{}}</script>",
    "<script>try {{ top.location = '{host}/top'; }} catch {{}} open('{host}/window'); alert(1);</script>",
    "<script>for (const data of [null, 1, 'a', {{height: 1e9}}, {{height: 10n}}, {{height: 'a'}}, {{top: 1e6}},"
    " {{heading: [{{}}], notebook: '02_second'}}, {{notebook: '<img>'}}, {{visit: '{host}/visit'}},"
    " {{visit: 'javascript:harm = 2'}}, {{ready: true}}]) parent.postMessage(data, '*')</script>",
    "<script>fetch('{host}/fetch').catch(() => 0); navigator.sendBeacon('{host}/beacon');"
    " new Image().src = '{host}/image'; new WebSocket('{host}/socket'.replace('http', 'ws'));</script>",
    "<img src=x onerror='parent.harm = 3'><img src='{host}/img.png'><b onmouseover='parent.harm = 4'>bold</b>",
    "<link rel=stylesheet href='{host}/a.css'><style>@import '{host}/b.css'; b {{ background: url({host}/c) }}</style>",
    "<iframe src='{host}/frame'></iframe><iframe srcdoc='<script>top.harm = 5</script>'></iframe>",
    "<object data='{host}/object'></object><embed src='{host}/embed'><script src='{host}/script.js'></script>",
    "<form id=form action='{host}/form'></form><script>document.getElementById('form').submit()</script>",
    "<base href='{host}/'><meta http-equiv=refresh content='0; url={host}/refresh'>",
    "</div></div></div></body></html></iframe></details>\"'><script>parent.harm = 6</script><p>after all",
    "<!-- <textarea><div style='position: fixed; inset: 0; background: red'>",
]


def png(width=60, height=30, colour="orange") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def text_of(png: bytes) -> str:
    return base64.b64encode(png).decode()


def cell(source, *outputs):
    return nbformat.v4.new_code_cell(
        source, outputs=[nbformat.v4.new_output(kind, **data) for kind, data in outputs]
    )


def shows(**data):
    return "display_data", {
        "data": {name.replace("_", "/", 1).replace("_", "."): text for name, text in data.items()}
    }


WIDGET = {
    "application_vnd.jupyter.widget-view+json": {"model_id": "1"},
    "text_plain": "VBox(x=1)",
}


def rows(n=60) -> list[dict]:
    """Rows of the committed results, in an order of their own; the last but one without a number of samples."""
    with open(reference("quick.csv"), newline="", encoding="utf-8") as file:
        first = list(csv.DictReader(file))[:n]
    return (
        first[1::2]
        + first[::2]
        + [dict.fromkeys(COLUMNS, "") | {"dataset": "<b>&", "metric": "w2", "value": "1e-12"}]
    )


def notebooks() -> dict:
    """Notebooks of a run: one is ok, one failed."""
    first = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# One < two"),
            nbformat.v4.new_markdown_cell(TEXT),
            cell('rec.figure(fig, "line", "c")\nplt.show()', shows(image_png=text_of(png()))),
            cell("plt.show()  # " + 99 * "long", shows(image_png=text_of(png(63, 17)))),
            cell(
                "table",
                shows(
                    text_html="<table class='dataframe'><tr><th>nfe</th><td>17</td></tr></table>"
                ),
                ("stream", {"name": "stderr", "text": "beware <of> it"}),
            ),
            cell("film", shows(text_html=FRAME.format(text_of(png()), text_of(png(70, 40))))),
            cell("slider", shows(**WIDGET)),
            cell("much", ("stream", {"name": "stdout", "text": "a line\n" * 50_000})),
            nbformat.v4.new_markdown_cell("## The end"),
        ]
    )
    failed = {
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
        "traceback": ["\x1b[0;31mZeroDivisionError\x1b[0m: division by zero"],
    }
    text = "# Second\n## One & the *same*\n" + "long\n\n" * 50 + "## Its end\n" + "long\n\n" * 50
    second = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(text), cell("1 / 0", ("error", failed))]
    )
    return {"01_first": first, "02_second": second}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, manifest and rows of a run of a notebook that is ok, one that failed, and one that did not run."""
    out = tmp_path_factory.mktemp("run")
    for name in ("notebooks", "figures"):
        (out / name).mkdir()
    for name, notebook in notebooks().items():
        nbformat.write(notebook, out / "notebooks" / f"{name}.ipynb")
    (out / "figures/01_first-line.png").write_bytes(png(90, 45, "navy"))
    (out / "figures/01_first-only_here.png").write_bytes(png(80, 20, "green"))
    (out / "results.csv").write_text(csv_text(rows()))
    entries = {
        "01_first": {
            "title": "One < two",
            "status": "ok",
            "started": "2026-01-01T00:00:00Z",
            "seconds": 3.0,
            "parameters": {"label": "<x>"},
            "error": None,
            "files": {"notebooks/01_first.ipynb": "0"},
            "figures": [
                {"file": "figures/01_first-line.png", "caption": 'A "line" & <more>.'},
                {"file": "figures/01_first-only_here.png", "caption": "Not in the notebook."},
            ],
        },
        "02_second": {
            "title": "Second",
            "status": "failed",
            "started": "2026-01-01T00:00:01Z",
            "seconds": 1.0,
            "parameters": {},
            "error": "cell 2: ZeroDivisionError: division by zero",
            "figures": [],
            "traceback": "Traceback <most recent>\nZeroDivisionError",
            "files": {"notebooks/02_second.ipynb": "0"},
        },
        "03_third": {"title": "Third", "status": "not run"},
    }
    environment = {
        "cpu": "A <fast> one",
        "cores": 2,
        "threads": 2,
        "memory_gb": 8,
        "gpu": None,
        "system": "Linux",
        "versions": {"torch": "2.9"},
    }
    manifest = {
        "schema": 1,
        "status": "failed",
        "profile": "quick",
        "device": "cpu",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 75.3,
        "commit": None,
        "dirty": False,
        "lock_sha256": None,
        "environment": environment,
        "data_sha256": {},
        "notebooks": entries,
    }
    return out, manifest, rows()


@pytest.fixture(scope="module")
def html(run):
    out, manifest, table = run
    return report.page(manifest, table, out)


class Tags(HTMLParser):
    """The tags of a page, with their attributes, as a browser would read them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def part(html: str, start: str, end: str) -> str:
    return html[html.index(start) :].partition(end)[0]


def frames(html: str) -> list[str]:
    return [attrs["data-page"] for attrs in Tags(html).of("iframe")]


def image(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def close(pixel, colour) -> bool:
    """WebP changes colours a little."""
    return max(abs(a - b) for a, b in zip(pixel, colour)) < 16


def test_contents(run, html):
    for said in (
        "1 of 3 notebooks done on cpu, started 2026-01-01 00:00:00 UTC, 1 min 15 s",
        "One &lt; two",
        "&#39;&lt;x&gt;",
        "A &lt;fast&gt; one",
        "&lt;b&gt;&amp;",
        "A &#34;line&#34; &amp; &lt;more&gt;.",
        'href="results.csv"',
        "<pre>Traceback &lt;most recent&gt;\nZeroDivisionError</pre>",
        "cell 2: ZeroDivisionError",
        'href="#nb-02_second"',
        'href="notebooks/01_first.ipynb"',
        '<b class="not-run">not run</b>',
    ):
        assert said in html, said
    assert "#nb-03_third" not in html  # it has no section to go to
    assert (
        html.count('<td class="n" data-v="1e-12"') == 0
        and html.count('<td class="n">1e-12</td>') == 1
    )
    assert len(re.findall("<tr>", part(html, 'id="results"', "</table>"))) == 1 + len(run[2])
    shown = re.search(r"<summary>manifest.json</summary><pre>(.*?)</pre>", html, re.S)[1]
    for sign, code in (
        ("<", "&lt;"),
        (">", "&gt;"),
        ('"', "&#34;"),
        ("'", "&#39;"),
        ("&", "&amp;"),
    ):
        shown = shown.replace(code, sign)
    assert json.loads(shown) == run[1]


def test_notebook(html):
    first, second = frames(html)
    for said in (
        '<h2 id="One-&amp;-the-same">',
        "<mi>\U0001d53c</mi>",
        "<mfrac>",
        "<mtable",
        "<code>\\nosuch{x}</code>",
        'href="02_second.ipynb#Its-end"',
        'href="https://example.org/paper"',
        'class="dataframe"',
        "<td>17</td>",
        "beware &lt;of&gt; it",
        '<span class="n">rec</span>',
        "frames_of_film",
        conversion.NOTE.partition(">")[2],
        "The end",
    ):
        assert said in first, said
    assert "VBox" not in first and "icons.css" not in first
    assert (
        'id="One-&amp;-the-same"' in second
        and 'class="ansi-red-fg">ZeroDivisionError' in second
        and "Its end" in second
    )


def test_the_gallery_shows_the_recorded_figures(run, html):
    """Their names say which they are: what a notebook shows looks different, and is in its frame alone."""
    out, _, _ = run
    gallery = [attrs for attrs in Tags(html).of("img")]
    assert [attrs["alt"] for attrs in gallery] == ['A "line" & <more>.', "Not in the notebook."]
    for attrs, name, colour in zip(gallery, ("line", "only_here"), ((0, 0, 128), (0, 128, 0))):
        figure = image(attrs["src"])
        assert figure.size == Image.open(out / f"figures/01_first-{name}.png").size
        assert close(figure.getpixel((9, 9)), colour)
    shown = [attrs for attrs in Tags(frames(html)[0]).of("img") if "id" not in attrs]
    assert [image(attrs["src"]).size for attrs in shown] == [(60, 30), (63, 17)]
    assert all(close(image(attrs["src"]).getpixel((9, 9)), (255, 165, 0)) for attrs in shown)


def test_stands_alone(html):
    tags = Tags(html).tags
    ids = [attrs["id"] for _, attrs in tags if attrs.get("id")]
    assert len(ids) == len(set(ids)) > 5
    for tag, attrs in tags:
        assert not [
            key
            for key in attrs
            if key.startswith("on") or key in ("srcset", "srcdoc", "background")
        ], (tag, attrs)
        assert attrs.get("src", "data:").startswith("data:"), (tag, attrs)
        assert tag not in ("object", "embed", "form", "base"), (tag, attrs)
        link = attrs.get("href", "")
        if tag == "a":
            assert link.startswith(("#", "notebooks/", "results.csv")), attrs
            assert not link.startswith("#") or link[1:] in ids, link
        elif tag == "link":
            assert attrs == {"rel": "icon", "href": "data:,"}
        elif tag == "iframe":
            assert attrs["sandbox"] == "allow-scripts" and "allow" not in attrs
    assert html.count("<script") == 1 and "http" not in part(html, "<script>", "</script>").replace(
        "https?:", ""
    )
    for page in (html, *frames(html)):
        (policy,) = [attrs["content"] for attrs in Tags(page).of("meta") if "http-equiv" in attrs]
        assert policy == report.POLICY and "default-src 'none'" in policy
        assert page.index("Content-Security-Policy") < page.index("<style"), "it comes first"
        assert "://" not in policy and "url(" not in part(page, "<style>", "</style>")


def test_text_of_a_run_stays_text(run):
    """Whatever the manifest and the rows contain, the page has the same tags as with harmless text."""

    def page(text: str) -> list:
        out, manifest, table = run

        def changed(value):
            if isinstance(value, dict):
                return {key: changed(item) for key, item in value.items()}
            if isinstance(value, list):
                return [changed(item) for item in value]
            known = ("ok", "failed", "not run", "2026", "figures/", "None")
            harmless = isinstance(value, str) and not value.startswith(known)
            return text if harmless else value

        files = changed(manifest) | {"versions": {}}
        cells = [row | {"dataset": text, "method": text, "metric": text} for row in table[:3]]
        tags = Tags(report.page(files, cells, out)).tags
        return [(tag, sorted(attrs)) for tag, attrs in tags]

    hostile = "\"'></td></pre></details></iframe></style><script>harm = 1</script><img src=x onerror='harm = 2'>{{ 1 / 0 }}<!--"
    assert page(hostile) == page("harmless")


def body_of(tmp_path: Path, *outputs) -> str:
    file = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell("x", *outputs)]), file)
    return conversion.notebook_body(file)


@pytest.mark.parametrize(
    "output, said",
    [
        (WIDGET, conversion.NOTE),
        (WIDGET | {"text_html": "<b>17</b>"}, "<b>17</b>"),
        (WIDGET | {"text_plain": "17 steps"}, "17 steps"),
        ({"application_javascript": "harm = 7"}, conversion.NOTE),
        ({"text_latex": r"$\displaystyle \frac{1}{2}$"}, "<mfrac>"),
        ({"text_html": "<link rel=a href='https://example.org/a.css'\n>17"}, ">17"),
        ({"image_png": text_of(png())}, '<img alt="A figure of this cell" src="data:image/webp'),
        ({"image_png": text_of(b"broken")}, f'src="data:image/png;base64,{text_of(b"broken")}"'),
        ({"image_png": text_of(png(1, 17_000))}, 'src="data:image/png;base64,'),
        ({"image_png": text_of(png()), "text_html": "<b>17</b>"}, "<b>17</b>"),
        ({"text_plain": "<script>1</script>"}, "&lt;script&gt;"),
    ],
)
def test_outputs(output, said, tmp_path):
    body = body_of(tmp_path, shows(**output)).replace("'", '"')
    assert said in re.sub(r'<img src="([^"]+)" alt="([^"]+)"', r'<img alt="\2" src="\1"', body)
    assert "VBox" not in body and "harm" not in body and "<link" not in body


@pytest.mark.parametrize(
    "tex, part",
    [
        (r"x_0 < 1", "<mo>&lt;</mo>"),
        (r"\mathcal N(0,I)", "<mi>\U0001d4a9</mi>"),
        (r"\mathcal L", "<mi>\u2112</mi>"),
        (r"a\sim b", "<mo>\u223c</mo>"),
        (r"a\Longleftrightarrow b", "<mo>\u27fa</mo>"),
        (r"\infty", "<mi>\u221e</mi>"),
        (r"\ln t", "<mo>ln</mo>"),
        (r"\max(t)", '<mo rspace="0">max</mo>'),
        ("|x|", 'lspace="0" rspace="0">&#x0007C;</mo>'),
        (r"\big(x\big)^2", '<msup><mrow><mo minsize="1.2em" maxsize="1.2em">)</mo></mrow>'),
        (r"\frac{", "<code>\\frac{</code>"),
        (r"\nosuch <b>", "<code>\\nosuch &lt;b&gt;</code>"),
    ],
)
def test_mathematics(tex, part):
    assert part in mathml(tex) and "http" not in mathml(tex)


def test_what_verify_says(run, html, monkeypatch, tmp_path):
    out, manifest, table = run
    cells = len(verify.verify(out))
    assert (
        f"{cells} of {cells} cells agree</b> with the committed results; 1 more of this run have no reference"
        in html
    )
    assert "moved" not in part(html, 'id="agreement"', "<h2")
    changed = [
        row | {"value": str(10 * float(row["value"]))} if number == 3 else row
        for number, row in enumerate(table)
    ]
    (tmp_path / "results.csv").write_text(csv_text(changed))
    said = part(report.page(manifest, changed, tmp_path), 'id="agreement"', "<h2")
    assert (
        f'{cells - 1} of {cells} cells agree</b> with the committed results, <b class="failed">1 moved</b>'
        in said
    )
    moved = part(said, '<div class="wide moved">', "</table>")
    assert (
        f"{float(changed[3]['value']):.4g}" in moved
        and moved.count("<tr>") == 2
        and changed[3]["metric"] in moved
    )
    (tmp_path / "results.csv").write_text(csv_text(table[-1:]))
    said = part(report.page(manifest, table[-1:], tmp_path), 'id="agreement"', "<h2")
    assert (
        "this run and results/reference have nothing in common" in said
        and str(tmp_path) not in said
    )

    def altered():
        raise ValueError("reference/quick.csv was altered")

    monkeypatch.setattr(verify, "check_reference", altered)
    assert "says: reference/quick.csv was altered" in report.page(manifest, table, out)


def test_without_results_or_notebooks(run, tmp_path):
    entries = {"01_first": run[1]["notebooks"]["01_first"]}  # its figures are gone too
    html = report.page(run[1] | {"notebooks": entries}, [], tmp_path)
    assert 'id="results"' not in html and 'id="agreement"' not in html and "<img" not in html
    for name in ("notebooks", "figures"):
        (tmp_path / name).mkdir()
    (tmp_path / "notebooks/01_first.ipynb").write_text("{<b>")
    (tmp_path / "figures/01_first-line.png").write_bytes(b"broken")
    html = report.page(run[1] | {"notebooks": entries}, [], tmp_path)
    (frame,) = frames(html)
    assert "It could not be shown: " in frame and "&lt;b&gt;" in frame
    assert f'src="data:image/png;base64,{text_of(b"broken")}"' in html


def test_what_was_rendered_is_not_rendered_again(run, html):
    out, manifest, table = run
    entries = manifest["notebooks"]
    made = {"01_first": report.render_notebook("01_first", entries["01_first"], out)}
    assert report.page(manifest, table, out, made) == html
    made["01_first"] = report.Rendered("<p>mine</p>", {})
    assert frames(report.page(manifest, table, out, made))[0] == "<p>mine</p>"


def test_while_the_run_goes_on(run):
    """A page of a few kilobytes that needs none of the slow packages."""
    code = (
        "import json, sys; from iflow_runner import report; sys.stdout.write(report.page(*json.load(sys.stdin)));"
        "assert not {'nbconvert', 'pandas', 'torch', 'bs4', 'iflow_lib', 'PIL'} & set(sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(run[1:]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    html = answer.stdout
    assert answer.returncode == 0, answer.stderr
    assert (
        'src="figures/01_first-line.png"' in html
        and "12 of 61 rows" in html
        and "<script" not in html
    )
    assert "ZeroDivisionError</pre>" in html and len(html) < 20_000


@pytest.fixture()
def chromium():
    browser = pytest.importorskip("browser", reason="needs playwright")
    if not browser.find():
        pytest.skip(f"needs Chromium; {browser.INSTALL}")
    return browser


def frame_of(page, name: str, browser):
    """The frame of a notebook whose section is open, once it has its height."""
    handle = page.locator(f"#nb-{name} iframe").element_handle()
    browser.wait(lambda: "px" in (handle.get_attribute("style") or ""), 30, f"the frame of {name}")
    return handle.content_frame()


def test_in_a_browser(html, tmp_path, chromium):
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    with chromium.window() as (page, complaints):
        page.goto((tmp_path / "index.html").as_uri())
        column = (
            "[...document.querySelectorAll('#results ~ .sheet tbody tr')].map(row => row.cells[{}])"
        )
        page.evaluate(
            f"window.of = name => {column.replace('{}', 'heads().indexOf(name)')};"
            "window.heads = () => [...document.querySelectorAll('#results ~ .sheet th')].map(h => h.textContent)"
        )

        def values(name):
            return page.evaluate(f"of('{name}').map(cell => cell.dataset.v ?? cell.textContent)")

        # the table: its first rows; a click sorts, numbers as numbers; the keyboard sorts downwards; empty cells are last
        assert len(values("value")) == 50
        page.click("#results ~ .sheet .all")
        assert len(values("value")) == 61
        for name, convert in (
            ("value", float),
            ("nfe", lambda text: int(text or 10**9)),
            ("metric", str),
        ):
            head = page.locator("#results ~ .sheet th", has_text=re.compile(f"^{name}$"))
            head.locator("button").click()
            found = values(name)
            assert (
                found == sorted(found, key=convert)
                and head.get_attribute("aria-sort") == "ascending"
            )
            head.locator("button").press("Enter")
            known = [text for text in values(name) if text]
            assert known == sorted(known, key=convert, reverse=True) and len(set(known)) > 1, name
            assert values(name)[len(known) :] == [""] * (61 - len(known))
            assert head.get_attribute("aria-sort") == "descending"
        assert page.locator("#results ~ .sheet [aria-sort]").count() == 1
        page.fill("[type=search]", "HEUN rms")
        assert 0 < len(values("method")) < 50 and set(values("method")) == {"heun"}

        # a figure, larger, and the next one
        page.click(".gallery button >> nth=0")
        assert page.text_content("dialog[open] figcaption") == 'A "line" & <more>.'
        page.keyboard.press("ArrowRight")
        assert page.text_content("dialog[open] figcaption") == "Not in the notebook."
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0

        # nothing of a notebook is loaded before its section is open; the link of the table opens it
        assert page.locator(".notebook[open]").count() == 0
        assert page.locator("iframe[srcdoc]").count() == 0
        page.click('td > a[href="#nb-01_first"]')
        first = frame_of(page, "01_first", chromium)
        assert page.locator(".notebook[open]").get_attribute("id") == "nb-01_first"
        # the page learns the height of a notebook by message, and sets it when it can
        fits = "document.documentElement.scrollHeight <= innerHeight"
        chromium.wait(lambda: first.evaluate(fits), 10, "the height of the frame")
        assert first.evaluate("origin") == "null"
        assert first.evaluate("document.querySelectorAll('math').length") == 3
        assert first.locator("mfrac").bounding_box()["height"] > 20  # it is set, not text
        # its images; its film plays; its code is hidden
        assert first.evaluate("[...document.images].map(i => i.naturalWidth)") == [60, 63, 60]
        first.click("#play")
        chromium.wait(lambda: first.evaluate("film.naturalWidth") == 70, 10, "the film")
        assert first.locator(".input >> nth=0").is_visible()
        first.click(".tools input")
        assert not first.locator(".input >> nth=0").is_visible()
        # its links: to headings, to another notebook, to another site; where there is nothing they are text
        links = first.evaluate("[...document.querySelectorAll('a:any-link')].map(a => a.innerText)")
        assert [text for text in links if text != "¶"] == ["Second", "above", "a paper"]
        page.evaluate("scrollTo(0, 0)")
        first.evaluate("document.querySelector('a[href=\"#The-end\"]').click()")
        place = "Math.round(document.getElementById('{}').getBoundingClientRect().top)"
        here = first.evaluate(place.format("The-end"))

        def offset(name):
            return page.locator(f"#nb-{name} iframe").bounding_box()["y"]

        chromium.wait(lambda: 0 < offset("01_first") + here < 900, 10, "the heading")
        first.click("text=Second")
        second = frame_of(page, "02_second", chromium)
        there = second.evaluate(place.format("Its-end"))
        assert there > 1000
        chromium.wait(lambda: 0 < offset("02_second") + there < 100, 10, "the other's heading")
        assert page.evaluate("location.hash") == "#nb-02_second--Its-end"
        page.go_back()
        chromium.wait(lambda: 0 < offset("01_first") + here < 900, 10, "the way back")
        page.context.route("https://example.org/**", lambda route: route.fulfill(body="a paper"))
        with page.context.expect_page() as opened:
            first.click("text=a paper")
        assert opened.value.url == "https://example.org/paper"
        opened.value.close()

        # no width at which the page is wider than the window; frames follow
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        for width in (1280, 800, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert first.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shade = "getComputedStyle(document.body).backgroundColor"
        assert first.evaluate(shade) == "rgb(27, 32, 39)"  # dark
        assert complaints == []
        page.evaluate(
            "console.error('a complaint'); setTimeout(() => { throw new Error('uncaught') })"
        )
        chromium.wait(
            lambda: page.evaluate("1") and len(complaints) == 2, 10, "the complaints"
        )  # they would have been seen


@pytest.fixture()
def host():
    """A server, and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_hostile_notebook(run, tmp_path, chromium, host):
    """Its scripts run in its frame; they cannot reach the page, nor load or send anything, nor open a window."""
    address, asked = host
    cells = [nbformat.v4.new_markdown_cell("# Hostile\n\n" + HARM[0].format(host=address))]
    cells += [cell("x", shows(text_html=harm.format(host=address))) for harm in HARM]
    cells.insert(1, cell("x", shows(text_html="<script>window.ran = true</script>")))
    cells[2:2] = [cell("x", ("stream", {"name": "stdout", "text": "<script>ran = 0</script>"}))]
    out = tmp_path / "run"
    (out / "notebooks").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), out / "notebooks/01_first.ipynb")
    nbformat.write(notebooks()["02_second"], out / "notebooks/02_second.ipynb")
    html = report.page(run[1], [], out)
    assert html.count("<script") == 1 and Tags(html).of("script") == [{}]
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    with chromium.window() as (page, complaints):
        windows = []
        page.context.on("page", lambda opened: windows.append(opened))
        page.on("dialog", lambda dialog: windows.append(dialog) or dialog.dismiss())
        # playwright's questions count as a click, after which a page may open a window: ask later
        page.goto((tmp_path / "index.html").as_uri() + "#nb-01_first")
        chromium.wait(lambda: page.wait_for_timeout(500) or complaints, 30, "the policy at work")
        page.wait_for_timeout(1500)
        assert windows == [] and asked == []
        assert not [text for text in complaints if "TypeError" in text]
        assert page.evaluate("window.harm ?? 0") == 0
        assert page.title() == "Integration Flow: quick run, failed"
        assert (
            page.url == (tmp_path / "index.html").as_uri() + "#nb-02_second--%5Bobject%20Object%5D"
        )
        page.evaluate("scrollTo(0, 0)")
        assert page.locator("h1").is_visible() and page.locator("#how-it-was-made").count() == 1
        assert page.locator("#nb-01_first iframe").bounding_box()["height"] <= 200_000
        assert page.evaluate("document.elementFromPoint(5, 5).tagName") in ("HTML", "BODY")
        # the other notebook is as it was
        second = frame_of(page, "02_second", chromium)
        assert (
            second.locator("h2 >> nth=0").is_visible() and second.evaluate("window.ran ?? 0") == 0
        )
