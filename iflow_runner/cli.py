"""The command line, ``iflow``. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# the base class of all that typer says about wrong use; newer versions bring their own copy of click
_WrongUse = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"iflow {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def iflow(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
):
    """Integration Flow Models: one-step generation, reproduced in notebooks."""
    if context.invoked_subcommand is None:
        print(context.get_help())


_Notebooks = Annotated[
    list[str] | None,
    typer.Argument(  # noqa: UP045 (typer evaluates it on Python 3.10)
        metavar="NOTEBOOK",
        help="Numbers or names, such as 06 or 06_nfe_vs_quality; all if none is given.",
    ),
]
_Profile = Annotated[
    str, typer.Option(help="smoke, quick or full: a table of notebooks/profiles.toml.")
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
_Parameters = Annotated[
    list[str] | None,
    typer.Option(  # noqa: UP045
        "-p",
        "--parameter",
        metavar="NAME VALUE",
        help="Set a parameter of the notebooks. May be repeated.",
    ),
]
_Out = Annotated[
    Path | None,
    typer.Option(  # noqa: UP045
        metavar="DIR", help="Folder for the results. [default: results/runs/PROFILE]"
    ),
]


@app.command()
def reproduce(
    notebooks: _Notebooks = None,
    profile: _Profile = "quick",
    device: _Device = "auto",
    parameter: _Parameters = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run notebooks again that are unchanged.")
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(  # noqa: UP045
            "--time-limit",
            metavar="SECONDS",
            help="Stop a notebook that takes longer; it counts as failed.",
        ),
    ] = None,
    out: _Out = None,
) -> int:
    """Run the notebooks; write tables, figures and index.html to results/runs/PROFILE. Stopped at any moment, the next call
    goes on; what is unchanged is not run again."""
    from . import execute as job_module

    try:
        if time_limit is not None and not 0 < time_limit < math.inf:
            raise ValueError(f"--time-limit must be more than 0 seconds, got {time_limit:g}")
        job = job_module.prepare(notebooks or (), profile, device, _pairs(parameter), out)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    print(
        f"profile {job.profile}, device {job.device}, {len(job.tasks)} notebook{'s' * (len(job.tasks) > 1)}",
        flush=True,
    )
    try:
        manifest = job_module.execute(job, fresh, time_limit)
    except (ValueError, OSError) as error:
        return _complain(error, 1)
    for name, entry in manifest["notebooks"].items():
        if (
            entry["status"] in ("failed", "interrupted")
            and entry.get("started", "") >= manifest["started"]
        ):
            _complain(f"{name} {entry['status']}: {entry['error']}", 1)
    print(f"results: {_short(job.out / 'index.html')}")
    return {"ok": 0, "interrupted": 130}.get(manifest["status"], 1)


@app.command()
def status(
    notebooks: _Notebooks = None,
    profile: _Profile = "quick",
    device: _Device = "auto",
    parameter: _Parameters = None,
    out: _Out = None,
) -> int:
    """What `iflow reproduce` would run with the same arguments, and why. Nothing is written."""
    from . import execute as job_module

    try:
        job = job_module.prepare(
            notebooks or (), profile, device, _pairs(parameter), out, make=False
        )
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    for name, state, note in job_module.status(job):
        print(f"{state:<12} {name}: {note}")
    return 0


@app.command()
def verify(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, such as results/runs/quick.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(  # noqa: UP045
            metavar="DIR", help="Compare with this run, not with results/reference."
        ),
    ] = None,
) -> int:
    """Compare a run's results with the committed ones; exit with 1 and a table of what moved."""
    from . import verify as comparison

    try:
        table = comparison.verify(run, against)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    moved = table[~table.agrees]
    if len(moved):
        shown = moved.rename(columns={"mean_reference": "reference", "mean_run": "this run"})
        print(
            shown[[*comparison.CELL, "reference", "this run", "allowed"]].to_string(
                index=False, float_format="%.4g"
            )
        )
    print(
        f"{len(table) - len(moved)} of {len(table)} cells agree, {len(moved)} moved; {table.attrs['only_in_run']} more "
        "of this run have no reference"
    )
    return 1 if len(moved) else 0


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="What to run, over which grid: see benchmarks/sweep.toml."
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(  # noqa: UP045
            metavar="N",
            help="Processes on this machine, 0 for this one alone. [default: one for each core]",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(  # noqa: UP045
            metavar="ADDRESS",
            help="Use the workers of this dask scheduler: tcp://HOST:PORT, or its scheduler file.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps, of each worker.")] = "cpu",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do runs again that are finished and unchanged.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, more than 10,000 runs.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(  # noqa: UP045
            metavar="DIR",
            help="Folder for the results. [default: results/runs/sweep-NAME of the file]",
        ),
    ] = None,
) -> int:
    """Run a notebook or a training over a grid of settings, on this machine's cores or on a cluster."""
    from contextlib import ExitStack

    from . import grid
    from . import sweep as sweep_module

    with ExitStack() as stack:
        try:
            job = grid.prepare(file, out, device, yes)
            client = sweep_module.connect(job, stack, scheduler, workers, fresh)
        except (ValueError, OSError) as error:
            return _complain(error, 2)
        print("\n".join([f"{len(job.runs)} runs", *job.notes]), flush=True)
        try:
            manifest = sweep_module.execute(job, client, fresh)
        except (ValueError, OSError) as error:
            return _complain(error, 1)
    bad = [
        _complain(f"{key} failed: {run['error']}", 1)
        for key, run in manifest["runs"].items()
        if "error" in run
    ]
    ended = sum(run["status"] == "ok" for run in manifest["runs"].values())
    print(
        f"{ended} of {len(job.runs)} runs are done, {len(bad)} failed\nresults: {_short(job.out / 'results.csv')}"
    )
    return {"ok": 0, "interrupted": 130}.get(manifest["status"], 1)


def _pairs(parameters: list[str] | None) -> dict[str, str]:
    return dict(p.split("=", 1) for p in parameters or ())


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _complain(what, code: int) -> int:
    print("iflow:", " ".join(str(what).split()), file=sys.stderr)
    return code


def _join_parameters(arguments: list[str]) -> list[str]:
    """``-p NAME VALUE`` -> ``-p NAME=VALUE``, which may be given too: typer has no repeated option with two values."""
    joined, rest = [], iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("-p", "--parameter"):
            name, value = next(rest, None), None
            if name is not None and "=" not in name:
                value = next(rest, None)
            if name is None or "=" not in name and value is None:
                raise typer.BadParameter("-p needs two values, NAME VALUE")
            joined.append(name if value is None else f"{name}={value}")
    return joined


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the run failed, 2 wrong use, 130 interrupted."""
    try:
        code = app(
            _join_parameters(sys.argv[1:] if arguments is None else arguments),
            standalone_mode=False,
        )
    except _WrongUse as error:
        code = _complain(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", 130)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
