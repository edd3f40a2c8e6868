"""Models on a hub, against a stub of it on this machine: pinned, safetensors only, one line where it fails."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import iflow_lib as ifl
from iflow_lib import hub
from iflow_runner import cli


class Stub(ThreadingHTTPServer):
    """As much of a hub as huggingface_hub asks of it: repositories, commits, files."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories, self.private, self.asked = (
            {},
            {},
            [],
        )  # {name: [(commit, {file: bytes})]}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name, files):
        before = self.repositories.setdefault(name, [])
        number = hashlib.sha1(f"{name} {len(before)}".encode()).hexdigest()
        before.append((number, {**(before[-1][1] if before else {}), **files}))
        return number

    def at(self, name, revision):
        """The commit and its files; None if there is none."""
        commits = self.repositories.get(name, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((c for c in commits if c[0] == revision), None)


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def lacks(self, what):
        self.say(404, {"error": what}, X_Error_Code=what, X_Error_Message=what)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.asked.append(("POST", path))
        if self.server.private.get("refuses"):
            return self.say(403, {"error": "no"}, X_Error_Message="you may not write here")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, [])
            self.server.private[name] = asked.get("visibility", asked.get("private"))
            return self.say(200, {"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        owner, model, kind = path.removeprefix("/api/models/").split("/")[:3]
        name = f"{owner}/{model}"
        if kind == "preupload":
            files = [
                {**f, "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.say(200, {"files": files})
        assert kind == "commit", path
        lines = [json.loads(line) for line in body.splitlines()]
        values = [line["value"] for line in lines if line["key"] == "file"]
        number = self.server.commit(
            name, {v["path"]: base64.b64decode(v["content"]) for v in values}
        )
        url = f"{self.server.url}/{name}/commit/{number}"
        return self.say(200, {"commitUrl": url, "commitOid": number, "hookOutput": ""})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if path.startswith("/api/models/"):
            owner, model, *rest = path.removeprefix("/api/models/").split("/")
            if f"{owner}/{model}" not in self.server.repositories:
                return self.lacks("RepoNotFound")
            if rest[:1] == ["tree"]:
                found = self.server.at(f"{owner}/{model}", rest[1])
                return self.say(
                    200,
                    [
                        {
                            "type": "file",
                            "path": f,
                            "size": len(c),
                            "oid": hashlib.sha1(c).hexdigest(),
                        }
                        for f, c in found[1].items()
                    ],
                )
            found = self.server.at(f"{owner}/{model}", rest[1] if rest else "main")
            if found is None:
                return self.lacks("RevisionNotFound")
            files = [{"rfilename": file} for file in found[1]]
            about = {"id": f"{owner}/{model}", "sha": found[0], "siblings": files, "private": False}
            return self.say(200, about)
        owner, model, _, revision, file = path[1:].split("/", 4)
        found = self.server.at(f"{owner}/{model}", revision)
        if found is None or file not in found[1]:
            return self.lacks("EntryNotFound")
        content = found[1][file]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.say(200, content, ETag=etag, X_Repo_Commit=found[0])

    do_HEAD = do_GET


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A hub on this machine in place of the one far away, and an empty cache."""
    server = Stub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = ifl.FlowMap(ifl.MLP(2, 16, 1), ifl.VariancePreserving())
    config = ifl.TrainConfig(steps=3, seed=5)
    return ifl.fit(model, ifl.IntegralIdentity(), ifl.data.load("two_moons", 64), config)


def test_there_and_back(stub, run, recwarn):
    """The same samples; a card that says how it was trained; private; no folder of this machine."""
    manifest = run.manifest | {"config": run.manifest["config"] | {"out_dir": "/home/me/secret"}}
    address = run.model.push_to_hub("user/model", manifest=manifest, license="mit")
    commit = address.rsplit("/", 1)[1]
    ((number, files),) = stub.repositories["user/model"]
    assert (number, set(files)) == (commit, {"config.json", "model.safetensors", "README.md"})
    assert stub.private["user/model"] in (True, "private")
    assert not any(b"secret" in content for content in files.values())
    card = files["README.md"].decode()
    for words in (
        "license: mit",
        "# user/model",
        "IntegralIdentity(",
        "3 steps of batch",
        "seed 5",
        "VariancePreserving(beta_min=0.1",
        "two_moons, 64 examples of shape (2,)",
        f"MLP, {run.model.parameter_count:,} parameters",
        "one network call makes a sample",
    ):
        assert words in card, words
    again = ifl.FlowMap.from_pretrained("user/model", revision=commit)
    assert torch.equal(ifl.sample(again, 50).x, ifl.sample(run.model, 50).x)
    assert not [w for w in recwarn if "revision" in str(w.message)]


def test_a_revision_is_one_model(stub, run):
    """A name alone is the newest commit, with a warning that names it; a commit stays what it was, without a network."""
    first = run.model.push_to_hub("user/model").rsplit("/", 1)[1]
    other = ifl.FlowMap(ifl.MLP(3, 8, 1), ifl.RectifiedFlow())
    second = other.push_to_hub("user/model", private=False).rsplit("/", 1)[1]
    assert first != second
    with pytest.warns(UserWarning, match=f'give revision="{second}"'):
        assert ifl.FlowMap.from_pretrained("user/model").data_shape == (3,)
    assert ifl.FlowMap.from_pretrained("user/model", revision=first).data_shape == (2,)
    assert ifl.FlowMap.from_pretrained("user/model", revision="main").data_shape == (3,)
    stub.shutdown()
    stub.server_close()
    assert ifl.FlowMap.from_pretrained("user/model", revision=first).data_shape == (2,)


def test_the_files_are_of_one_commit(stub, run, monkeypatch):
    """A commit that comes between the look and the download changes nothing."""
    run.model.push_to_hub("user/model")
    info = huggingface_hub.HfApi.model_info

    def then_another_commit(*args, **options):
        found = info(*args, **options)
        stub.commit("user/model", {"config.json": b"{}"})
        return found

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", then_another_commit)
    with pytest.warns(UserWarning, match="newest commit"):
        assert ifl.FlowMap.from_pretrained("user/model").data_shape == (2,)


def test_no_pickle(stub, run):
    """Other weights are neither read nor fetched."""
    stub.commit("user/pickle", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(ValueError, match="holds no model.safetensors: .* pickle, are not read"):
        ifl.FlowMap.from_pretrained("user/pickle", revision="main")
    run.model.push_to_hub("user/both")
    commit = stub.commit("user/both", {"pytorch_model.bin": b"\x80\x04.", "evil.py": b"1"})
    ifl.FlowMap.from_pretrained("user/both", revision=commit)
    assert not [path for _, path in stub.asked if path.endswith((".bin", ".py"))]


def test_a_changed_file_is_noticed(stub, run):
    run.model.push_to_hub("user/model")
    weights = bytearray(stub.repositories["user/model"][-1][1]["model.safetensors"])
    weights[-1] ^= 1
    commit = stub.commit("user/model", {"model.safetensors": bytes(weights)})
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        ifl.FlowMap.from_pretrained("user/model", revision=commit)


def test_tables_and_series(stub, tmp_path, capfd):
    """They go the same way, and say what of the data is in them."""
    penguins = ifl.data.frame("penguins").head(120)
    flow = ifl.TableFlow(steps=3, hidden=8, layers=1).fit(penguins)
    commit = flow.push_to_hub("user/table").rsplit("/", 1)[1]
    card = stub.repositories["user/table"][-1][1]["README.md"].decode()
    assert "species, island, bill_length_mm" in card and "values that were observed" in card
    assert 'ifl.TableFlow.load("user/table"' in card and "was not recorded" not in card
    again = ifl.TableFlow.load("user/table", revision=commit)
    assert again.sample(20).equals(flow.sample(20))
    weather = ifl.data.frame("weather").head(24 * 40)
    series = ifl.SeriesFlow(8, "1h", "time_hour", "origin", ["temp"], width=8, steps=2).fit(weather)
    commit = series.push_to_hub("user/series", manifest={"steps_done": 2}).rsplit("/", 1)[1]
    again = ifl.SeriesFlow.load("user/series", revision=commit)
    assert (again.sample(3).values == series.sample(3).values).all()
    with pytest.raises(ValueError, match="holds no TableFlow"):
        ifl.TableFlow.load("user/series", revision=commit)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_goes_wrong(stub, run, tmp_path, monkeypatch):
    """One line each: a name, a repository, a revision, a right, a network that is not there."""
    for name in ("model", "a/b/c", "user/", 7, "../x", "user/mo del"):
        with pytest.raises(ValueError, match="a name such as") as error:
            run.model.push_to_hub(name)
        one_line(error)
    with pytest.raises(OSError, match="user/none is no folder here, and could not") as error:
        ifl.FlowMap.from_pretrained("user/none")
    one_line(error)
    run.model.push_to_hub("user/model")
    with pytest.raises(OSError, match="from the hub at v9: ") as error:
        ifl.FlowMap.from_pretrained("user/model", revision="v9")
    one_line(error)
    run.model.save_pretrained("user/here")  # a folder comes first
    assert ifl.FlowMap.from_pretrained("user/here").data_shape == (2,)
    with pytest.raises(ValueError, match="is a folder and has no revisions"):
        ifl.FlowMap.from_pretrained("user/here", revision="main")
    with pytest.raises(FileNotFoundError, match="no model in"):
        ifl.FlowMap.from_pretrained(tmp_path / "user" / "none")
    stub.private["refuses"] = True
    with pytest.raises(OSError, match="user/model could not be sent") as error:
        run.model.push_to_hub("user/model")
    one_line(error)
    stub.private.clear()

    class Own(torch.nn.Linear):
        data_shape = (2,)

        def forward(self, x, t, s):
            return super().forward(x)

    with pytest.raises(ValueError, match="the network Own cannot be saved") as error:
        ifl.FlowMap(Own(2, 2), ifl.RectifiedFlow()).push_to_hub("user/own")
    one_line(error)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(OSError, match="could not be fetched") as error:
        ifl.FlowMap.from_pretrained("user/model", revision="main")
    one_line(error)


def test_without_the_extra(stub, run, monkeypatch, capfd):
    find = hub.importlib.util.find_spec
    lacks = lambda name: None if name == "huggingface_hub" else find(name)  # noqa: E731
    monkeypatch.setattr(hub.importlib.util, "find_spec", lacks)
    for call in (
        lambda: run.model.push_to_hub("user/model"),
        lambda: ifl.FlowMap.from_pretrained("user/model"),
    ):
        with pytest.raises(
            ImportError, match=r'huggingface_hub: pip install "iflow-lib\[hub\]"'
        ) as error:
            call()
        one_line(error)
    with pytest.raises(SystemExit) as end:
        cli.main(["export", "user/model", "--out", "model.onnx"])
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "user/model is no folder here" in said
    assert stub.asked == []
