"""The service of examples/serve.py: a thousand requests over loopback, limits, time-outs, back-pressure."""

import asyncio
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import onnxruntime
import pytest
import torch
from torch import nn

import iflow_lib as ifl
from examples import serve
from iflow_lib.export import export

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the exported model of a table, as model.onnx."""
    folder = tmp_path_factory.mktemp("served")
    flow = ifl.TableFlow(steps=2, hidden=16, layers=1).fit(ifl.data.frame("penguins").head(150))
    export(flow, folder / "model.onnx")
    return folder


def start(arguments, cwd):
    """A process of the service, and what it is reached at."""
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://127.0.0.1:(\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, int(found[1])
    raise AssertionError("".join(said))


def ask(port, path, method="GET"):
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(port, content):
    """The first line that is answered to bytes that are no request."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(content)
        return connection.recv(100).split(b"\r\n")[0]


BAD = {
    "/sample?n=0": 422,
    "/sample?n=-3": 422,
    "/sample?n=1000000000": 422,
    "/sample?n=99999999999999999999999": 422,
    "/sample?n=ten": 422,
    "/sample?n=1.5": 422,
    "/sample?N=10": 422,
    "/sample?n=1&n=2": 200,  # the last counts, as everywhere on the web
    "/sample?seed=-1": 422,
    "/sample?seed=1e400": 422,
    "/sample?label=" + "x" * 300: 422,
    "/sample/../../etc/passwd": 404,
    "/nothing": 404,
    "/sample%00": 404,
    "/sample?n=%F0%28": 422,
}


def test_a_thousand_requests(folder):
    """Started as the page says. Good ones are answered rightly while bad ones come; the service lives on."""
    process, port = start(["-m", "uvicorn", "examples.serve:app", "--port", "0"], folder)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # they never ask
    try:
        status, body = ask(port, "/health")
        about = json.loads(body)
        assert (
            status == 200 and about["status"] == "ok" and about["model"]["columns"][0] == "species"
        )
        assert about["limits"] == {"n": 10_000, "at_once": 2, "waiting": 16, "seconds": 10.0}
        good = [f"/sample?n={n}&seed={n}" for n in range(1, 101)]
        paths = [*good * 8, *(p for p in BAD for _ in range(11)), *["/health"] * 35]
        assert len(paths) == 1000
        random.Random(0).shuffle(paths)
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda path: ask(port, path), paths))
        seen = {}
        for path, (status, body) in zip(paths, answers):
            if path in good:
                assert status == 200, (path, body)
                made = json.loads(body)
                columns = made["samples"]
                assert {len(column) for column in columns.values()} == {made["n"]}
                assert set(columns["species"]) <= {"Adelie", "Chinstrap", "Gentoo"}
                assert seen.setdefault(path, body) == body  # the same seed, the same rows
            elif path == "/health":
                assert status == 200
            else:
                assert status == BAD[path], (path, status, body)
                assert status == 200 or "\n" not in json.loads(body)["detail"]
        assert Counter(status for status, _ in answers)[200] == 846
        assert ask(port, "/sample", "POST")[0] == 405
        assert ask(port, "/sample", "DELETE")[0] == 405
        assert raw(port, b"\x16\x03\x01\x02\x00garbage\r\n\r\n") == b"HTTP/1.1 400 Bad Request"
        large = b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"
        assert b" 400 " in raw(port, large) or b" 431 " in raw(port, large)
        seeds = {json.loads(ask(port, "/sample")[1])["seed"] for _ in range(3)}
        assert len(seeds) == 3  # another one each time
        status, body = ask(port, "/health")
        assert json.loads(body)["busy"] == 0 and process.poll() is None
    finally:
        for connection in idle:
            connection.close()
        process.terminate()
        assert process.wait(timeout=30) in (0, -15)


def in_process(app, *paths):
    """Answers to requests that are sent at the same time, in their order."""

    async def all_at_once():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.get(path) for path in paths))

    return asyncio.run(all_at_once())


