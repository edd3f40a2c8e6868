"""The report page of a run, from a folder written by hand: what it says, that it stands alone, and that it works."""

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest
from PIL import Image

from iflow_runner import report, verify
from iflow_runner.recorder import COLUMNS, csv_text, reference

pages = pytest.importorskip("iflow_runner.report.notebook_page")
pytest.importorskip("nbconvert")
pytest.importorskip("latex2mathml")
HARM = (
    "<script>window.harm = 1</script><img src=x onerror='window.harm = 2'>"
    "<a href='javascript:window.harm = 3'>press</a><iframe srcdoc='<script>parent.harm = 4</script>'></iframe>"
    "<b onmouseover='window.harm = 8'>bold</b><link rel=stylesheet href='https://example.org/a.css'>"
    "<img src='https://example.org/a.png' alt='far away'>"
)
TEXT = (
    r"""## One & the *same*

A mean $\mathbb E[x_0\mid x_t]$ and

$$x_s=\frac{1}{2}\Big(x_t-t\,u\Big)^{2}$$

\begin{align}a&=b\\c&<d\end{align}

What no converter knows: $\nosuch{x}$. [Second](02_second.ipynb#Its-end), [above](#One-&-the-same), [a file](../docs/a.md),
[a paper](https://example.org/paper). """
    + HARM
)
TABLE = "<table class='dataframe'><tr><th>nfe</th><td>17</td></tr></table>" + HARM
FILM = (
    "<img id='film'><input type='range' oninput='window.harm = 5'><button>play</button>"
    '<script>frames[0] = "data:image/png;base64,{0}"; frames[1] = "data:image/png;base64,{0}"</script>'
)


def png(width=60, height=30) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, "PNG")
    return file.getvalue()


def cell(source, *outputs):
    return nbformat.v4.new_code_cell(
        source, outputs=[nbformat.v4.new_output(kind, **data) for kind, data in outputs]
    )


