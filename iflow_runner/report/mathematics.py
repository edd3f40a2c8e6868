"""Convert formulas in TeX to MathML that browsers set without help."""

from __future__ import annotations

import re
import unicodedata
from html import escape

#: What latex2mathml writes and what a browser needs instead, in this order.
CORRECTIONS = (
    (' xmlns="http://www.w3.org/1998/Math/MathML"', ""),
    ("<mi>&</mi>", "<mi>&amp;</mi>"),
    ("negativethinmathspace", "-0.167em"),
    # \sim is a relation
    ("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"),
    # no space around bars, strokes and stars
    (r"<mo([^>]*)>(\||&#x0007C;|&#x0002F;)</mo>", r'<mo\1 lspace="0" rspace="0">\2</mo>'),
    (r"<mo>&#x0002A;</mo>", '<mo lspace="0" rspace="0">&#x02217;</mo>'),
    # a function has space after it, except before a bracket
    (r"<mi>(arg|cos|det|dim|exp|ln|log|sin|tan)</mi>", r"<mo>\1</mo>"),
    (r"<mo>([A-Za-z]+)</mo>(?=<mo[^>]*>(\(|&#x00028;))", r'<mo rspace="0">\1</mo>'),
    # a large bracket with an exponent needs a row of its own
    (r"(<msu\w+>)(<mo [^>]*minsize[^>]*>[^<]*</mo>)", r"\1<mrow>\2</mrow>"),
)


def mathml(tex: str, block: bool = False) -> str:
    """Convert a formula to MathML.

    Args:
        tex: The formula, without dollar signs.
        block: Whether the formula stands on a line of its own.

    Returns:
        The MathML, or the formula itself as code where the converter does not know a command.
    """
    from latex2mathml.converter import convert

    try:
        text = convert(tex.strip(), display="block" if block else "inline")
    except Exception:  # errors of several kinds, some of them not its own
        text = "<mi>\\"
    if "<mi>\\" in text:  # a command that it does not know
        return f"<code>{escape(tex.strip())}</code>"
    for pattern, replacement in CORRECTIONS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r'<mi mathvariant="(double-struck|script)">(\w)</mi>', _letter, text)
    return re.sub(r"<m([io])>&#x(\w+);</m[io]>", _sign, text)


def _letter(found: re.Match[str]) -> str:
    """Return a letter of another alphabet by its own code: browsers know no ``mathvariant``."""
    alphabet, letter = found[1].upper(), found[2]
    case = "CAPITAL" if letter.isupper() else "SMALL"
    for prefix in ("MATHEMATICAL ", ""):
        try:
            code = unicodedata.lookup(f"{prefix}{alphabet} {case} {letter.upper()}")
            return f"<mi>{code}</mi>"
        except KeyError:
            pass
    return f"<mi>{letter}</mi>"


def _sign(found: re.Match[str]) -> str:
    """Return a sign as an operator, with space around it, if it is an arrow or a relation."""
    sign = chr(int(found[2], 16))
    kind = found[1]
    if sign in "\N{INFINITY}\N{EMPTY SET}":
        kind = "i"
    elif unicodedata.category(sign) == "Sm":
        kind = "o"
    return f"<m{kind}>{escape(sign)}</m{kind}>"