class Gate:
    """Holds every sampling until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.now, self.most, self.lock = threading.Event(), 0, 0, threading.Lock()
        real = serve.draw

        def held(*arguments, **options):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            assert self.open.wait(30)
            with self.lock:
                self.now -= 1
            return real(*arguments, **options)

        monkeypatch.setattr(serve, "draw", held)


def test_back_pressure(folder, monkeypatch):
    """Two are worked on and three wait; the others are sent away at once, and later there is room again."""
    gate = Gate(monkeypatch)
    app = serve.create_app(folder / "model.onnx", at_once=2, waiting=3, seconds=20)
    threading.Timer(1.0, gate.open.set).start()
    answers = in_process(app, *["/sample?n=2"] * 12)
    assert Counter(a.status_code for a in answers) == {200: 5, 503: 7}
    sent_away = next(a for a in answers if a.status_code == 503)
    assert sent_away.headers["retry-after"] == "1" and "busy" in sent_away.json()["detail"]
    assert gate.most == 2 and app.state.workers.busy == 0
    assert in_process(app, "/sample")[0].status_code == 200


def test_a_time_out_gives_its_room_back_when_the_work_ends(folder, monkeypatch):
    """It counts the waiting; what has not begun is never begun."""
    gate = Gate(monkeypatch)
    app = serve.create_app(folder / "model.onnx", at_once=1, waiting=2, seconds=0.3)
    began = time.monotonic()
    answers = in_process(app, *["/sample"] * 3)
    assert [a.status_code for a in answers] == [504] * 3 and time.monotonic() - began < 15
    assert "not done in 0.3 s" in answers[0].json()["detail"]
    assert app.state.workers.busy == 1 and gate.most == 1  # the one that is held
    gate.open.set()
    for _ in range(200):
        if not app.state.workers.busy:
            break
        time.sleep(0.05)
    assert app.state.workers.busy == 0 and gate.most == 1


class Slow(nn.Module):
    """A network of many large layers."""

    data_shape = (4,)

    def __init__(self):
        super().__init__()
        self.wide, self.layer, self.out = nn.Linear(4, 512), nn.Linear(512, 512), nn.Linear(512, 4)

    def forward(self, x, t, s):
        h = self.wide(x)
        for _ in range(60):
            h = torch.tanh(self.layer(h))
        return self.out(h)

    def config(self):
        return {}


def test_a_time_out_stops_the_model(tmp_path):
    """onnxruntime itself is told to stop: the room is free long before the work would be done."""
    export(ifl.FlowMap(Slow(), ifl.RectifiedFlow()), tmp_path / "model.onnx")
    app = serve.create_app(tmp_path / "model.onnx", most=10**6, at_once=1, waiting=0, seconds=0.2)
    began = time.monotonic()
    assert in_process(app, "/sample?n=20")[0].status_code in (200, 504)
    (answer,) = in_process(app, "/sample?n=100000")  # minutes
    assert answer.status_code == 504
    while app.state.workers.busy:
        assert time.monotonic() - began < 40
        time.sleep(0.05)


def test_limits_follow_the_size_of_a_sample(tmp_path):
    """An answer holds a million numbers at most; samples without names come as lists; classes can be asked for."""
    model = ifl.FlowMap(ifl.MLP(256, 8, 1, classes=3), ifl.RectifiedFlow())
    export(model, tmp_path / "model.onnx")
    app = serve.create_app(tmp_path / "model.onnx", most=10**7, waiting=100)
    health, two, more, wrong = in_process(
        app, "/health", "/sample?n=2&label=1&seed=3", "/sample?n=3907", "/sample?label=5"
    )
    assert health.json()["limits"]["n"] == 1_000_000 // 256 and more.status_code == 422
    x = torch.tensor(two.json()["samples"])
    assert x.shape == (2, 256) and x.isfinite().all()
    assert wrong.status_code == 422 and wrong.json()["detail"].startswith("no class '5'")


def test_samples_that_are_not_finite_are_an_error(folder, monkeypatch):
    """They are no JSON, and no samples."""
    real = serve.draw
    monkeypatch.setattr(serve, "draw", lambda *a, **o: real(*a, **o) | {"year": [float("nan")]})
    (answer,) = in_process(serve.create_app(folder / "model.onnx"), "/sample")
    assert answer.status_code == 500 and "not finite" in answer.json()["detail"]


def test_it_says_in_one_line_why_it_does_not_start(folder, tmp_path, capsys, monkeypatch):
    """Exit code 2: no file, another file beside it, other columns, limits out of range, a port in use."""

    def refused(words, *arguments):
        assert serve.main([str(a) for a in arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("serve: ") and words in said, said

    model = folder / "model.onnx"
    refused("no.onnx is missing", tmp_path / "no.onnx")
    refused(
        "exported for other columns: it makes species, island", model, "--like", "species,wings"
    )
    refused("--seconds is too small", model, "--seconds", "nan")
    refused("--at-once is too small", model, "--at-once", 0)
    refused("--port must be from 0 to 65535", model, "--port", 70_000)
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    (tmp_path / "model.json").write_text("{}")
    refused("is not the file that was written with", tmp_path / "model.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            f"cannot listen on 127.0.0.1:{port} (Address already in use)", model, "--port", port
        )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        _ = serve.app
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    monkeypatch.chdir(folder)
    assert serve.app.title and not hasattr(serve, "other")


def test_another_file_and_port(folder, tmp_path):
    """python -m examples.serve: says where it is, listens there, and ends when it is told to."""
    process, port = start(
        ["-m", "examples.serve", str(folder / "model.onnx"), "--port", "0"], tmp_path
    )
    try:
        assert ask(port, "/sample?n=3")[0] == 200
    finally:
        process.terminate()
        assert process.wait(timeout=30) in (0, -15)


def test_uvicorn_names_a_port_in_use(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "uvicorn", "examples.serve:app", "--log-level", "error"]
            + ["--port", str(taken.getsockname()[1])],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode and done.stderr.count("\n") == 1
    assert "address already in use" in done.stderr


def test_the_service_needs_no_pytorch(folder):
    code = "import sys; sys.modules['torch'] = None; from examples import serve; serve.create_app(); print('ok')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "ok\n", done.stderr
    assert onnxruntime.get_available_providers()
