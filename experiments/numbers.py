"""Numbers in the sentences of README.md, docs/ and the notebooks, and where each is from.

A number that states a result has its source right behind it, in a comment that no reader sees. There are three kinds:

- a cell of a table that a program writes into a page (``readme_tables.TABLES``), by the beginning of its row and of its column:
  ``1.17<!--= plane: Integration Flow, rectified, 1 / median -->``. ``#2`` at the end takes the second number of the cell;
- in a notebook what its stored outputs show: the first number after some words, or the second with ``#2``. ``>`` goes on to words
  that come later: ``0.71<!--= student > distilled 1-RF -->``;
- what no table here has, such as what others have measured, by its name in ``QUOTED``: ``370<!--= quoted: MeanFlow's CIFAR-10 run -->``.

``100 *`` before a source makes per cent of a share. A number is written with as many digits as stand in the text, so whoever writes a
sentence chooses them. ``python -m experiments.make_reference readme`` writes all numbers anew, and a test finds those that are
wrong or have no source. ``NO_RESULTS`` says which numbers need none. Numbers in words ("a tenth") are not looked at.
"""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd

from experiments.common import REFERENCE, ROOT
from experiments.readme_tables import TABLES, WHEN_MEASURED
from iflow_lib.io import write_atomic

NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?"
SOURCED = re.compile(rf"({NUMBER})((?: ?%)?)<!--= (.+?) -->")
#: What no table here has: name -> (numbers, whose they are).
QUOTED = {
    "the second trial": (
        "22.5, 17.2 and 15.9; 33.1, 24.8 and 22.9; 22.2",
        "single runs before the protocol, which were not committed",
    ),
    "MeanFlow's CIFAR-10 run": ("370", "reported for the code of arXiv 2505.13447"),
    "an H200": ("989", "trillion bfloat16 operations a second, as its maker states"),
}
#: Pages that may have <!-- chosen --> ... <!-- /chosen --> around what was decided before anything was measured.
CHOSEN_PAGES = ("docs/protocol.md", "docs/workshop.md")

_COUNT = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?![\d.]*\.\d)"
_COUNTS, _MANY = (
    rf"{one}(?:(?:, | and | or | to |, and |,\n| and\n){one})*" for one in (_COUNT, NUMBER)
)
_KINDS = (
    "noise|starting|gradient|Euler|network|training|test|sampling|official|random|real|fresh|small|more|other|held-out|principal|"
    "million|trillion|data|live|idle|CPU"
)
_THINGS = (
    "steps?|points?|samples?|images?|examples?|pictures|seeds?|units|draws|calls?|jumps?|minutes?|hours?|cores?|rows|GPUs?|"
    "GB|megabytes|trials|pairs|components|octaves|trajectories|lines|links|cells|curves|processes|bytes|dimensions|pixels|"
    "models|trainings|repetitions|intervals|numbers|modes|sets|weights|garments|parts|refinements|evaluations per example|"
    "neighbours|panels|charges|degrees|directions|years|participants|lines of code|rungs|stages|wide|levels|of batch"
)
_BEFORE = (
    "batch of|batches of|batch|width|power|seeds?|probability|weights|rate of|rates?|decay|decay of|decays of|threshold|gap|octaves of|weight of|shape|"
    "blocks of|[Nn]otebooks?|[Ss]ections?|[Ee]xercises?|[Ff]igures?|panels?|[Ss]tages?|[Cc]andidates?|[Aa]lgorithm|eq\\.|line|trial|"
    "code|D =|N =|t =|s =|tau =|nfe =|n =|kill|sigma"
)
#: Arguments whose values follow them in a sentence.
_ARGUMENTS = "aug_dim|power|equal_share|start_share|end_share|detail|perceptual|matching|gap|lr|ema|clip|threshold"
#: Numbers that state no result, by what stands around them.
NO_RESULTS = {
    "a heading, the number of a list, the runtime of a notebook": r"^#{1,6} .*$|^ *\d+\. |^\*Runtime:.*$",
    "the value of a setting": rf"\b(?:{_BEFORE})(?: |\n){_MANY}",
    "a year": r"(?<=[(, ])(?:19|20)\d\d(?=[).,;]|$)",
    "an arXiv id": r"\b\d{4}\.\d{5}\b",
    "a notebook": r"\[\d\d\b|(?<![\d.,])0\d\b(?![.,]\d)",
    "a version": r"Python \d\.\d+(?: to \d\.\d+)?|\b\d+\.\d+\.\d+\b|pytorch\]? +\d\.\d+",
    "a part of a name": (
        r"\b\d-(?:RF|Rectified|rectified|Wasserstein|minute)\b|\b[A-Za-z_]+-?\d+\b|\bx_0\b|\b\d+(?:st|nd|rd|th)\b"
    ),
    "a shape": rf"{NUMBER} ?x ?{NUMBER}(?: ?x ?{NUMBER})*|(?:times|normal|array) \((?:-?[\d.]+, )+-?[\d.]+\)",
    "so many of what was chosen": rf"(?<![\d.]){_COUNTS}[-\s]\s*(?:(?:{_KINDS})\s+)*(?:{_THINGS})\b",
    "an interval, or the edge of the support": r"\b95 %|\b9[59] per cent|\b99 % of|\b1 % of real",
    "the end of a scale": r"(?<![\d.,])[01](?!\d|[.,]\d| ?%)",
}