def shows(**data):
    return "display_data", {
        "data": {name.replace("_", "/", 1).replace("_", "."): text for name, text in data.items()}
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, manifest and rows of a run of a notebook that is ok, one that failed, and one that did not run."""
    out = tmp_path_factory.mktemp("run")
    for name in ("notebooks", "figures"):
        (out / name).mkdir()
    small, large = (base64.b64encode(png(*size)).decode() for size in ((60, 30), (63, 17)))
    first = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# One < two"),
            nbformat.v4.new_markdown_cell(TEXT),
            cell('rec.figure(fig, "line", "c")\nplt.show()', shows(image_png=small)),
            cell("plt.show()  # " + 99 * "long", shows(image_png=large)),  # shown, but not recorded
            cell(
                "table",
                shows(text_html=TABLE),
                ("stream", {"name": "stderr", "text": "beware <of> it"}),
            ),
            cell("film", shows(text_html=FILM.format(small))),
            cell(
                "slider",
                shows(
                    **{
                        "application_vnd.jupyter.widget-view+json": {"model_id": "1"},
                        "text_plain": "VBox(x=1)",
                    }
                ),
            ),
            cell(
                "script",
                shows(text_html="<script>window.harm = 6</script>"),
                shows(application_javascript="harm = 7"),
            ),
        ]
    )
    second = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Second\n## One & the *same*\n## Its end"),
            cell(
                "1 / 0",
                (
                    "error",
                    {
                        "ename": "ZeroDivisionError",
                        "evalue": "division by zero",
                        "traceback": ["\x1b[0;31mZeroDivisionError\x1b[0m: division by zero"],
                    },
                ),
            ),
        ]
    )
    for name, notebook in (("01_first", first), ("02_second", second)):
        nbformat.write(notebook, out / "notebooks" / f"{name}.ipynb")
    (out / "figures/01_first-line.png").write_bytes(png(90, 45))
    (out / "figures/01_first-only_here.png").write_bytes(png(80, 20))
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


def part(html: str, start: str, end: str) -> str:
    return html[html.index(start) :].partition(end)[0]


def test_contents(run, html):
    for said in (
        "1 of 3 notebooks done on cpu, started 2026-01-01 00:00:00 UTC, 1 min 15 s",
        "One &lt; two",
        "&#x27;&lt;x&gt;",
        "A &lt;fast&gt; one",
        "&lt;b&gt;&amp;",
        "A &quot;line&quot; &amp; &lt;more&gt;.",
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
    for sign, code in (("<", "&lt;"), (">", "&gt;"), ("&", "&amp;")):
        shown = shown.replace(code, sign)
    assert json.loads(shown) == run[1]


def test_notebook(html):
    first, second = (
        part(html, 'id="nb-01_first"', 'id="nb-02_second"'),
        part(html, 'id="nb-02_second"', 'id="how-it'),
    )
    for said in (
        "<h4",
        'id="nb-01_first--One-&amp;-the-same"',
        "<mi>\U0001d53c</mi>",
        "<mfrac>",
        "<mtable",
        "<code>\\nosuch{x}</code>",
        'href="#nb-02_second--Its-end"',
        "a file",
        "far away",
        "press",
        'href="https://example.org/paper"',
        'class="dataframe"',
        "<td>17</td>",
        "beware &lt;of&gt; it",
        '<span class="n">rec</span>',
        "picture 2 of 2 of a film",
    ):
        assert said in first, said
    assert (
        first.count(pages.NOTE.partition(">")[2]) == 3
    )  # the slider and two scripts; nothing of either is left
    assert (
        "VBox" not in first and "<button" not in first and first.count("<input") == 1
    )  # that shows and hides the code
    assert (
        'id="nb-02_second--One-&amp;-the-same"' in second
        and 'class="ansi-red-fg">ZeroDivisionError' in second
    )


def test_images_are_in_the_page_once(run, html):
    out, manifest, _ = run
    small = base64.b64encode(png(60, 30)).decode()
    assert (
        html.count(small) == 3 and html.count('data-figure="figures/01_first-line.png"') == 1
    )  # and two of the film
    assert html.count('id="figures/01_first-line.png"') == 1
    assert (
        html.count(base64.b64encode((out / "figures/01_first-only_here.png").read_bytes()).decode())
        == 1
    )
    assert html.count(base64.b64encode(png(63, 17)).decode()) == 1
    # an image of another shape is not the figure, whatever the code says
    first = manifest["notebooks"]["01_first"]
    other = first | {"figures": [first["figures"][1] | {"file": "figures/01_first-line.png"}]}
    (out / "figures/01_first-line.png").write_bytes(png(90, 90))
    try:
        page = report.page(manifest | {"notebooks": {"01_first": other}}, [], out)
    finally:
        (out / "figures/01_first-line.png").write_bytes(png(90, 45))
    assert "<img data-figure" not in page and base64.b64encode(png(90, 90)).decode() in page


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


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
        assert tag not in ("iframe", "object", "embed", "form", "base"), (tag, attrs)
        link = attrs.get("href", "")
        if tag == "a":
            assert link.startswith(
                ("#", "https://example.org/paper", "notebooks/", "results.csv")
            ), attrs
            assert not link.startswith("#") or link[1:] in ids, link
        elif tag == "link":
            assert attrs == {"rel": "icon", "href": "data:,"}
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert html.count("<script") == 1 and "://" not in script
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{known}'" in html, "the page's policy forbids its own script"
    assert "default-src 'none'" in html and "url(" not in html


@pytest.mark.parametrize(
    "given, kept",
    [
        ("<p onclick='x()' style='color:red'>a</p>", '<p style="color:red">a</p>'),
        ("<p style='background:url(//a)'>a</p><style>p { color: red }</style>", "<p>a</p>"),
        ("<custom-tag><b>a</b></custom-tag><!-- b --><svg><script>1</script></svg>", "<b>a</b>"),
        (
            "<a href=' javascript:x()'>a</a><a href='JAVASCRIPT:x()'>b</a><a href='data:text/html,x'>c</a>",
            "abc",
        ),
        ("<math href='javascript:x()'><mi>a</mi></math>", "<math><mi>a</mi></math>"),
        ("<img src='figures/a.png' alt='a & b'>", "a &amp; b"),
        ("<h2 id='a'>A</h2><a href='#a'>a</a>", '<h4 id="nb-n--a">A</h4><a href="#nb-n--a">a</a>'),
        ("<a href='other.ipynb'>a</a><a href='n2.ipynb#b'>b</a>", 'a<a href="#nb-n2--b">b</a>'),
    ],
)
def test_clean(given, kept):
    assert pages.clean(given, "n", ["n", "n2"]) == kept


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
    ],
)
def test_mathematics(tex, part):
    assert part in pages.mathml(tex) and "http" not in pages.mathml(tex)


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
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_first.ipynb").write_text("{")
    assert "It could not be shown: " in report.page(run[1] | {"notebooks": entries}, [], tmp_path)


def test_while_the_run_goes_on(run):
    """A page of a few kilobytes that needs none of the slow packages."""
    code = (
        "import json, sys; from iflow_lib import report; sys.stdout.write(report.page(*json.load(sys.stdin)));"
        "assert not {'nbconvert', 'pandas', 'torch', 'bs4'} & set(sys.modules)"
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


def test_in_a_browser(html, tmp_path):
    browser = pytest.importorskip("browser", reason="needs playwright")
    if not browser.find():
        pytest.skip(f"needs Chromium; {browser.INSTALL}")
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    with browser.window() as (page, complaints):
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

        # the link of the table opens the notebook, which is closed at first
        assert page.locator(".notebook[open]").count() == 0
        page.click('td > a[href="#nb-02_second"]')
        assert page.locator(".notebook[open]").get_attribute("id") == "nb-02_second"
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
        # every image, with all sections open; no width at which the page is wider than the window
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        browser.wait(
            lambda: page.evaluate("[...document.images].every(image => image.complete)"),
            30,
            "the images",
        )
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(sizes) == 6 and min(sizes) > 0, sizes
        for width in (1280, 800, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("mfrac").first.bounding_box()["height"] > 20  # it is set, not text
        # a figure, larger, and the next one
        page.click(".gallery button >> nth=0")
        assert page.text_content("dialog[open] figcaption") == 'A "line" & <more>.'
        page.keyboard.press("ArrowRight")
        assert page.text_content("dialog[open] figcaption") == "Not in the notebook."
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        assert page.evaluate("window.harm ?? 0") == 0 and complaints == []
        page.evaluate(
            "console.error('a complaint'); setTimeout(() => { throw new Error('uncaught') })"
        )
        browser.wait(
            lambda: page.evaluate("1") and len(complaints) == 2, 10, "the complaints"
        )  # they would have been seen
