"""``iflow sweep``: a notebook, or a function, over a grid of settings, on dask.distributed.

A point of the grid is a *run*. The folder of a sweep holds ``runs/<key>.json``, one for each run,
written the moment it ends. When the sweep ends, also by Ctrl-C, it holds ``results.csv``, the tidy
table of all runs in the order of the grid, and ``manifest.json``. A sweep of notebooks keeps
``notebooks/`` and ``figures/`` too. Only the process that was started writes there: workers send
back what they found. A run whose settings, code and versions are unchanged is not done again.
"""

from __future__ import annotations

import ast
import csv
import gc
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import LIBRARY
from .execute import reproduce
from .files import only_writer, output_folder, read_json, read_toml, write_together
from .plan import PARAMETER_TYPES, known_name, make_plan, typed
from .provenance import digest, duration, git_state, machine, package_version, sha256, utc_now
from .recorder import checkout, csv_text, tidy_rows

#: Runs that nobody starts by mistake.
LIMIT = 10_000
_ONE_AT_A_TIME = (
    threading.Lock()
)  # torch has one global seed, and a worker may have several threads


@dataclass(frozen=True)
class Run:
    """A point of the grid.

    Attributes:
        key: Name of its files.
        label: Where it is in the grid; also in ``run_id`` of its rows.
        settings: What ``run_point`` takes.
    """

    key: str
    label: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        runs: Its runs, in the order of the grid.
        target: The notebook's name, or ``module:function``.
        out: Folder of its results.
        content: The sweep file.
        code: What the runs depend on beside their settings.
    """

    runs: list[Run]
    target: str
    out: Path
    content: dict[str, Any]
    code: dict[str, str | None]


# ---- the sweep file


def read_sweep(
    file: Path, out: Path | None = None, device: str = "cpu", yes: bool = False
) -> Sweep:
    """Check a sweep file and expand its grid; write nothing.

    Args:
        file: A TOML file with ``notebook = "NAME"``, perhaps with ``profile = "NAME"``, or with
            ``run = "module:function"``; a table ``[parameters]`` of values that stay; and a table
            ``[grid]`` with a list of values for each parameter that varies.
        out: Folder for the results instead of ``results/runs/sweep-<name of the file>``.
        device: auto, cpu, cuda or mps, of each worker.
        yes: More than ``LIMIT`` runs are meant.

    Raises:
        ValueError: With one line that says what was wrong and what was expected.
        OSError: The same, for files and folders.
    """
    content = read_toml(file)
    kind = "run" if "run" in content else "notebook"
    allowed = {kind, "parameters", "grid"} | ({"profile"} if kind == "notebook" else set())
    if kind not in content or not allowed.issuperset(content):
        raise ValueError(
            f'{file.name} must have notebook = "NAME", perhaps with profile = "NAME", or else run = '
            f'"module:function"; [parameters]; and [grid]; it has {", ".join(content) or "nothing"}'
        )
    fixed, grid = content.get("parameters", {}), content.get("grid", {})
    target, profile = content[kind], content.get("profile", "quick")
    if not isinstance(fixed, dict) or not isinstance(grid, dict):
        raise ValueError(f"{file.name}: parameters and grid must be tables such as [grid]")
    if not isinstance(target, str) or not isinstance(profile, str):
        raise ValueError(
            f"{file.name}: {kind} and profile must be text, got {target!r}, {profile!r}"
        )
    if kind == "run":
        given = fixed | {name: next(iter(_as_list(values)), None) for name, values in grid.items()}
        try:
            defaults, choices = function_parameters(target, given)
        except ValueError as error:
            module, beside = re.split(r"[.:]", target)[0], file.resolve().parent
            there = (beside / f"{module}.py").is_file() or (beside / module).is_dir()
            if module in sys.modules or not there or beside == Path.cwd():
                raise
            raise ValueError(
                f"{error}; {module} lies beside {file.name}: start it there, cd {file.parent}"
            ) from None
        base = {"run": target}
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            task = make_plan([target], profile, out=nowhere, make=False).tasks[0]
        defaults = {n: v for n, v in task.parameters.items() if n in task.notebook.used}
        choices, target = {}, task.name
        base = {"notebook": target, "profile": profile}

    def check(name: str, value: Any) -> Any:
        if name == "device":
            raise ValueError(f"{file.name}: parameter 'device' is set by --device")
        known_name(f"parameter of {target} in {file.name}", name, defaults)
        if name in choices:
            known_name(f"{name} in {file.name}", str(value), map(str, choices[name]))
        return typed(f"{file.name}: {name}", value, defaults[name], text=False)

    def check_list(name: str, values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise ValueError(
                f"{file.name}: {name} in the grid must be a list of values, got {values!r}"
            )
        return [check(name, value) for value in values]

    fixed = defaults | {name: check(name, value) for name, value in fixed.items()}
    fixed.pop("device", None)
    grid = {name: check_list(name, values) for name, values in grid.items()}
    total = math.prod(map(len, grid.values())) if grid else 0
    if total > LIMIT and not yes:
        raise ValueError(
            f"{file.name}: the grid expands to {total:,} runs, more than {LIMIT:,}: say --yes if you "
            "mean it"
        )
    if not total:
        raise ValueError(
            f"{file.name}: the grid expands to nothing: [grid] needs a list of values for each name"
        )
    runs = {}
    for values in itertools.product(*grid.values()):
        varied = dict(zip(grid, values))
        settings = base | {"parameters": fixed | varied, "device": device}
        label = "/".join(f"{name}={value}" for name, value in varied.items())
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        key = "-".join([re.sub(r"[^\w.=-]+", "-", label)[:100], mark])
        runs[key] = Run(key, label, settings)
    if out is None:
        root = Path.cwd()
        if kind == "notebook" or root.is_relative_to(LIBRARY.parent):
            root = checkout()
        out = root / "results" / "runs" / f"sweep-{file.stem}"
    out = output_folder(out, "sweep", make=False)
    return Sweep([*runs.values()], target, out, content, identity(target))


def load_function(name: str) -> Callable[..., Any]:
    """Import ``module:function``; a module in the working folder is found too.

    Raises:
        ValueError: With one line, if there is no such function.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise TypeError(f"{function} is a {type(found).__name__}")
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"run = {name!r} must name a function that can be imported from here, as "
            f"module:function ({type(error).__name__}: {error})"
        ) from None
    return found


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def function_parameters(
    name: str, given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, tuple]]:
    """Return the defaults of a function's parameters, and the choices of those that are a Literal.

    Args:
        name: The function, as ``module:function``.
        given: A value for each parameter that the sweep file names. Where a parameter has no
            default, it stands in for one.

    Raises:
        ValueError: With one line, if a parameter has neither a default that a sweep can vary nor a
            value in the file.
    """
    function = load_function(name)
    defaults, choices = {}, {}
    try:
        parameters = inspect.signature(function).parameters.values()
        inner = function if inspect.isroutine(function) or inspect.isclass(function) else None
        hints = typing.get_type_hints(inner or type(function).__call__)
    except Exception as error:
        raise ValueError(
            f"{name}: its parameters cannot be read ({type(error).__name__}: {error}); annotate them "
            "with names that its module has"
        ) from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = parameter.default
        if default is parameter.empty:
            if parameter.name == "device":  # --device says it
                default = ""
            elif given and parameter.name in given:
                default = given[parameter.name]
            else:
                raise ValueError(
                    f"{name}: parameter {parameter.name} has no default: give it a value in "
                    "[parameters] or a list of values in [grid]"
                )
        default = list(default) if isinstance(default, tuple) else default
        if type(default) not in PARAMETER_TYPES:
            raise ValueError(
                f"{name}: parameter {parameter.name} must be an int, float, bool, str, list or "
                f"tuple, for a sweep to vary it; it is {default!r}"
            )
        hint = hints.get(parameter.name)
        defaults[parameter.name] = float(default) if hint is float else default  # type: ignore[arg-type]
        if typing.get_origin(hint) is typing.Literal:
            choices[parameter.name] = typing.get_args(hint)
    return defaults, choices


