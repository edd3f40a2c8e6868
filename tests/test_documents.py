"""Pages and notebooks as texts: links lead somewhere, terms are written in one way."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").rglob("*.ipynb")),
]
#: what must not stand in a text -> what is written instead. Code, links' targets and formulas are not looked at.
TERMS = {
    r"[Ii]ntegration flow|integration Flow|Integration-Flow|IntegrationFlow": "Integration Flow",
    r"rectified Flow|[Rr]ectified-[Ff]low(?!-pytorch)|RectifiedFlow": "Rectified Flow, or rectified flow for the path",
    r"PFGM ?\+(?!\+)|PFGM \+\+|[Pp]fgm ?\+\+|PFGM-?pp|\b[Pp]fgmpp": "PFGM++",
    r"Fashion ?MNIST|[Ff]ashion[- ]mnist|fashion-MNIST|FMNIST": "Fashion-MNIST",
    r"Flow-?[Mm]atch(?!ing\b)|Flow-[Mm]atching|Flowmatching|flowmatching": "FlowMatching (the objective), flow matching",
    r"\bNfe\b|\bNFEs\b|\bN\.F\.E\.|\bnfes\b": "nfe, or network calls",
    r"\bx0\b|\bX_0\b|\bx_\{0\}|\bX0\b": "x_0",
    r"\bU-net\b|\bUnet\b|\bu-net\b": "U-Net",
    r"Fréchet": "Frechet",
    r"\bgaussians?\b(?!_)|\beuler\b|\bheun\b": "Gaussian, Euler, Heun",
    r"(?<![-_])\b[Pp]ytorch\b|Github|Jupyterlab|Jupyter Lab\b": "PyTorch, GitHub, JupyterLab",
}


def pages(cells=("markdown",)):
    """(page, its text) of each page, and of each notebook's markdown cells."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = "\n\n".join(
                c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type in cells
            )
        yield page, text


def prose(text: str) -> str:
    """The text without code, formulas, tables' markers and the targets of its links."""
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2|<!--.*?-->", "", text, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*(\n[^`\n]+)?`", "", text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*(\n[^$\n]+)?\$", "", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)


def wrong_terms(text: str) -> list[str]:
    return [
        f"{found[0]!r}: write {right}"
        for wrong, right in TERMS.items()
        for found in re.finditer(wrong, prose(text))
    ]


def anchors(page: Path) -> set[str]:
    """Names that a link to the page may have after #: of headings, as GitHub makes them, or as JupyterLab does."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", dict(pages())[page], flags=re.M):
        if page.suffix == ".ipynb":
            found.append(heading.replace(" ", "-"))
            continue
        name = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
        found.append(name if name not in found else f"{name}-{found.count(name)}")
    return set(found)


def dead_links(page: Path, text: str) -> list[str]:
    text = re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)[^)]*\)", text) + re.findall(
        r"^\[[^]]+\]: +(\S+)", text, flags=re.M
    )
    links += re.findall(r"\b(?:src|href)=[\"']([^\"']+)", text)
    dead = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or anchor and (target not in PAGES or anchor not in anchors(target)):
            dead.append(link)
    return dead


def test_links_lead_somewhere():
    found = {page.relative_to(ROOT).as_posix(): dead_links(page, text) for page, text in pages()}
    assert len(found) > 10 and {page: links for page, links in found.items() if links} == {}


def test_a_dead_link_is_found():
    text = (
        "[a](docs/no.md) [b](docs/library.md#conventions) [c](README.md#nothing) ![d](results/no.png) [e](#ten-lines) "
        "<img src='f.png'> [g](https://example.org/nothing) `[h](code.md)`\n\n[i]: j.md"
    )
    assert dead_links(ROOT / "README.md", text) == [
        "docs/no.md",
        "README.md#nothing",
        "results/no.png",
        "j.md",
        "f.png",
    ]


def test_terms():
    found = {page.relative_to(ROOT).as_posix(): wrong_terms(text) for page, text in pages()}
    assert {page: words for page, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "text",
    [
        "an Integration flow",
        "the Rectified-Flow baseline",
        "PFGM+ noise",
        "pfgm++",
        "FashionMNIST",
        "with Flow-Matching",
        "at 4 NFEs",
        "regression on x0",
        "a Unet",
        "the Fréchet distance",
        "eight gaussians",
        "with euler steps",
        "in Pytorch",
    ],
)
def test_a_wrong_term_is_found(text):
    assert len(wrong_terms(text)) == 1


def test_right_terms_and_code_pass():
    assert (
        wrong_terms(
            "Integration Flow Models on rectified flow, 1-Rectified Flow, PFGM++; PFGM is older. "
            "`RectifiedFlow()` $x_{0}$ $$X_0\n$$\n```\nx0 = euler\n```\n[x_0](a/x0.md), "
            "rectified-flow-pytorch"
        )
        == []
    )
