"""What results/reference has beside the tables: ``python -m experiments.make_reference [STEP ...]``, all if none is named.

quick: take the table of the last `iflow reproduce`, results/runs/quick, for `iflow verify`; readme: write the tables in
README.md and docs/ (``readme_tables``) from the committed results, and the numbers in the sentences there and in the notebooks
(``numbers``); sums: SHA256SUMS, the checksums that `iflow verify`
checks. The models are trained by experiments/models.py.
"""

import argparse
import json
import re
import sys
import warnings

import pandas as pd

from experiments import numbers
from experiments.common import REFERENCE, ROOT
from experiments.readme_tables import TABLES, WHEN_MEASURED
from iflow_lib.io import write_atomic
from iflow_runner.provenance import sha256
from iflow_runner.verify import SUMS

#: Pages with tables, as paths in the checkout.
PAGES = [page.relative_to(ROOT).as_posix() for page in numbers.pages() if page.suffix != ".ipynb"]


def quick() -> None:
    run = ROOT / "results" / "runs" / "quick"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    if manifest["status"] != "ok" or manifest["dirty"]:
        sys.exit(
            f"{run} must be a whole run of a clean checkout: its status is {manifest['status']}"
        )
    write_atomic(REFERENCE / "quick.csv", (run / "results.csv").read_text(encoding="utf-8"))
    write_atomic(REFERENCE / "quick.manifest.json", json.dumps(manifest, indent=2) + "\n")


def readme() -> None:
    for page in PAGES:
        write_atomic(ROOT / page, with_tables((ROOT / page).read_text(encoding="utf-8")))
    for file in numbers.pages():
        numbers.write(file)


def with_tables(text: str) -> str:
    """A page with its tables written anew: between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

    def written(found: re.Match) -> str:
        name, (file, make) = found[1], TABLES[found[1]]
        missing = file in WHEN_MEASURED and not (REFERENCE / file).is_file()
        shown = make(pd.DataFrame() if missing else pd.read_csv(REFERENCE / file))
        return "\n".join(filter(None, [f"<!-- {name} -->", shown, f"<!-- /{name} -->"]))

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->.*?<!-- /\1 -->", written, text, flags=re.S)


def sums() -> None:
    files = sorted(
        f.relative_to(REFERENCE).as_posix()
        for f in REFERENCE.rglob("*")
        if f.is_file() and f.name != SUMS
    )
    write_atomic(
        REFERENCE / SUMS, "".join(f"{sha256(REFERENCE / name)}  {name}\n" for name in files)
    )


STEPS = {"quick": quick, "readme": readme, "sums": sums}


def main(arguments=None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    given = options.parse_args(arguments)
    if unknown := [step for step in given.steps if step not in STEPS]:
        options.error(f"unknown step {unknown[0]!r}: expected some of {', '.join(STEPS)}")
    warnings.simplefilter("ignore")
    for step in given.steps or STEPS:
        STEPS[step]()


if __name__ == "__main__":
    main()