class Problem(NamedTuple):
    """A number that is wrong or has no source."""

    page: str
    line: int
    number: str
    what: str

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}: {self.number}: {self.what}"


class Text(NamedTuple):
    """A page, or a cell of a notebook with what the notebook's outputs show."""

    name: str
    text: str
    shown: str


def pages() -> list[Path]:
    """All that have sentences with numbers."""
    notebooks = (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(notebooks)]


def texts(page: Path) -> Iterator[Text]:
    """The page, or each markdown cell of a notebook."""
    name = page.relative_to(ROOT).as_posix()
    if page.suffix != ".ipynb":
        yield Text(name, page.read_text(encoding="utf-8"), "")
        return
    notebook = nbformat.read(page, as_version=4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield Text(f"{name}, cell {number}", cell.source, shown_by(notebook))


def shown_by(notebook) -> str:
    """All texts that the stored outputs of a notebook show, in their order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs
    )


# ---------------------------------------------------------------- sources


def value_of(source: str, shown: str = "") -> Decimal:
    """The number that a source names.

    Args:
        source: As it stands in the comment.
        shown: The outputs of the notebook.

    Raises:
        ValueError: If the source names nothing, or more than one row or column.
    """
    factor, star, rest = source.partition(" * ")
    if star:
        return Decimal(factor) * value_of(rest, shown)
    rest, _, which = source.partition("#")
    kind, colon, place = rest.strip().partition(": ")
    if kind == "quoted":
        if place not in QUOTED:
            raise ValueError(f"unknown quotation {place!r}: expected one of {', '.join(QUOTED)}")
        text = QUOTED[place][0]
    elif colon and kind in TABLES:
        text = _cell(kind, *_row_and_column(place))
    else:
        text = _after(rest, shown)
    found = re.findall(NUMBER, text)
    place_in = int(which or 1)
    if len(found) < place_in:
        raise ValueError(f"{source!r} names {text[:60]!r}, which has no number {place_in}")
    return Decimal(found[place_in - 1].replace(",", "").replace("−", "-"))


def _row_and_column(place: str) -> tuple[str, str]:
    row, slash, column = place.rpartition(" / ")
    if not slash:
        raise ValueError(f"{place!r} names no row and column: expected ROW / COLUMN")
    return row.strip(), column.strip()


@lru_cache
def _rows(name: str) -> list[tuple[list[str], list[str]]]:
    """(header, cells) of each row of the markdown tables that a program makes."""
    file, make = TABLES[name]
    if file in WHEN_MEASURED and not (REFERENCE / file).is_file():
        return []
    lines = make(pd.read_csv(REFERENCE / file)).splitlines()
    header: list[str] = []
    found = []
    for line, after in zip(lines, [*lines[1:], ""]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if after.startswith("|---"):
            header = cells
        elif line.startswith("|") and not line.startswith("|---"):
            found.append((header, cells))
    return found


def _cell(name: str, row: str, column: str) -> str:
    """The one cell in the row and column that begin with these words."""
    found = [
        (header, cells)
        for header, cells in _rows(name)
        if f"{', '.join(filter(None, cells))}, ".startswith(f"{row}, ")
    ]
    if len(found) != 1:
        raise ValueError(f"the table {name} has {len(found)} rows that begin with {row!r}")
    header, cells = found[0]
    places = [i for i, title in enumerate(header) if title == column]
    places = places or [i for i, title in enumerate(header) if title.startswith(column)]
    if len(places) != 1:
        raise ValueError(f"the table {name} has {len(places)} columns that begin with {column!r}")
    return cells[places[0]]


def _after(words: str, shown: str) -> str:
    """The rest of the line after the words."""
    end = 0
    for part in words.split(" > "):
        pattern = r"\s+".join(map(re.escape, part.split()))
        found = re.compile(pattern).search(shown, end)
        if not found:
            raise ValueError(f"no output shows {part.strip()!r}")
        end = found.end()
    return shown[end:].partition("\n")[0]


def written(value: Decimal, like: str) -> str:
    """A value with the digits and signs of a number in a text."""
    digits = len(like.partition(".")[2])
    rounded = value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    shown = f"{abs(rounded):,f}" if "," in like else f"{abs(rounded):f}"
    if rounded < 0:
        return ("−" if "−" in like else "-") + shown
    return "+" * like.startswith("+") + shown


# ---------------------------------------------------------------- checking and writing


def _spaces(text: str) -> str:
    """As many spaces, lines kept."""
    return re.sub(r"[^\n]", " ", text)


def _formula(found: re.Match) -> str:
    """Spaces for a formula; but a number alone, such as $0.04\\pm0.05$, is a number."""
    inside = found[0].strip("$")
    alone = re.fullmatch(r"[-\d.,+ ]*(?:\\pm[-\d.,+ ]*)?", inside) and re.search(
        r"\d\.\d|pm", inside
    )
    return found[0].replace("$", " ").replace("\\pm", " ± ") if alone else _spaces(found[0])


def prose(text: str) -> str:
    """What sentences say: without tables that a program writes, code, formulas, targets of links and comments."""
    for pattern in (
        rf"<!-- ({'|'.join(TABLES)}|notebooks|plan|chosen) -->.*?<!-- /\1 -->",
        r"^( *)(`{3,}|~{3,}).*?^\1\2",
        rf"`(?:{_ARGUMENTS})`(?: are| is| =)?[ \n]{_MANY}",
        r"`[^`\n]*(?:\n[^`\n]+)?`",
    ):
        text = re.sub(pattern, lambda m: _spaces(m[0]), text, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*(?:\n[^$\n]+)?\$", _formula, text, flags=re.S)
    links = r"(?<=\])\([^)\s]*\)|https?://\S+|<!--.*?-->"
    return re.sub(links, lambda m: _spaces(m[0]), text, flags=re.S)


def without_source(text: str) -> list[tuple[int, str]]:
    """(line, number) of each number that may state a result and has no source."""
    rest = prose(SOURCED.sub(lambda m: _spaces(m[0]), text))
    for pattern in NO_RESULTS.values():
        rest = re.sub(pattern, lambda m: _spaces(m[0]), rest, flags=re.M)
    found = re.finditer(rf"(?<![\w.]){NUMBER}(?![\d_])", rest)
    return [(rest.count("\n", 0, one.start()) + 1, one[0]) for one in found]


def problems(text: Text) -> list[Problem]:
    """What is wrong with the numbers of a page or a cell."""
    found = [
        Problem(
            text.name, line, number, "a result without a source, or a setting that no rule knows"
        )
        for line, number in without_source(text.text)
    ]
    if "<!-- chosen -->" in text.text and text.name not in CHOSEN_PAGES:
        found.append(Problem(text.name, 1, "chosen", f"only {', '.join(CHOSEN_PAGES)} may have it"))
    for one in SOURCED.finditer(text.text):
        line = text.text.count("\n", 0, one.start()) + 1
        try:
            expected = written(value_of(one[3], text.shown), one[1])
        except ValueError as error:
            found.append(Problem(text.name, line, one[1], str(error)))
            continue
        if expected != one[1]:
            found.append(Problem(text.name, line, one[1], f"its source says {expected}: {one[3]}"))
    return found


def with_numbers(text: Text) -> str:
    """The text with its numbers written anew. A source that names nothing leaves its number as it is: the test says so."""

    def number(found: re.Match) -> str:
        try:
            new = written(value_of(found[3], text.shown), found[1])
        except ValueError:
            return found[0]
        return f"{new}{found[2]}<!--= {found[3]} -->"

    return SOURCED.sub(number, text.text)


def write(page: Path) -> None:
    """Write the numbers of a page or a notebook anew."""
    found = [with_numbers(text) for text in texts(page)]
    if page.suffix != ".ipynb":
        write_atomic(page, found[0])
        return
    notebook = nbformat.read(page, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    if [cell.source for cell in cells] == found:
        return
    for cell, source in zip(cells, found):
        cell.source = source
    write_atomic(page, nbformat.writes(notebook) + "\n")