@cache
def identity(target: str) -> dict[str, str | None]:
    """Return what the values of a run depend on beside its settings, here.

    It is asked once: a process keeps the code that it has loaded, whatever becomes of the files.
    """
    found = {"iflow_lib": digest(LIBRARY, "**/*.py", "assets/*")}
    for package in ("torch", "numpy", "scipy", "POT"):
        found[package] = (package_version(package) or "none").split("+")[0]
    if ":" in target:
        return found | _own_code(target)
    root = checkout()
    found[target] = sha256(root / "notebooks" / f"{target}.ipynb")
    return found | {"results/reference": digest(root / "results" / "reference")}


def _own_code(target: str) -> dict[str, str | None]:
    """The sha256 of a function's file, and of each module of the user's that it imports.

    Those lie in its folder or below the working folder. What it reads or imports otherwise, such as
    data files, is not seen: ``--fresh`` does all runs again.
    """
    module, function = target.partition(":")[0], load_function(target)
    try:
        file = Path(inspect.getfile(inspect.unwrap(function)))
    except TypeError:  # a callable object
        file = Path(sys.modules[module].__file__ or "")
    found: dict[str, str | None] = {target: sha256(file)}
    own = (file.resolve().parent, Path.cwd())

    def origin(name: str) -> Path | None:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:
            return None
        if spec is None:
            return None
        # a package without __init__.py has folders only
        place = Path(spec.origin or next(iter(spec.submodule_search_locations or ()), "")).resolve()
        if not (place.suffix == ".py" or place.is_dir()) or "site-packages" in place.parts:
            return None
        return place if any(folder in place.parents for folder in own) else None

    def follow(name: str) -> None:
        for i in range(name.count(".") + 1):  # packages first: finding a module imports them
            part = ".".join(name.split(".")[: i + 1])
            if part in ("iflow_lib", "iflow_runner"):
                return
            place = origin(part)
            if place is None:
                return
            if part in found or place.is_dir():
                continue
            found[part] = sha256(place)
            package = part if place.name == "__init__.py" else part.rpartition(".")[0]
            for node in ast.walk(ast.parse(place.read_bytes())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    base = node.module or ""
                    if node.level:
                        above = package.split(".")[: package.count(".") + 2 - node.level]
                        base = ".".join(filter(None, [*above, base]))
                    names = [f"{base}.{alias.name}" for alias in node.names]
                else:
                    continue
                for imported in names:
                    follow(imported)

    follow(module)
    if found.get(module) == found[target]:
        del found[module]  # the same file
    return found


# ---- on a worker


def look(target: str, device: str) -> dict[str, str | None]:
    """Return what ``identity`` says here, after a look whether the device is there."""
    if device not in ("auto", "cpu"):
        import torch

        torch.empty(0, device=device)
    return identity(target)


class RunError(RuntimeError):
    """A run failed for a reason that one line says."""


class SkipRun(RunError):
    """The function of a sweep says by a ValueError that its settings make no sense together."""


def run_point(settings: dict[str, Any], code: dict[str, str | None]) -> dict[str, Any]:
    """Do a run.

    Args:
        settings: What to run, its parameters and the device.
        code: What ``identity`` must be here.

    Returns:
        Its rows, its other files (bytes by name) and its seconds.

    Raises:
        RunError: On a worker with other code, and if a notebook fails.
        SkipRun: If the function says that the settings make no sense.
    """
    target = settings.get("run") or settings["notebook"]
    if wrong := _difference(look(target, settings["device"]), code):
        raise RunError(f"its worker {wrong}")
    start = time.perf_counter()
    rows, files = _call(settings) if "run" in settings else _run_notebook(settings)
    return {"rows": rows, "files": files, "seconds": round(time.perf_counter() - start, 3)}


def _call(settings: dict[str, Any]) -> tuple[list[dict], dict[str, bytes]]:
    """Call the function, alone in this process and with one thread: the same bits everywhere."""
    function, arguments = load_function(settings["run"]), dict(settings["parameters"])
    if "device" in inspect.signature(function).parameters:
        arguments["device"] = settings["device"]
    torch: Any = sys.modules.get("torch")
    with _ONE_AT_A_TIME, ExitStack() as stack:
        if torch is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        try:
            rows = function(**arguments)
            if isinstance(rows, Iterable) and not isinstance(rows, (str, Mapping)):
                rows = list(rows)
        except ValueError as error:
            raise SkipRun(str(error)) from None
        except SystemExit as error:
            raise RunError(
                f"the function ended by SystemExit({error}): it must return rows, or raise an error"
            ) from None
    tidy = tidy_rows(rows)
    if not tidy:
        raise RunError(
            "the function returned no rows: expected at least one dict, with metric and value"
        )
    return tidy, {}


def _run_notebook(settings: dict[str, Any]) -> tuple[list[dict], dict[str, bytes]]:
    name = settings["notebook"]
    with tempfile.TemporaryDirectory(prefix="sweep-") as out:
        plan = make_plan(
            [name], settings["profile"], settings["device"], settings["parameters"], out
        )
        entry = reproduce(plan, jobs=1, show=False)["notebooks"][name]
        if entry["status"] == "interrupted":
            raise KeyboardInterrupt
        if entry["status"] != "ok":
            raise RunError(entry["error"])
        files = {f: Path(out, f).read_bytes() for f in entry["files"] if f[:7] != "tables/"}
        with open(Path(out, "results.csv"), encoding="utf-8", newline="") as table:
            return list(csv.DictReader(table)), files


def _difference(theirs: dict[str, str | None], mine: dict[str, str | None]) -> str:
    """How a worker differs from the process that sends it runs, in words; "" if it does not."""
    other = [
        name if len(str(value)) > 20 else f"{name} ({theirs.get(name)}, here it is {value})"
        for name, value in mine.items()
        if theirs.get(name) != value
    ]
    words = f"has another {', another '.join(other)}: install the same there and start it again"
    return words if other else ""


# ---- in the process that was started


def connect(
    sweep: Sweep,
    stack: ExitStack,
    scheduler: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
) -> Any:
    """Take the folder of the sweep, and find who does its runs.

    Args:
        sweep: The sweep.
        stack: Lets go of everything that this function takes.
        scheduler: Address, or scheduler file, of a running dask scheduler.
        workers: Without one, processes here; one for each core if None, this process if 0.
        fresh: Whether all runs will be done.

    Returns:
        A client of dask, or None for this process.

    Raises:
        OSError: With one line, if the folder cannot be written or nobody answers.
        ValueError: With one line, for what cannot be. Nothing has been written in either case.
    """
    if workers is not None and scheduler is not None:
        raise ValueError(
            "--workers are processes here, and --scheduler has its own: give one of them"
        )
    if workers != 0:
        try:
            from dask.system import CPU_COUNT
            from distributed import Client, LocalCluster
        except ImportError:
            raise ValueError(
                "this needs dask: pip install 'iflow-lib[scale]', or go without: --workers 0"
            ) from None
    client = stack.enter_context(_reach(scheduler, sweep)) if scheduler is not None else None
    output_folder(sweep.out, "sweep", make=True)
    stack.enter_context(only_writer(sweep.out))
    left = len(sweep.runs) - (0 if fresh else len(finished(sweep)))
    if client or workers == 0 or not left:
        return client
    scratch = sweep.out / ".workers"
    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    cluster = LocalCluster(
        n_workers=min(workers or CPU_COUNT, left),
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        memory_limit=0,
        local_directory=str(scratch),
        env={f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")},
        # Ctrl-C goes to all processes of a terminal, and is for this one
        preload="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    )
    return stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))


def _reach(scheduler: str, sweep: Sweep) -> Any:
    """A client of a running scheduler whose workers can do the runs."""
    from distributed import Client

    loggers = [name for name in logging.root.manager.loggerDict if name.startswith("distributed.")]
    for logger in ("distributed", *loggers):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what goes wrong is said once, by us
    client, why = None, ""
    try:
        address = scheduler
        if scheduler.endswith(".json"):
            address = (read_json(Path(scheduler)) or {}).get("address", "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions: what matters is checked below
            client = Client(address, timeout=10, set_as_default=False)
    except Exception as error:
        why = (" ".join(str(error).split()) or type(error).__name__)[:150]
    if client is None:
        # a client that failed is closed as it is collected: if that is while another one starts, both wait for ever
        gc.collect()
        raise OSError(
            f"no scheduler answers at {scheduler!r} ({why}): start one with `dask scheduler` and "
            "give the address that it prints, such as tcp://HOST:8786, or its --scheduler-file"
        )
    if not client.nthreads():
        print(f"waiting for a worker: start one with `dask worker {scheduler}`", flush=True)
        client.wait_for_workers(1)
    device = sweep.runs[0].settings["device"]
    found = client.run(look, sweep.target, device, on_error="return")
    for worker, theirs in found.items():
        failed = isinstance(theirs, Exception)
        wrong = f"cannot do this ({_line(theirs)})" if failed else _difference(theirs, sweep.code)
        if wrong:
            client.close()
            raise ValueError(f"the worker {worker} {wrong}")
    return client


def finished(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Return the content of the files of the runs that are done and unchanged, by key."""
    found = ((run, read_json(sweep.out / "runs" / f"{run.key}.json")) for run in sweep.runs)
    return {
        run.key: done
        for run, done in found
        if done
        and (done["settings"], done["code"]) == (run.settings, sweep.code)
        and all((sweep.out / name).is_file() for name in done["files"])
    }


def run_sweep(sweep: Sweep, client: Any = None, fresh: bool = False) -> dict[str, Any]:
    """Do the runs that are left; ``connect`` comes first. A run that fails is noted.

    Args:
        sweep: The sweep.
        client: What ``connect`` returned.
        fresh: Do all runs.

    Returns:
        The manifest, whose ``status`` is "ok", "failed" or "interrupted".

    Raises:
        OSError: With one line, if the disk is full or the scheduler is lost.
    """
    done, begun = {} if fresh else finished(sweep), time.monotonic()
    states = {key: {"status": "ok", "seconds": run["seconds"]} for key, run in done.items()}
    todo = [run for run in sweep.runs if run.key not in done]
    threads = client.nthreads() if client else {}
    about = {
        "sweep": sweep.content,
        "started": utc_now(),
        **git_state(LIBRARY.parent),
        "lock_sha256": sha256(LIBRARY.parent / "requirements.lock"),
        "code": sweep.code,
        "environment": machine("cpu"),
        "cluster": {"workers": len(threads), "threads": sum(threads.values())},
    }

    def publish(status: str) -> dict[str, Any]:
        seconds = round(time.monotonic() - begun, 1)
        runs = {run.key: states.get(run.key, {"status": "not run"}) for run in sweep.runs}
        rows = [row for run in sweep.runs if run.key in done for row in done[run.key]["rows"]]
        manifest = about | {"status": status, "seconds": seconds, "runs": runs}
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        write_together(
            {sweep.out / "results.csv": csv_text(rows), sweep.out / "manifest.json": text}
        )
        return manifest

    status = "failed"
    try:
        publish("running")
        first = len(done) + 1
        for number, (run, outcome) in enumerate(_outcomes(client, todo, sweep.code), first):
            if isinstance(outcome, Exception):
                word = "skipped" if isinstance(outcome, SkipRun) else "failed"
                said = _line(outcome)
                states[run.key] = {"status": word, "error": said}
            else:
                done[run.key] = _keep(sweep, run, outcome)
                word, said = "ok", duration(outcome["seconds"])
                states[run.key] = {"status": "ok", "seconds": outcome["seconds"]}
            print(f"{number:>5} of {len(sweep.runs)}  {word:<7} {run.label}: {said}", flush=True)
        failed = any(state["status"] == "failed" for state in states.values())
        status = "failed" if failed or not done else "ok"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        manifest = publish(status)
    return manifest


def _outcomes(
    client: Any, runs: list[Run], code: dict[str, str | None]
) -> Iterator[tuple[Run, dict[str, Any] | Exception]]:
    """Each run with what ``run_point`` gave or raised, in the order in which they end.

    What was lost with a worker that died, dask does again on another.
    """
    if client is None:
        for run in runs:
            try:
                yield run, run_point(run.settings, code)
            except Exception as error:
                yield run, error
        return
    from distributed import as_completed

    sent = {client.submit(run_point, run.settings, code, pure=False): run for run in runs}
    for future in as_completed([*sent], loop=client.loop):
        if future.status not in ("finished", "error"):
            raise OSError(
                "the scheduler is lost; what has ended is kept: start it again, and the same "
                "command goes on"
            )
        yield sent.pop(future), future.exception() or future.result()


def _line(error: Exception) -> str:
    """One line on why a run failed."""
    if type(error).__name__ == "KilledWorker":  # of distributed
        tries = getattr(error, "allowed_failures", 0) + 1
        return f"every worker that tried it died, {tries} in all; often that is for want of memory"
    text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _keep(sweep: Sweep, run: Run, outcome: dict[str, Any]) -> dict[str, Any]:
    """Write what a run found. Where it is in the grid goes into ``run_id`` of each row."""
    files = {}
    for name, content in outcome["files"].items():
        folder, _, rest = name.partition("/")
        one = f"notebooks/{run.key}.ipynb"
        files[one if folder == "notebooks" else f"{folder}/{run.key}/{rest}"] = content
    rows = [
        row | {"run_id": "/".join(filter(None, [row.get("run_id"), run.label]))}
        for row in outcome["rows"]
    ]
    done = {
        "label": run.label,
        "settings": run.settings,
        "code": sweep.code,
        "seconds": outcome["seconds"],
        "finished": utc_now(),
        "files": sorted(files),
        "rows": rows,
    }
    contents: dict[str, Any] = files | {f"runs/{run.key}.json": json.dumps(done, indent=1)}
    write_together({sweep.out / name: content for name, content in contents.items()})
    return done
