"""The command line, ``iflow``. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__

_PLACE = click.Path(path_type=Path)
_FRESH = "Run again what is finished and unchanged."


def _pairs(_: click.Context, __: click.Parameter, pairs: Sequence[tuple[str, str]]) -> dict:
    for name, value in pairs:
        if "=" in name or value.startswith("--"):
            raise click.UsageError("-p needs two values, NAME VALUE, such as -p steps 200")
        if [given for given, _ in pairs].count(name) > 1:
            raise click.UsageError(f"-p {name} is given more than once: give one value")
    return dict(pairs)


def _what_to_run(command: Callable) -> Callable:
    """The arguments that ``reproduce`` and ``status`` have in common."""
    decorators = [
        click.argument("notebooks", metavar="[NOTEBOOK]...", nargs=-1),
        click.option("--profile", default="quick", help="A table of notebooks/profiles.toml."),
        click.option("--device", default="auto", help="auto, cpu, cuda or mps."),
        click.option(
            "-p",
            "--parameter",
            "parameters",
            metavar="NAME VALUE",
            nargs=2,
            multiple=True,
            callback=_pairs,
            help="Set a parameter of the notebooks. May be repeated.",
        ),
        click.option("--out", type=_PLACE, help="Results (default: results/runs/PROFILE)."),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="iflow %(version)s")
@click.pass_context
def iflow(context: click.Context) -> None:
    """Integration Flow Models: one-step generation, reproduced in notebooks."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@iflow.command()
@_what_to_run
@click.option("--jobs", type=click.IntRange(1), help="Notebooks at once (default: all that fit).")
@click.option("--fresh", is_flag=True, help=_FRESH)
@click.option("--time-limit", type=float, help="Seconds after which a notebook is stopped.")
def reproduce(jobs: int | None, fresh: bool, time_limit: float | None, **what: Any) -> int:
    """Run the notebooks; write tables, figures and index.html to results/runs/PROFILE.

    NOTEBOOK is a number or a name, such as 06 or 06_nfe_vs_quality; without one, all are run.
    Stopped at any moment, the next call goes on; what is unchanged is not run again.
    """
    from . import execute

    if time_limit is not None and not 0 < time_limit < math.inf:
        raise click.UsageError(f"--time-limit must be more than 0 seconds, got {time_limit:g}")
    with _interrupted_once():
        try:
            plan = _plan(**what)
        except (ValueError, OSError) as error:
            return _complain(error, 2)
        number = f"{len(plan.tasks)} notebook{'s' * (len(plan.tasks) > 1)}"
        print(f"profile {plan.profile}, device {plan.device}, {number}", flush=True)
        try:
            manifest = execute.reproduce(plan, jobs, fresh, time_limit)
        except (ValueError, OSError) as error:
            return _complain(error, 1)
    for name, entry in manifest["notebooks"].items():
        if entry["status"] in ("failed", "interrupted") and entry["started"] >= manifest["started"]:
            _complain(f"{name} {entry['status']}: {entry['error']}", 1)
    print(f"results: {_short(plan.out / 'index.html')}")
    return _code(manifest)


@iflow.command()
@_what_to_run
def status(**what: Any) -> int:
    """Say what `iflow reproduce` would run with the same arguments, and why; write nothing."""
    from . import execute

    try:
        plan = _plan(**what, make=False)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    for name, state, note in execute.status(plan):
        print(f"{state:<12} {name}: {note}")
    return 0


@iflow.command()
@click.argument("run", metavar="RUN", type=_PLACE)
@click.option("--against", type=_PLACE, help="Compare with this run, not with results/reference.")
def verify(run: Path, against: Path | None) -> int:
    """Compare a run's results with the committed ones; exit with 1 and a table of what moved.

    RUN is the folder of a run, such as results/runs/quick.
    """
    from . import verify as comparison

    try:
        table = comparison.verify(run, against)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    moved = table[~table.agrees]
    if len(moved):
        shown = moved.rename(columns={"mean_reference": "reference", "mean_run": "this run"})
        columns = [*comparison.CELL, "reference", "this run", "allowed"]
        print(shown[columns].to_string(index=False, float_format="%.4g"))
    # results/reference has many tables that a run need not have, but another run should be the same
    only_there = table.attrs["only_in_reference"]
    missing = "" if against is None else f", and {only_there} of {against} are missing here"
    print(
        f"{len(table) - len(moved)} of {len(table)} cells agree, {len(moved)} moved; "
        f"{table.attrs['only_in_run']} more of this run have no reference{missing}"
    )
    return int(len(moved) > 0)


