"""An executed notebook as a part of one page: no script, no network, nothing that a second notebook could collide with."""

from __future__ import annotations

import re
import struct
import unicodedata
from base64 import b64decode
from html import escape
from pathlib import Path
from urllib.parse import unquote

LIVE = ("application/vnd.jupyter.widget-view+json", "application/javascript")
NOTE = "<p class='note'>This part is interactive: it needs the notebook, opened in Jupyter.</p>"

_MATH = (
    "math maction menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow "
    "ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover semantics"
)
_TEXT = (
    "a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 "
    "h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th "
    "thead tr tt u ul var wbr"
)
_TAGS = frozenset(f"{_TEXT} {_MATH}".split())
#: These go with all that is in them; of any other tag that is not in _TAGS the content stays.
_DROPPED = (
    "applet audio base button canvas embed form frame frameset head iframe input label link meta noscript object "
    "option script select style svg template textarea title video xmp"
).split()
_ATTRIBUTES = frozenset(
    "align alt class colspan height href id open rowspan src start style title width "
    "accent columnalign display displaystyle fence form linethickness lspace mathvariant maxsize "
    "minsize movablelimits notation rspace stretchy".split()
)


def anchor(name: str, heading: str = "") -> str:
    """The id of a notebook's section in the page, or of a heading in it."""
    return f"nb-{name}" + (f"--{heading}" if heading else "")


def notebook(file: Path, figures: list[dict], names) -> str:
    """The body of an executed notebook's page.

    figures: those of its entry in the manifest. Where a cell shows what it recorded, the image has the figure's file as id,
    so that the page can show it elsewhere too with its bytes in the page once. names: the notebooks that links may lead to.
    """
    import nbformat
    from nbconvert.filters.highlight import Highlight2HTML

    executed = nbformat.read(file, as_version=4)
    later = []  # code and figures: they are put in when all else is clean, for they are long and need no cleaning

    def code(source, **_):
        later.append(highlight(source))
        return f"<p class='later'>{len(later) - 1}</p>"

    for cell in executed.cells:
        if cell.cell_type == "code":
            _outputs(cell, file, figures, later)
    highlight = Highlight2HTML(pygments_lexer="ipython3")
    exporter = _exporter()(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"highlight_code": code},
    )
    html = clean(exporter.from_notebook_node(executed)[0], file.stem, names)
    return re.sub('<p class="later">([0-9]+)</p>', lambda found: later[int(found[1])], html)


def _outputs(cell, file: Path, figures: list[dict], later: list[str]) -> None:
    """Take out of a cell's outputs what needs a kernel, and the images that are figures of the run."""
    shown = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    known = {Path(f["file"]).stem.removeprefix(f"{file.stem}-"): f for f in figures}
    named = re.findall(r"""\(\w+, *["']([\w-]+)["']""", cell.source)  # rec.figure(fig, "name", ...
    recorded = [known[name] for name in named if name in known]
    for output in cell.outputs:
        data = output.get("data", {})
        if [kind for kind in LIVE if data.pop(kind, None)] and (
            not data or len(data) == 1 and re.match(r"[A-Z]\w*\(|<", data.get("text/plain", ""))
        ):
            output.data = {"text/html": NOTE}  # there is nothing instead, or the name of a class
    for output, figure in zip(
        shown, recorded if len(recorded) == len(shown) else [None] * len(shown)
    ):
        output.metadata = {"image/png": {"alt": "A figure of this cell"}}
        image = "".join(output.data["image/png"].split())
        if figure and _alike(
            b64decode(image[:32]), (file.parent.parent / figure["file"]).read_bytes()
        ):
            output.data = {"text/html": f"<p class='later'>{len(later)}</p>"}
            later.append(
                f'<img id="{escape(figure["file"])}" alt="{escape(figure["caption"] or figure["file"])}" '
                f'src="data:image/png;base64,{escape(image)}">'
            )


