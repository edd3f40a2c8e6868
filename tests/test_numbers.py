"""Every number that states a result, in README.md, docs/ and the notebooks, is the one that its source has."""

import re
from decimal import Decimal

import nbformat
import pandas as pd
import pytest

from experiments import numbers, readme_tables
from experiments.numbers import SOURCED, Text, problems, value_of, with_numbers, without_source

PAGES = {page.relative_to(numbers.ROOT).as_posix(): page for page in numbers.pages()}


def other(number: str) -> str:
    """The number with another last digit."""
    at = max(i for i, sign in enumerate(number) if sign.isdigit())
    return number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_number_is_that_of_its_source(page):
    found = [str(one) for text in numbers.texts(page) for one in problems(text)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_number_that_is_changed_by_hand_is_found(page):
    """Each by itself, with its page, its line and the number."""
    for text in numbers.texts(page):
        for one in SOURCED.finditer(text.text):
            changed = other(one[1])
            source = text.text[: one.start()] + changed + text.text[one.end(1) :]
            lines = text.text[: one.start()].count("\n")
            only = Text(text.name, "\n" * lines + changed + one[0][len(one[1]) :], text.shown)
            (found,) = problems(only)
            assert (found.page, found.number) == (text.name, changed), found
            assert source.splitlines()[found.line - 1].count(changed), found


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_result_without_a_source_is_found(page):
    *_, text = numbers.texts(page)
    added = (
        text.text.rstrip() + "\n\nOne jump is 0.93 floors away, 12.5 % of it off: $0.04\\pm0.05$.\n"
    )
    line = added.count("\n")
    found = problems(text._replace(text=added))
    expected = [(line, number) for number in ("0.93", "12.5", "0.04", "0.05")]
    assert [(one.line, one.number) for one in found] == expected


def test_there_are_numbers_to_check():
    """The test looks at some hundred of them, on pages and in notebooks, from tables and from outputs."""
    found = [
        (name.endswith("ipynb"), bool(re.match(r"([\d.]+ \* )?\w+: ", one[3])))
        for name, page in PAGES.items()
        for text in numbers.texts(page)
        for one in SOURCED.finditer(text.text)
    ]
    assert sum(notebook for notebook, _ in found) >= 80
    assert sum(table for _, table in found) >= 20 and len(found) >= 110


@pytest.mark.parametrize(
    "text",
    [
        "# 3. A heading\n\n1. the first of a list",
        "Geng et al. (2025), arXiv 2505.13447, eq. 8 in section 4 of notebook 03",
        "Python 3.10 to 3.13 and rectified-flow-pytorch 0.14.0",
        "1-RF and 2-RF, the exact 2-Wasserstein distance W2 of x_0 in float32, CIFAR-10",
        "an MLP of 128 x 4, images of 28x28",
        "10,000 gradient steps of batch 512 with 3 seeds, 8, 16 and 32 Euler steps",
        "a width of the net: width 32, and a decay of 0.999; `power` 0.5, `lr=2e-3`",
        "its 95 % interval over seeds",
        "from 0 to 1",
        "$u=0.43\\,s_0$ and `0.43`, [0.43](0.43.md) <!-- 0.43 -->",
        "| a table |\n<!-- plane -->\n| 0.93 |\n<!-- /plane -->",
        "```\n0.93\n```",
    ],
)
def test_what_is_no_result_needs_no_source(text):
    assert [number for _, number in without_source(text) if not text.startswith("[0")] == (
        ["0.43"] if "[0.43]" in text else []
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one jump at 0.93 floors", ["0.93"]),
        ("7.0 points over the data", ["7.0"]),
        ("ahead in 14 of 15 cells", ["14"]),
        ("between 1.02 and 1.07", ["1.02", "1.07"]),
        ("1 % of them, 0.0 ± 0.3", ["1", "0.0", "0.3"]),
        ("**6.66** against 6.76.", ["6.66", "6.76"]),
        ("| 0.93 | a table by hand |", ["0.93"]),
        ("a mean of 0.60, a deviation of 0.2", ["0.60", "0.2"]),
        ("by -0.15 and 4,400 and 2.5e-3", ["-0.15", "4,400", "2.5e-3"]),
    ],
)
def test_what_may_be_a_result_needs_one(text, expected):
    assert [number for _, number in without_source(text)] == expected


