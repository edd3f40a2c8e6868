"""Convert an executed notebook to HTML with nbconvert, for an iframe of the report."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbconvert import HTMLExporter

#: Outputs that need a kernel or Jupyter's own scripts.
LIVE = ("application/vnd.jupyter.widget-view+json", "application/javascript")
NOTE = '<p class="note">This part is interactive: it needs the notebook, opened in Jupyter.</p>'


def notebook_body(file: Path) -> str:
    """Convert an executed notebook to the HTML of nbconvert's template ``basic``.

    Args:
        file: The notebook.

    Returns:
        The HTML, with formulas as MathML and images as data. It is not cleaned: whatever the
        notebook's outputs contain is in it.
    """
    import nbformat

    notebook = nbformat.read(file, as_version=4)
    notebook.metadata.pop("widgets", None)  # the state of widgets, which need a kernel
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            _prepare(output)
    body, _ = _exporter().from_notebook_node(notebook)
    return body


def code_colours() -> str:
    """Return pygments' style sheet for code, in light and dark."""
    from pygments.formatters import HtmlFormatter

    def rules(style: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        return "\n".join(line for line in lines if line.startswith(".highlight ."))

    dark = rules("github-dark")
    return f"{rules('xcode')}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def picture(png: bytes) -> str:
    """Return a picture for a page: WebP has about a fifth of a figure's bytes as PNG.

    Args:
        png: The bytes of the PNG file.

    Returns:
        A ``data:`` address: WebP, or the PNG itself where there is none of it, for example because
        the picture is higher than 16,383 pixels.
    """
    from PIL import Image

    data = BytesIO()
    try:
        with Image.open(BytesIO(png)) as image:
            # method 2 takes half the time of the default, for 5 % more bytes
            image.convert("RGBA").save(data, "WEBP", quality=80, method=2)
    except Exception:  # pillow raises errors of many kinds, SyntaxError among them
        return f"data:image/png;base64,{b64encode(png).decode()}"
    return f"data:image/webp;base64,{b64encode(data.getvalue()).decode()}"


def _prepare(output: Any) -> None:
    """Change one output of a cell, so that it shows what can be shown without Jupyter."""
    data = output.get("data", {})
    live = [data.pop(kind) for kind in LIVE if kind in data]
    if live and (not data or re.match(r"[A-Z]\w*\(|<", data.get("text/plain", ""))):
        if data.keys() <= {"text/plain"}:  # nothing is left, or the name of a class
            output.data = {"text/html": NOTE}
    if "text/latex" in data:  # only in Markdown does nbconvert look for formulas
        data.setdefault("text/markdown", data.pop("text/latex"))
    if "text/html" in data:  # style sheets of other sites, such as the icons of matplotlib's films
        data["text/html"] = re.sub(r"<link\b[^>]*>", "", data["text/html"])
    if "image/png" in data and "text/html" not in data:
        address = picture(b64decode(data["image/png"]))
        data["text/html"] = f'<img src="{address}" alt="A figure of this cell">'


def _exporter() -> HTMLExporter:
    """Return nbconvert's exporter, with mathematics as MathML and without prompts."""
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    from .mathematics import mathml

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return mathml(body, block=True)

        def latex_environment(self, name: str, body: str) -> str:
            starred = name.rstrip("*") + "*"  # those environments have no numbers
            return mathml(f"\\begin{{{starred}}}{body}\\end{{{starred}}}", block=True)

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            renderer = Renderer(escape=False, attachments=attachments)
            return MarkdownWithMath(renderer=renderer).render(source)

    # nbconvert's own clean_html works on code only, and takes most of the time
    return Exporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"clean_html": lambda html: html},
    )