@iflow.command()
@click.argument("file", metavar="FILE", type=_PLACE)
@click.option("--workers", type=click.IntRange(0), help="Processes here (default: one a core).")
@click.option("--scheduler", help="Address or file of a dask scheduler whose workers to use.")
@click.option("--device", default="cpu", help="auto, cpu, cuda or mps, of each worker.")
@click.option("--fresh", is_flag=True, help=_FRESH)
@click.option("--yes", is_flag=True, help="Yes, more than 10,000 runs.")
@click.option("--out", type=_PLACE, help="Results (default: results/runs/sweep-NAME, of the file).")
def sweep(scheduler: str | None, workers: int | None, fresh: bool, device: str, **what: Any) -> int:
    """Run a notebook or a function over a grid of settings, on this machine or on a cluster.

    FILE says what to run and over which grid; experiments/sweep.toml is an example. Without
    workers (--workers 0) this process does the runs. A function returns a list of dicts, each with
    a metric, a value and, as far as they apply, the other columns of results.csv. Its runs are done
    again when its module or one that it imports has changed; --fresh is for anything else, such as
    data files.
    """
    from . import sweep as sweeps

    with _interrupted_once(), ExitStack() as stack:
        try:
            if scheduler is None:
                _resolve(device)
            todo = sweeps.read_sweep(device=device, **what)
            client = sweeps.connect(todo, stack, scheduler, workers, fresh)
        except (ValueError, OSError) as error:
            return _complain(error, 2)
        print(f"{len(todo.runs)} runs", flush=True)
        try:
            manifest = sweeps.run_sweep(todo, client, fresh)
        except (ValueError, OSError) as error:
            return _complain(error, 1)
    runs = manifest["runs"]
    number = {word: 0 for word in ("ok", "failed", "skipped", "not run")}
    for run in runs.values():
        number[run["status"]] += 1
    skipped = f", {number['skipped']} skipped" if number["skipped"] else ""
    print(f"{number['ok']} of {len(runs)} runs are done, {number['failed']} failed{skipped}")
    if number["failed"]:
        _complain(f"{number['failed']} of {len(runs)} runs failed; manifest.json says why", 1)
    print(f"results: {_short(todo.out / 'results.csv')}")
    return _code(manifest)


@iflow.command()
@click.argument("model", metavar="MODEL")
@click.option("--out", type=_PLACE, required=True, help="The file, such as model.onnx.")
@click.option("--nfe", type=click.IntRange(1), help="Network calls a sample (default: one jump).")
@click.option("--method", default="auto", help="auto, map, euler or heun.")
@click.option("--format", type=click.Choice(["onnx", "torch"]), default="onnx", help="Of the file.")
@click.option("--revision", help="Commit, tag or branch, of a MODEL from a hub.")
def export(model: str, out: Path, revision: str | None, **how: Any) -> int:
    """Write a model as one file for another runtime, with what is to be known of it in a JSON file.

    MODEL is a folder that save or save_pretrained wrote, or user/model on a hub. The file makes any
    number of samples of noise in one call. `--format torch` is read by torch.export.load, and ends
    in .pt2. docs/production.md has a script that runs the file without PyTorch.
    """
    from iflow_lib import export as exports

    try:
        known = exports.open_model(model, revision)
        print(f"exporting {model}, which takes up to a minute", flush=True)
        about = exports.export(known, out, **how)
    except (ValueError, OSError, ImportError) as error:
        return _complain(error, 2)
    calls = f"{about['nfe']} network call{'s' * (about['nfe'] > 1)} a sample"
    print(
        f"{_short(out)}: {about['kind']}, {calls}; {_short(out.with_suffix('.json'))} says the rest"
    )
    return 0


def _plan(device: str, **what: Any) -> Any:
    from .plan import make_plan

    return make_plan(device=_resolve(device), **what)


def _resolve(device: str) -> str:
    """What --device says, as torch names it."""
    if device == "cpu":
        return device  # spares the import of torch
    from iflow_lib.utils import pick_device

    return str(pick_device(device))


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM interrupt once; while what was reached is written down, no more."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _code(manifest: dict[str, Any]) -> int:
    return {"ok": 0, "interrupted": 130}.get(manifest["status"], 1)


def _complain(what: object, code: int) -> int:
    print("iflow:", " ".join(str(what).split()), file=sys.stderr)
    return code


def _separate(arguments: Sequence[str]) -> Iterator[str]:
    """Take ``-p NAME=VALUE`` for ``-p NAME VALUE``."""
    for before, argument in zip(["", *arguments], arguments):
        yield from argument.split("=", 1) if before in ("-p", "--parameter") else [argument]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    given = [*_separate(sys.argv[1:] if arguments is None else arguments)]
    try:
        code = iflow.main(given, prog_name="iflow", standalone_mode=False)
    except click.ClickException as error:
        said = error.format_message()
        if getattr(error, "option_name", None) in ("-p", "--parameter"):
            said += " Give NAME VALUE, such as -p steps 200"
        code = _complain(said, 2)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", 130)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
