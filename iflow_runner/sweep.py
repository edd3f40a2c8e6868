"""``iflow sweep``: a notebook, or a training in the plane, over a grid of settings, on dask.distributed.

A point of the grid is a *run* (``grid``). The folder of a sweep holds ``runs/<key>.json``, one for each run, written the
moment it ends; ``results.csv``, the tidy table of all of them in the order of the grid; ``manifest.json``; of notebooks
also ``notebooks/`` and ``figures/``. Only the process that was started writes there: workers send back what they found. A
run whose settings, code and versions are unchanged is not done again.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import itertools
import json
import logging
import shutil
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from .grid import Run, Sweep, identity, kinds, read
from .provenance import PACKAGE, duration, git_state, machine, sha256, utc_now
from .recorder import csv_text

_SEEDING = threading.Lock()  # torch has one global seed, and a worker may have several threads


# ---- on a worker


class RunError(RuntimeError):
    """A run failed for a reason that one line says."""


def run_point(settings: dict, code: dict) -> dict:
    """Do a run: its rows, other files (name: bytes) and seconds. RunError on a worker with other code than ``code``."""
    if wrong := _differs(identity(settings.get("notebook")), code):
        raise RunError(f"its worker {wrong}")
    start = time.perf_counter()
    rows, files = (
        _run_notebook(settings) if "notebook" in settings else (_run_training(settings), {})
    )
    return {"rows": rows, "files": files, "seconds": round(time.perf_counter() - start, 3)}


def _run_training(settings: dict) -> list[dict]:
    from iflow_lib import data
    from iflow_lib import zoo as studies
    from iflow_lib.training import TrainConfig, fit
    from iflow_lib.training.compile import Threads

    v = settings["train"]
    system = f"{v['path']}_{kinds()[v['objective'], v['anchor']]}"
    with Threads(1, 1):  # the same bits whatever the worker has, and no worker in another's way
        with _SEEDING:
            model, objective, how = studies.plane_setup(
                system, seed=v["seed"], hidden=v["hidden"], layers=v["layers"]
            )
        how |= {"steps": v["steps"], "batch_size": v["batch_size"], "lr": v["lr"]}
        run = fit(
            model,
            objective,
            data.load(v["dataset"]),
            TrainConfig(**how, device=settings["device"], progress=False),
        )
        if run.manifest["interrupted"]:
            raise KeyboardInterrupt
        return studies.evaluate_plane(run, system, v["dataset"], nfes=v["nfes"], draws=v["draws"])


def _run_notebook(settings: dict) -> tuple[list[dict], dict[str, bytes]]:
    from . import execute as reproduce

    name = settings["notebook"]
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder, redirect_stdout(io.StringIO()):
        done = reproduce.run(
            [name], settings["profile"], settings["device"], settings["parameters"], out=folder
        )
        entry = done["notebooks"][name]
        if done["status"] == "interrupted":
            raise KeyboardInterrupt
        if entry["status"] != "ok":
            raise RunError(entry["error"])
        files = {
            file: Path(folder, file).read_bytes()
            for file in entry["files"]
            if not file.startswith("tables/")
        }
        return list(
            csv.DictReader(io.StringIO(Path(folder, "results.csv").read_text(encoding="utf-8")))
        ), files


def _differs(theirs: dict, mine: dict) -> str | None:
    """In words, how a worker differs from the process that sends it runs."""
    other = [
        name
        if len(str(mine[name])) > 20
        else f"{name} ({theirs.get(name)}, here it is {mine[name]})"
        for name in mine
        if theirs.get(name) != mine[name]
    ]
    return (
        f"has another {', another '.join(other)}: install the same there and start it again"
        if other
        else None
    )


# ---- the process that was started


def connect(
    sweep: Sweep,
    stack: ExitStack,
    scheduler: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
):
    """Take the folder of the sweep, and find who does its runs: a client of dask, or None for this process. ``stack`` lets
    go of all of it.

    scheduler: address, or file, of a running one; else ``workers`` processes here, one for each core if None, none if 0.
    fresh: all runs will be done. Raises OSError or ValueError with one line; then nothing has been written.
    """
    from filelock import FileLock, Timeout

    from .execute import _signals

    if workers is not None and (scheduler is not None or workers < 0):
        raise ValueError(f"--workers must be at least 0, and not beside --scheduler; got {workers}")
    client = None
    stack.enter_context(
        _signals()
    )  # interrupts once; while everything is closed, more of them are ignored
    try:
        if workers != 0:
            from dask.system import CPU_COUNT
            from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError(
            "this needs dask: pip install 'iflow-lib[scale]', or go without: --workers 0"
        ) from None
    if scheduler is not None:
        client = stack.enter_context(_reach(scheduler))
        _check_workers(client, scheduler, sweep)
    else:
        from iflow_lib.utils import pick_device

        pick_device(sweep.device)
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(sweep.out / ".lock", timeout=0))
    except Timeout:
        raise OSError(
            f"another process writes to {sweep.out}: wait for it, or choose another folder with --out"
        ) from None
    except OSError as error:
        raise OSError(
            f"cannot write to {sweep.out} ({error.strerror}): choose another folder with --out"
        ) from None
    left = len(sweep.runs) - (0 if fresh else len(finished(sweep)))
    if scheduler is not None or workers == 0 or not left:
        return client
    scratch = sweep.out / ".workers"
    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    cluster = stack.enter_context(
        LocalCluster(
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
    )
    return stack.enter_context(Client(cluster, set_as_default=False))


def _reach(scheduler: str):
    """A client of a running scheduler. OSError if there is none."""
    import asyncio

    from distributed import Client, Security
    from distributed.comm import connect as call

    async def knock(address):  # a client that finds nobody would take half a minute to go away
        comm = await call(address, timeout=10, **Security().get_connection_args("client"))
        await comm.close()

    for name in (
        "distributed",
        *(n for n in logging.root.manager.loggerDict if n.startswith("distributed.")),
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said once, by us
    try:
        address = (
            read(Path(scheduler)).get("address", "") if scheduler.endswith(".json") else scheduler
        )
        asyncio.run(knock(address))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions: what matters here is checked here
            return Client(address, timeout=10, set_as_default=False)
    except Exception as error:
        why = (" ".join(str(error).split()) or type(error).__name__)[:150]
        raise OSError(
            f"no scheduler answers at {scheduler!r} ({why}): start one with `dask scheduler` and give the "
            "address that it prints, such as tcp://HOST:8786, or its --scheduler-file"
        ) from None


def _check_workers(client, scheduler: str, sweep: Sweep) -> None:
    """Wait for a first worker. ValueError if one of those that are there cannot do runs of this sweep."""
    notebook, device = sweep.notebook, sweep.device

    def look():  # goes there by value, since iflow_lib may not be there
        try:
            from iflow_lib.utils import pick_device
            from iflow_runner.sweep import identity

            pick_device(device)
            return identity(notebook)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    if not client.nthreads():
        print(f"waiting for a worker: start one with `dask worker {scheduler}`", flush=True)
        client.wait_for_workers(1)
    for worker, found in client.run(look).items():
        if (
            wrong := f"cannot do this ({found})"
            if isinstance(found, str)
            else _differs(found, sweep.code)
        ):
            raise ValueError(f"the worker {worker} {wrong}")


def finished(sweep: Sweep) -> dict[str, dict]:
    """{key: its file's content} of the runs that are done and unchanged."""
    found = ((run, read(sweep.out / "runs" / f"{run.key}.json")) for run in sweep.runs)
    return {
        run.key: done
        for run, done in found
        if done
        and (done["settings"], done["code"]) == (run.settings, sweep.code)
        and all((sweep.out / name).is_file() for name in done["files"])
    }


def execute(sweep: Sweep, client=None, fresh: bool = False) -> dict:
    """Do the runs that are left and return the manifest, whose ``status`` is ok, failed or interrupted; ``connect`` comes
    first, and gives the client. A run that fails is noted, and the others go on.

    Raises OSError with one line if the disk is full, or the scheduler is lost.
    """
    from iflow_lib.io import write_together

    done, failed, begun, due = {} if fresh else finished(sweep), {}, time.perf_counter(), 0.0
    todo, before = [run for run in sweep.runs if run.key not in done], len(done)
    manifest = {
        "sweep": sweep.content,
        "status": "running",
        "started": utc_now(),
        "device": sweep.device,
        **git_state(PACKAGE.parent),
        "lock_sha256": sha256(PACKAGE.parent / "requirements.lock"),
        "code": sweep.code,
        "environment": machine("cpu"),
        "cluster": _cluster(client),
    }

    def publish() -> None:
        """Both files grow with the sweep: but for the last time they get one part in twenty of it."""
        nonlocal due
        start = time.perf_counter()
        runs = {
            run.key: {"status": "ok", "seconds": done[run.key]["seconds"]}
            if run.key in done
            else {"status": "failed", "error": failed[run.key]}
            if run.key in failed
            else {"status": "not run"}
            for run in sweep.runs
        }
        rows = [row for run in sweep.runs if run.key in done for row in done[run.key]["rows"]]
        whole = manifest | {"seconds": round(start - begun, 1), "runs": runs}
        write_together(
            {
                sweep.out / "results.csv": csv_text(rows),
                sweep.out / "manifest.json": json.dumps(whole, indent=1, ensure_ascii=False) + "\n",
            }
        )
        due = time.perf_counter() + 20 * (time.perf_counter() - start)
        return whole

    with _bar(len(sweep.runs), before) as bar:
        try:
            publish()
            for number, (run, outcome) in enumerate(_outcomes(client, todo, sweep.code), 1):
                if isinstance(outcome, Exception):
                    said = f"failed  {run.label}: {failed.setdefault(run.key, _line(outcome))}"
                else:
                    done[run.key] = _keep(sweep, run, outcome)
                    said = f"ok      {run.label}: {duration(outcome['seconds'])}"
                took, left = time.perf_counter() - begun, len(todo) - number
                said += (
                    f"; {duration(took)} so far, about {duration(took / number * left)} left"
                    if left
                    else ""
                )
                bar.console.print(
                    f"{before + number:>5} of {len(sweep.runs)}  {said}",
                    markup=False,
                    soft_wrap=True,
                )
                bar.advance(bar.task_ids[0])
                if time.perf_counter() > due:
                    publish()
            manifest["status"] = "failed" if failed else "ok"
        except KeyboardInterrupt:
            manifest["status"] = "interrupted"
        except BaseException:
            manifest["status"] = "failed"
            publish()
            raise
        return publish()


def _bar(total: int, before: int):
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(highlight=False)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(" of "),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task("", total=total, completed=before)
    return bar


def _cluster(client) -> dict:
    """Who does the runs, for the manifest; no addresses."""
    if client is None:
        return {"kind": "this process"}
    threads = client.nthreads()
    return {
        "kind": type(client.cluster).__name__ if client.cluster else "scheduler",
        "workers": len(threads),
        "threads": sum(threads.values()),
        "distributed": importlib.metadata.version("distributed"),
    }


def _outcomes(client, runs: list[Run], code: dict):
    """(run, what ``run_point`` gave or the exception that it raised), in the order in which they end. What was lost with
    a worker that died, dask does again on another; few runs are sent at a time, so that the scheduler stays small."""
    if client is None:
        for run in runs:
            try:
                yield run, run_point(run.settings, code)
            except Exception as error:
                yield run, error
        return
    from distributed import as_completed

    waiting, sent, ended = iter(runs), {}, as_completed(loop=client.loop)

    def send() -> None:
        room = 2 * max(sum(client.nthreads().values()), 1) - len(sent)
        for run in itertools.islice(waiting, max(room, 0)):
            future = client.submit(run_point, run.settings, code, pure=False)
            sent[future] = run
            ended.add(future)

    send()
    for future in ended:
        if future.status not in ("finished", "error"):
            raise OSError(
                "the scheduler is lost; what has ended is kept: start it again, and the same command goes on"
            )
        yield sent.pop(future), future.exception() or future.result()
        send()


def _line(error: Exception) -> str:
    """One line on why a run failed."""
    if type(error).__name__ == "KilledWorker":  # of distributed
        return f"every worker that tried it died, {error.allowed_failures + 1} in all; often that is for want of memory"
    text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _keep(sweep: Sweep, run: Run, outcome: dict) -> dict:
    """Write what a run found. Where it is in the grid goes into ``run_id`` of each row."""
    from iflow_lib.io import write_together

    files = {}
    for name, content in outcome["files"].items():
        folder, _, rest = name.partition("/")
        files[
            f"notebooks/{run.key}.ipynb" if folder == "notebooks" else f"{folder}/{run.key}/{rest}"
        ] = content
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
    write_together(
        {sweep.out / name: content for name, content in files.items()}
        | {sweep.out / "runs" / f"{run.key}.json": json.dumps(done, indent=1)}
    )
    return done