def _alike(*images: bytes) -> bool:
    """Are these the heads of two PNG files of about the same shape? A figure has another resolution than its output."""
    shapes = [
        width / height for width, height in (struct.unpack(">II", image[16:24]) for image in images)
    ]
    return abs(shapes[0] / shapes[1] - 1) < 0.1


def _exporter():
    """nbconvert's class, with mathematics as MathML."""
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return mathml(body)

        def block_math(self, body):
            return mathml(body, block=True)

        def latex_environment(self, name, body):
            name = name.rstrip("*") + "*"  # the starred ones have no numbers
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    class Exporter(HTMLExporter):
        def default_filters(self):
            yield from super().default_filters()
            yield "clean_html", lambda html: html  # it takes long, and does less than ours

        @pass_context
        def markdown2html(self, context, source):
            attachments = context.get("cell", {}).get("attachments", {})
            return MarkdownWithMath(
                renderer=Renderer(escape=False, attachments=attachments)
            ).render(source)

    return Exporter


# ---- mathematics


def mathml(tex: str, block: bool = False) -> str:
    """MathML of a formula, as browsers set it without help; where there is none for it, its TeX."""
    from latex2mathml.converter import convert

    try:
        text = convert(tex.strip(), display="block" if block else "inline")
    except Exception:  # the converter raises what it likes
        text = "<mi>\\"
    if "<mi>\\" in text:  # a command that it does not know
        return f"<code>{escape(tex.strip())}</code>"
    text = text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "").replace(
        "<mi>&</mi>", "<mi>&amp;</mi>"
    )
    text = text.replace("negativethinmathspace", "-0.167em").replace(
        "<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"
    )
    # no space around bars and strokes, some after a function without brackets; as a base a large bracket needs a row
    text = re.sub(
        r"<mo([^>]*)>(\||&#x0007C;|&#x0002F;)</mo>", r'<mo\1 lspace="0" rspace="0">\2</mo>', text
    )
    text = text.replace("<mo>&#x0002A;</mo>", '<mo lspace="0" rspace="0">&#x02217;</mo>')
    text = re.sub("<mi>(arg|cos|det|dim|exp|ln|log|sin|tan)</mi>", r"<mo>\1</mo>", text)
    text = re.sub(
        r"<mo>([A-Za-z]+)</mo>(?=<mo[^>]*>(\(|&#x00028;))", r'<mo rspace="0">\1</mo>', text
    )
    text = re.sub(r"(<msu\w+>)(<mo [^>]*minsize[^>]*>[^<]*</mo>)", r"\1<mrow>\2</mrow>", text)
    text = re.sub(r'<mi mathvariant="(double-struck|script)">(\w)</mi>', _letter, text)
    return re.sub(r"<m([io])>&#x(\w+);</m[io]>", _sign, text)


def _letter(found) -> str:
    """Browsers know no mathvariant: a letter of another alphabet has a number of its own."""
    kind, letter = (
        found[1].upper(),
        f"{'CAPITAL' if found[2].isupper() else 'SMALL'} {found[2].upper()}",
    )
    for name in (f"MATHEMATICAL {kind} {letter}", f"{kind} {letter}"):
        try:
            return f"<mi>{unicodedata.lookup(name)}</mi>"
        except KeyError:
            pass
    return f"<mi>{found[2]}</mi>"


def _sign(found) -> str:
    """An arrow or a relation is an operator (mo) and has space around it; infinity and the empty set are not."""
    sign = chr(int(found[2], 16))
    kind = (
        "i" if sign in "\u221e\u2205" else "o" if unicodedata.category(sign) == "Sm" else found[1]
    )
    return f"<m{kind}>{escape(sign)}</m{kind}>"


# ---- what may be in the page