def test_only_two_pages_say_what_was_chosen():
    text = "# A page\n\n<!-- chosen -->\nthe bound is 1.15\n<!-- /chosen -->"
    assert problems(Text("docs/protocol.md", text, "")) == []
    (found,) = problems(Text("docs/findings.md", text, ""))
    assert found.what.startswith("only docs/protocol.md")


# ---- sources

SHOWN = "W2 / floor   mean    max\nstudent\n1-RF         7.68   7.90\n2-RF         1.20  1,204\nlast: 0.125 -0.5"


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("1-RF", "7.68"),
        ("1-RF #2", "7.90"),
        ("W2 / floor > 1-RF > 2-RF", "1.20"),
        ("2-RF #2", "1204"),
        ("100 * last:", "12.5"),
        ("last: #2", "-0.5"),
        ("quoted: an H200", "989"),
    ],
)
def test_a_source_names_a_number(source, value):
    assert value_of(source, SHOWN) == Decimal(value)


def test_a_source_names_a_cell_of_a_table(monkeypatch):
    def made(_):
        return "| path | calls | W2 |\n|---|---|---|\n| VE | 1 | 0.93 ± 0.09 |\n| VE | 2 | 12 |\n\n| | a | b |\n|---|---|---|\n| c | 5 | 6 |"

    monkeypatch.setitem(readme_tables.TABLES, "made_up", ("plane.csv", made))
    monkeypatch.setattr(pd, "read_csv", lambda _: pd.DataFrame())
    numbers._rows.cache_clear()
    assert value_of("made_up: VE, 1 / W2") == Decimal("0.93")
    assert value_of("made_up: VE, 1 / W2 #2") == Decimal("0.09")
    assert value_of("made_up: c / b") == 6
    for source, words in {
        "made_up: VE / W2": "has 2 rows that begin with 'VE'",
        "made_up: V / W2": "has 0 rows that begin with 'V'",
        "made_up: VE, 1 / no": "has 0 columns that begin with 'no'",
        "made_up: VE, 1": "names no row and column",
        "made_up: VE, 2 / W2 #2": "has no number 2",
        "quoted: nobody": "unknown quotation 'nobody'",
        "no such words": "no output shows 'no such words'",
        "1-RF > W2": "no output shows 'W2'",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            value_of(source, SHOWN)
        (found,) = problems(Text("docs/page.md", f"a\n\n0.93<!--= {source} -->", SHOWN))
        assert found.line == 3 and words in str(found)
    monkeypatch.undo()
    numbers._rows.cache_clear()


@pytest.mark.parametrize(
    ("value", "like", "shown"),
    [
        ("0.125", "0.13", "0.13"),
        ("0.245", "0.25", "0.25"),
        ("1204.4", "9,999", "1,204"),
        ("1204.4", "9999", "1204"),
        ("0.15", "+0.10", "+0.15"),
        ("-0.15", "0.10", "-0.15"),
        ("-0.15", "−0.10", "−0.15"),
        ("0.15", "-0.10", "0.15"),
        ("7.68", "8", "8"),
    ],
)
def test_a_number_keeps_its_form(value, like, shown):
    assert numbers.written(Decimal(value), like) == shown


def test_the_program_writes_what_the_source_has(tmp_path, monkeypatch):
    """In a page and in a notebook, whose outputs stay; a source that names nothing leaves the number for the test to find."""
    text = "is 7<!--= 1-RF --> or **12 %<!--= 100 * last: -->** or 12.4 %<!--= 100 * last: -->, 3.00<!--= nothing -->"
    assert with_numbers(Text("a", text, SHOWN)) == (
        "is 8<!--= 1-RF --> or **13 %<!--= 100 * last: -->** or 12.5 %<!--= 100 * last: -->, 3.00<!--= nothing -->"
    )
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    page, notebook = tmp_path / "a.md", tmp_path / "a.ipynb"
    page.write_text("989<!--= quoted: an H200 --> and 1<!--= quoted: an H200 -->\n")
    output = nbformat.v4.new_output("stream", text=SHOWN)
    cells = [
        nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1),
        nbformat.v4.new_markdown_cell("it is 0.00<!--= 1-RF -->"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    for file in (page, notebook):
        numbers.write(file)
        (*_, found) = numbers.texts(file)
        assert problems(found) == []
        before = file.read_bytes()
        numbers.write(file)
        assert file.read_bytes() == before
    assert page.read_text().count("989") == 2
    assert nbformat.read(notebook, as_version=4).cells[0].outputs == [output]
