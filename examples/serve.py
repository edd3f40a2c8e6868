"""A small HTTP service that draws samples of an exported model: FastAPI and onnxruntime, no PyTorch.

    iflow export MODEL --out model.onnx
    uvicorn examples.serve:app                         # serves model.onnx of the folder it is started in
    python -m examples.serve other.onnx --port 8001    # another file, other limits (--help says which)

``app`` is made when uvicorn asks for it, from ``model.onnx`` and ``model.json`` in the working folder.
``create_app(file, ...)`` makes it from another file, for a program of your own.

    GET /health                    what is served, how busy it is, and the limits
    GET /sample?n=100&seed=0       n samples as JSON; the answer names the seed, so that it can be drawn again

A wrong request is answered with 4xx and one line, ``{"detail": "..."}``. Back-pressure: ``at_once``
requests are worked on, ``waiting`` more may wait, and the next one is answered at once with 503 and
Retry-After. A request that takes longer than ``seconds``, waiting included, is stopped and answered
with 504. The service knows no passwords and no encryption: put it behind a proxy that does.
"""

import argparse
import asyncio
import json
import math
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from examples.sample_onnx import draw, load

#: Numbers in an answer, whatever their shape: about 20 MB of JSON.
MOST_NUMBERS = 1_000_000


class Busy(Exception):
    """There is no room for another request."""


class Workers:
    """Threads that do one piece of work each, with room for a few that wait."""

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self.pool = ThreadPoolExecutor(at_once, thread_name_prefix="sample")
        self.room, self.seconds, self.busy, self.lock = (
            at_once + waiting,
            seconds,
            0,
            threading.Lock(),
        )

    async def run(self, work: Callable[[], Any], stop: Callable[[], None]) -> Any:
        """Return what ``work()`` returns.

        Busy if there is no room, TimeoutError if it takes too long: then ``stop()`` is called, and its
        room is free again when the thread is.
        """
        with self.lock:
            if self.busy >= self.room:
                raise Busy
            self.busy += 1
        future = self.pool.submit(work)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except asyncio.TimeoutError:
            stop()
            raise TimeoutError from None

    def _done(self, _: Any) -> None:
        with self.lock:
            self.busy -= 1


def create_app(
    file="model.onnx", *, most=10_000, at_once=2, waiting=16, seconds=10.0, threads=1, like=None
) -> FastAPI:
    """Return the service of a model.

    file: the exported model, with its JSON file beside it. most: samples of a request. at_once, waiting,
    seconds: see the module. threads: of onnxruntime for each request. like: names of the columns that the
    model must make, or None. ValueError where the files are not an export, or make other columns.
    """
    session, about = load(file, like, threads)
    each = math.prod(about["inputs"]["noise"])
    most = max(1, min(most, MOST_NUMBERS // each))
    workers = Workers(at_once, waiting, seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        workers.pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Samples of a flow model", lifespan=lifespan, openapi_url=None)
    app.state.workers = workers

    class Asked(BaseModel):
        model_config = ConfigDict(extra="forbid")  # a misspelt name is not taken for a missing one
        n: Annotated[int, Query(ge=1, le=most)] = 1
        seed: Annotated[int | None, Query(ge=0, lt=1 << 53)] = None
        label: Annotated[str | None, Query(max_length=200)] = None

    @app.exception_handler(RequestValidationError)
    async def one_line(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        names = [c["name"] for c in about.get("columns", about.get("channels", []))]
        limits = {"n": most, "at_once": at_once, "waiting": waiting, "seconds": seconds}
        model = {
            "kind": about["kind"],
            "nfe": about["nfe"],
            "columns": names,
            "sha256": about["sha256"],
        }
        return {"status": "ok", "busy": workers.busy, "limits": limits, "model": model}

    @app.get("/sample")
    async def sample(asked: Annotated[Asked, Query()]) -> Response:
        seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
        run = onnxruntime.RunOptions()

        def work() -> bytes:
            made = draw(session, about, asked.n, seed, asked.label, run=run)
            x = made.tolist() if isinstance(made, np.ndarray) else made
            answer = {"n": asked.n, "seed": seed, "samples": x}
            try:
                return json.dumps(answer, allow_nan=False).encode()
            except ValueError:
                raise FloatingPointError("the model made values that are not finite") from None

        def stop() -> None:
            run.terminate = True

        try:
            return Response(await workers.run(work, stop), media_type="application/json")
        except Busy:
            wait = {"Retry-After": "1"}
            raise HTTPException(
                503, f"busy: {workers.room} requests are here, try later", wait
            ) from None
        except TimeoutError:
            raise HTTPException(504, f"not done in {seconds:g} s: ask for fewer samples") from None
        except FloatingPointError as error:
            raise HTTPException(500, str(error)) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    return app


def __getattr__(name: str) -> FastAPI:
    """Make ``app`` when uvicorn asks for it; end with one line where there is nothing to serve."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return create_app()
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def main(arguments=None) -> int:
    """Serve a model until it is stopped; exit with 2 and one line where that cannot begin."""
    options = argparse.ArgumentParser(prog="serve", description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", default="model.onnx", help="(default: model.onnx)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address (default: this machine alone)"
    )
    options.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    options.add_argument("--most", type=int, default=10_000, help="samples of a request")
    options.add_argument("--at-once", type=int, default=2, help="requests that are worked on")
    options.add_argument("--waiting", type=int, default=16, help="requests that may wait")
    options.add_argument(
        "--seconds", type=float, default=10.0, help="for a request, waiting included"
    )
    options.add_argument("--threads", type=int, default=1, help="of each request")
    options.add_argument("--like", help="names of the columns that it must make, with commas")
    asked = options.parse_args(arguments)
    limits = {
        key: getattr(asked, key) for key in ("most", "at_once", "waiting", "seconds", "threads")
    }
    try:
        for name, value in limits.items():
            if not value >= (name in ("most", "at_once")) or not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} is too small or no number: {value}")
        if not 0 <= asked.port < 1 << 16:
            raise ValueError(f"--port must be from 0 to 65535, got {asked.port}")
        app = create_app(asked.model, like=asked.like and asked.like.split(","), **limits)
        listening = socket.socket(socket.AF_INET6 if ":" in asked.host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((asked.host, asked.port))
            listening.listen(128)  # without it, a second service could bind the same port
        except OSError as error:
            raise ValueError(
                f"cannot listen on {asked.host}:{asked.port} ({error.strerror}): give another --port or --host"
            ) from None
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    print(f"serving {asked.model} on http://{asked.host}:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=5)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