def clean(html: str, name: str, names=()) -> str:
    """HTML of a notebook without what runs, loads or collides: known tags and attributes only, images as data, ids and
    links to them with the notebook's name in front, headings two levels down. Links to other notebooks lead to their
    sections; of links to files that are not in the page the text stays."""
    from bs4 import BeautifulSoup
    from bs4.element import PreformattedString

    soup = BeautifulSoup(html, "html.parser")
    for node in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        node.extract()  # comments and the like
    for image in soup.find_all("img", src=None):
        _film(image, soup)
    for tag in soup.find_all(_DROPPED):
        if not tag.decomposed:
            tag.decompose()
    for tag in soup.find_all(True):
        if tag.name not in _TAGS:
            tag.unwrap()
        else:
            tag.attrs = {key: value for key, value in tag.attrs.items() if key in _ATTRIBUTES}
            if re.search(r"url|position|expression|[\\@]", tag.get("style", "")):
                del tag["style"]
            if "id" in tag.attrs:
                tag["id"] = anchor(name, tag["id"])
            for key, only in (("href", "a"), ("src", "img")):
                if tag.name != only:
                    tag.attrs.pop(key, None)
            if re.fullmatch("h[1-4]", tag.name):
                tag.name = f"h{int(tag.name[1]) + 2}"
            if tag.name == "a":
                _link(tag, name, names)
            elif tag.name == "img" and not tag.get("src", "").startswith("data:image/"):
                tag.replace_with(tag.get("alt", ""))
    for output in soup.select(".output_html"):
        if not output.get_text(strip=True) and not output.find("img"):  # it was nothing but scripts
            output.append(BeautifulSoup(NOTE, "html.parser"))
    for table in soup.find_all("table"):
        if not table.find_parent(class_="wide"):
            table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    return str(soup)


def _link(tag, name: str, names) -> None:
    """Point a link to where it leads in the page, or leave its text only."""
    url = tag.attrs.pop("href", "")
    target, _, heading = url.partition("#")
    stem = unquote(target).removesuffix(".ipynb")
    if url.startswith("#"):
        tag["href"] = "#" + anchor(name, heading)
    elif re.match("(https?|mailto):", url):
        tag["href"], tag["rel"] = url, "noopener noreferrer"
    elif target.endswith(".ipynb") and stem in names:
        tag["href"] = "#" + anchor(stem, heading)
    elif not tag.get("id"):
        tag.unwrap()


def _film(image, soup) -> None:
    """matplotlib's ``to_jshtml`` keeps its pictures in its script: show them side by side instead of one after another."""
    output = image.find_parent(class_="output_html")
    scripts = "".join(s.get_text() for s in output.find_all("script")) if output else ""
    frames = [
        re.sub(r"\\?\s", "", f)
        for f in re.findall(r'"(data:image/\w+;base64,[\w+/=\\\s]+)"', scripts)
    ]
    if frames:
        film = soup.new_tag("div", attrs={"class": "film"})
        for number, frame in enumerate(frames, 1):
            film.append(
                soup.new_tag(
                    "img",
                    attrs={"src": frame, "alt": f"picture {number} of {len(frames)} of a film"},
                )
            )
        image.replace_with(film)


# ---- how it looks


def style() -> str:
    """CSS of the notebooks, light and dark, with pygments' colours."""
    from pygments.formatters import HtmlFormatter

    def colours(name: str) -> str:
        lines = HtmlFormatter(style=name).get_style_defs(".notebook .highlight").splitlines()
        return "\n".join(line for line in lines if line.startswith(".notebook .highlight ."))

    return f"{colours('xcode')}\n@media (prefers-color-scheme: dark) {{\n{colours('github-dark')}\n}}\n{_STYLE}"


_STYLE = """
.notebook { margin: 0 0 .7rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
            color: var(--ink); font-size: 1rem; }
.notebook > summary { display: flex; gap: 1rem; align-items: baseline; padding: .75rem 1.1rem; border-radius: 10px;
                      list-style: none; }
.notebook > summary::-webkit-details-marker { display: none; }
.notebook > summary::before { content: "\\25b8"; color: var(--soft); transition: transform .15s; }
.notebook[open] > summary::before { transform: rotate(90deg); }
.notebook > summary > span:first-of-type { flex: 1; font-weight: 600; }
.notebook > summary small { display: inline; white-space: nowrap; }
.notebook[open] > summary { position: sticky; top: 0; z-index: 1; background: var(--card);
                            border-bottom: 1px solid var(--line); border-radius: 10px 10px 0 0; }
.notebook > .body { padding: .4rem 1.1rem 1.5rem; }
.notebook .tools { float: right; font-size: .85rem; color: var(--soft); padding: .5rem 0 0 1rem; }
.notebook:has(.tools input:not(:checked)) .input { display: none; }
.notebook :is(h3, h4, h5, h6) { color: var(--ink); line-height: 1.3; margin: 2rem 0 .6rem; scroll-margin-top: 4rem; }
.notebook h3 { font-size: 1.35rem; } .notebook h4 { font-size: 1.15rem; } .notebook h5, .notebook h6 { font-size: 1rem; }
.notebook .body > .cell:first-of-type h3:first-child { display: none; }
.notebook .anchor-link { margin-left: .4em; text-decoration: none; color: var(--soft); opacity: 0; font-weight: 400; }
.notebook :hover > .anchor-link, .notebook .anchor-link:focus { opacity: 1; }
.notebook .rendered_html { overflow-wrap: break-word; }
.notebook .text_cell_render > :is(p, ul, ol, blockquote) { max-width: 46rem; }
.notebook p, .notebook li { color: inherit; } .notebook p { margin: .7rem 0; } .notebook li { margin: .2rem 0; }
.notebook p.note { color: var(--soft); font-style: italic; }
.notebook pre { margin: 0; overflow-x: auto; white-space: pre; overflow-wrap: normal;
                font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; }
.notebook .input, .notebook .text_cell_render .highlight, .notebook .text_cell_render > pre {
  margin: .9rem 0 .5rem; background: var(--code); border-radius: 8px; }
.notebook .input pre, .notebook .text_cell_render pre { padding: .75rem .9rem; }
.notebook pre code { font: inherit; background: none; padding: 0; overflow-wrap: normal; }
.notebook .text_cell_render :not(pre) > code { background: var(--code); border-radius: 4px; padding: .1em .3em; }
.notebook .output_area { margin: .5rem 0; }
.notebook .output_text pre { padding: .35rem .9rem; border-left: 3px solid var(--line); }
.notebook .output_stderr pre { border-left-color: var(--wait); color: var(--soft); }
.notebook .output_error pre { border-left-color: var(--bad); }
.notebook img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.notebook .output_area img { padding: .5rem; border: 1px solid var(--line); border-radius: 8px; }
.notebook td img { padding: 0; }
.notebook .film { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .5rem; }
.notebook .wide { margin: .8rem 0; }
.notebook table { width: auto; } .notebook .output_html table { font-size: .88rem; }
.notebook .wide :is(th, td) { white-space: normal; min-width: 3rem; }
.notebook .dataframe :is(th, td) { text-align: right; }
.notebook blockquote { margin: .8rem 0; padding-left: 1rem; border-left: 3px solid var(--line); color: var(--soft); }
.notebook hr { border: 0; border-top: 1px solid var(--line); }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "TeX Gyre DejaVu Math", "DejaVu Math TeX Gyre",
                    "Noto Sans Math", math, serif; }
math[display=block] { margin: .9rem 0; max-width: 100%; overflow-x: auto; overflow-y: hidden; padding: .2rem 0; }
menclose[notation=box] { border: 1px solid; padding: .35em .2em; }
mtd[columnalign=right] { text-align: right; } mtd[columnalign=left] { text-align: left; }
mi[mathvariant=monospace] { font-family: ui-monospace, "Liberation Mono", monospace; text-transform: none; }
mi[mathvariant^=bold] { font-weight: bold; } mi[mathvariant=bold] { text-transform: none; }
.ansi-bold { font-weight: 600; } .ansi-red-fg, .ansi-red-intense-fg { color: var(--bad); }
.ansi-green-fg, .ansi-green-intense-fg { color: var(--good); }
.ansi-yellow-fg, .ansi-yellow-intense-fg { color: var(--wait); }
.ansi-blue-fg, .ansi-blue-intense-fg, .ansi-cyan-fg, .ansi-cyan-intense-fg { color: var(--link); }
"""
