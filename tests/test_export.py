"""Exported models make the samples of PyTorch, without it; what cannot be exported is told in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from torch import nn

import iflow_lib as ifl
from examples import sample_onnx
from iflow_lib import export as exports
from iflow_lib.export import export
from iflow_lib.frames.calendar import features
from iflow_lib.frames.columns import Ranks
from iflow_lib.frames.decoders import Curves, RanksDecoder, ScaleDecoder, ranks_curve, scale_curve
from iflow_lib.frames.scales import ChannelScale
from iflow_lib.sampling import initial_noise, sample
from iflow_runner import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/production.md").read_text(encoding="utf-8")


def with_weights(model):
    """The model with weights that are not zero anywhere, as after training."""
    torch.manual_seed(0)
    for weights in model.parameters():
        spread = 0.1 if weights.ndim < 2 else weights[0].numel() ** -0.5
        nn.init.normal_(weights, std=spread)
    return model.eval()


def mlp(**how):
    return with_weights(ifl.FlowMap(ifl.MLP(3, 32, 2, **how), ifl.RectifiedFlow()))


def run(file, given):
    about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(file)
    return dict(zip(about["outputs"], session.run(about["outputs"], given)))


def scaled(model):
    model.scaling = ifl.data.standardize(50 + 10 * torch.randn(99, *model.data_shape)).scaling
    return model


MODELS = {
    "MLP": lambda: (
        with_weights(ifl.FlowMap(ifl.MLP(3, 32, 2), ifl.VariancePreserving())),
        {"nfe": 3, "method": "heun"},
    ),
    "MLP with an anchor": lambda: (
        with_weights(ifl.FlowMap(ifl.MLP(3, 32, 2, anchor=True), ifl.VarianceExploding())),
        {"nfe": 3},
    ),
    "UNet": lambda: (
        with_weights(ifl.FlowMap(ifl.UNet(1, 8, 8, 1, classes=3), ifl.RectifiedFlow())),
        {},
    ),
    "UNet1d": lambda: (
        scaled(with_weights(ifl.FlowMap(ifl.UNet1d(9, 2, 8, 1, halvings=1), ifl.RectifiedFlow()))),
        {},
    ),
    "Transformer": lambda: (
        with_weights(ifl.FlowMap(ifl.Transformer(6, 2, 16, 1), ifl.PoissonFlow(aug_dim=8))),
        {"nfe": 2},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_makes_the_samples_of_pytorch(name, tmp_path):
    """At most 1e-4 apart over 1,000 samples, in deviations of the data; any batch; as many calls as asked for."""
    model, how = MODELS[name]()
    file = tmp_path / "model.onnx"
    about = export(model, file, **how)
    noise = torch.cat(list(initial_noise(model, 1000, 5))) / model.path.tau_max
    given = {"noise": noise.numpy()}
    labels = None
    if model.classes:
        labels = torch.arange(1000) % (model.classes + 1) - 1
        given["labels"] = labels.numpy()
    theirs = run(file, given)["x"]
    ours = sample(model, 1000, seed=5, labels=labels, **how).x.numpy()
    spread = 1.0 if model.scaling is None else float(model.scaling.std.min())
    assert np.abs(theirs - ours).max() <= 1e-4 * spread
    assert np.std(ours) > 0.1 and about["nfe"] == how.get("nfe", 1)
    onnx.checker.check_model(onnx.load(file))
    assert b".py" not in file.read_bytes()  # no place of this machine
    for n in (1, 7):
        assert np.allclose(
            run(file, {k: v[:n] for k, v in given.items()})["x"], theirs[:n], atol=1e-3
        )


def test_torch_export(tmp_path):
    """The exported program is a file too, and needs no code of ours."""
    model = mlp(classes=2)
    about = export(model, tmp_path / "model.pt2", format="torch", nfe=2)
    noise = torch.cat(list(initial_noise(model, 300, 1)))
    code = (
        "import sys, torch; program = torch.export.load('model.pt2').module()\n"
        "noise, labels = torch.load('given.pt', weights_only=True)\n"
        "torch.save(program(noise, labels=labels), 'made.pt'); print('iflow_lib' in sys.modules)"
    )
    labels = torch.arange(300) % 2
    torch.save((noise, labels), tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
    content = (tmp_path / "model.pt2").read_bytes()
    assert b"site-packages" not in content and b".py" not in content
    (made,) = torch.load(tmp_path / "made.pt", weights_only=True)
    assert torch.allclose(made, sample(model, 300, 2, seed=1, labels=labels).x, atol=1e-5)
    assert about["outputs"] == ["x"] and about["inputs"] == {"noise": [3], "labels": []}


# ---------------------------------------------------------------------- decoding

SPREAD = np.concatenate([np.random.default_rng(0).normal(size=3000), np.linspace(-8, 8, 801)])


def columns_of_numbers():
    rng = np.random.default_rng(1)
    yield "few", rng.normal(size=12)
    yield "a grid", np.round(rng.normal(size=3000), 1)
    yield "far tails", rng.standard_t(2, size=100_000)
    yield "zeros", np.where(rng.random(5000) < 0.4, 0, rng.gamma(1, 1, 5000))
    yield "whole numbers", rng.integers(-5, 50, 300)
    yield "dates", rng.integers(1_600_000_000_000_000_000, 1_700_000_000_000_000_000, 5000)
    yield "one of them often", np.where(rng.random(5000) < 0.3, 7, rng.integers(0, 10**6, 5000))
    yield "all the same", np.full(20, 3.5)


@pytest.mark.parametrize("beyond", [False, True])
def test_decoding_is_that_of_numpy(beyond):
    z = SPREAD.astype(np.float32)
    for name, values in columns_of_numbers():
        limits = (-np.inf, np.inf) if values.dtype == float else (-(2**62), 2**62)
        ranks = Ranks.fit(values, limits, beyond)
        score = torch.from_numpy(z).double()
        found = Curves([ranks_curve(ranks)], normal=True)(score[:, None])[:, 0]
        theirs, ours = RanksDecoder(ranks)(found, score).numpy(), ranks.decode(z[:, None])
        assert theirs.dtype == ours.dtype, name
        assert np.abs(theirs - ours).max() <= 1e-9 * max(np.ptp(values), 1e-9), name


@pytest.mark.parametrize("kind", ["scores", "standard"])
@pytest.mark.parametrize("beyond", [False, True])
def test_decoding_of_channels_is_that_of_numpy(kind, beyond):
    for name, values in columns_of_numbers():
        scale = ChannelScale.fit(values.astype(float)[None], kind, beyond)
        z = torch.from_numpy(SPREAD)
        found = Curves([scale_curve(scale)])(z[:, None])[:, 0]
        theirs, ours = ScaleDecoder(scale)(found, z).numpy(), scale.decode(SPREAD)
        assert np.abs(theirs - ours).max() <= 1e-9 * max(np.ptp(values), 1.0), name


@pytest.fixture(scope="module")
def frame():
    """A table with every kind of column, 300 rows."""
    penguins = ifl.data.frame("penguins").head(300).reset_index(drop=True)
    rng = np.random.default_rng(0)
    n = len(penguins)
    many = [f"town {i}" for i in rng.integers(0, 40, n)]
    return penguins.assign(
        when=pd.date_range("2020-01-01", periods=n, freq="7h"),
        since=pd.to_timedelta(rng.integers(0, 5000, n), unit="s"),
        day=pd.Series(pd.date_range("2020-01-01", periods=n)).dt.strftime("%d.%m.%Y"),
        town=many,
        size=pd.Categorical(rng.choice(["S", "M", "L"], n), ["S", "M", "L"], ordered=True),
        short=np.round(rng.normal(size=n), 1).astype("float32"),
        count=pd.array(np.where(rng.random(n) < 0.2, pd.NA, rng.poisson(3, n)), dtype="Int64"),
        wet=rng.random(n) < 0.3,
        id=[f"P{i:04d}" for i in range(n)],
        row=np.arange(n),
        note=[f"this is note {i} of many" for i in range(n)],
        same=7,
    )


@pytest.fixture(scope="module")
def table(frame, tmp_path_factory):
    flow = ifl.TableFlow(steps=20, hidden=32, layers=1).fit(frame)
    folder = tmp_path_factory.mktemp("table")
    flow.save(folder / "flow")
    export(flow, folder / "model.onnx")
    return flow, folder


def test_a_table_without_pytorch_is_the_table_with_it(table, frame):
    """Labels, types, dates, missing cells, constants and identifiers: at most one cell in 1,000 rounds another way."""
    flow, folder = table
    session, about = sample_onnx.load(folder / "model.onnx")
    noise = torch.cat(list(initial_noise(flow.model, 1000, 0)))[:, : about["inputs"]["noise"][0]]
    out = dict(zip(about["outputs"], session.run(about["outputs"], {"noise": noise.numpy()})))
    made = sample_onnx.rows(about, out)
    wanted = flow.sample(1000, seed=0)
    assert list(made) == list(frame.columns)
    for name in frame.columns:
        column = pd.Series(made[name], dtype=object)
        missing = wanted[name].isna()
        assert (column.isna() == missing).all(), name
        if missing.all():
            continue
        ours, theirs = wanted[name][~missing], column[~missing]
        if ours.dtype.kind in "Mm":
            read = pd.to_datetime if ours.dtype.kind == "M" else pd.to_timedelta
            ours, theirs = ours.astype("int64"), read(theirs).astype("int64")
        elif ours.dtype.kind == "f":  # float32 is written as short as it is
            theirs = theirs.astype(ours.dtype)
        same = ours.astype(object).to_numpy() == theirs.astype(object).to_numpy()
        assert same.mean() >= 0.999, name
    assert wanted["count"].isna().any() and wanted["note"].isna().all()
    assert made["id"][:2] == ["P0300", "P0301"] and made["row"][0] == 300 and made["same"][0] == 7


def test_the_ten_lines_of_the_page(table, tmp_path):
    """They run as they stand, in a Python that has no torch, and are ten beside the imports."""
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    written = [line for line in lines.splitlines() if line and not line.startswith("import")]
    assert len(written) == 10
    _, folder = table
    for ending in ("onnx", "json"):
        (tmp_path / f"model.{ending}").write_bytes((folder / f"model.{ending}").read_bytes())
    code = (
        f"import sys; sys.modules['torch'] = None\n{lines}\n"
        "print(json.dumps({name: list(map(str, values)) for name, values in table.items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert set(made["species"]) <= {"Adelie", "Gentoo", "Chinstrap"} and len(made["town"]) == 1000
    assert set(made["note"]) == {"None"} and set(made["same"]) == {"7"} and "None" in made["count"]


def test_the_script_without_pytorch(table, tmp_path):
    _, folder = table
    frame = tmp_path / "rows.csv"
    code = "import sys; sys.modules['torch'] = None; from examples.sample_onnx import main; sys.exit(main())"
    call = [sys.executable, "-c", code, str(folder / "model.onnx"), "-n", "50", "--seed", "1"]
    done = subprocess.run([*call, "--out", str(frame)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = pd.read_csv(frame)
    assert len(read) == 50 and read["town"].str.startswith("town ").all()
    assert read["wet"].dtype == bool and read["short"].round(1).eq(read["short"]).all()


@pytest.mark.parametrize("spread", ["calendar", "entities"])
def test_windows_without_pytorch_are_those_with_it(spread, tmp_path):
    """Channels in their units; told the calendar of a zone whose clock changes, or the entity."""
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2021-01-01", periods=24 * 40, freq="h", tz="UTC")
    level = 10 + 5 * np.sin(2 * np.pi * np.arange(len(stamps)) / 24)
    data = pd.concat(
        pd.DataFrame(
            {
                "at": stamps,
                "site": site,
                "heat": np.round(level + rng.normal(size=len(stamps)), 1),
                "count": rng.poisson(4, len(stamps)),
                "free": rng.normal(size=len(stamps)),
            }
        )
        for site in ("north", "south")
    )
    how = {"scale": "standard", "conditions": False}
    if spread == "calendar":
        how = {"calendar": ("hour", "weekday", "month"), "timezone": "Europe/Berlin"}
    flow = ifl.SeriesFlow(
        8,
        "1h",
        "at",
        "site",
        ["heat", "count", "free"],
        network="transformer",
        width=8,
        steps=4,
        **how,
    ).fit(data if spread == "entities" else data[data.site == "north"])
    file = tmp_path / "model.onnx"
    export(flow, file)
    session, about = sample_onnx.load(file)
    given, chosen = sample_onnx.inputs(about, 300, 4)
    noise = torch.cat(list(initial_noise(flow.model, 300, 0)))[..., :3]
    given["noise"] = noise.numpy()
    out = dict(zip(about["outputs"], session.run(about["outputs"], given)))
    if spread == "calendar":
        moments = sample_onnx.stamps(about, chosen)
        index = pd.DatetimeIndex(moments.ravel(), tz="UTC")
        told = features(index, flow.calendar, "Europe/Berlin").reshape(300, 8, -1)
        assert np.abs(told - given["calendar"]).max() < 1e-6
        wanted = flow.sample(300, starts=list(index[::8]))
    else:
        names = np.array(flow.entities, dtype=object)[given["labels"]]
        assert set(names) == {"north", "south"}
        wanted = flow.sample(300, entity=list(names))
    off = np.abs(out["values"] - wanted.values) > 1e-4 * wanted.values.std((0, 1))
    assert off.mean() < 1e-3
    made = sample_onnx.windows(about, out, given, chosen)
    assert made["count"] == wanted.frame()["count"].tolist()
    again = sample_onnx.draw(session, about, 5, seed=1)
    assert len(again["heat"]) == 40 and isinstance(again["count"][0], int)
    if spread == "entities":
        assert set(sample_onnx.draw(session, about, 5, seed=1, label="south")["site"]) == {"south"}


# ---------------------------------------------------------------------- the command line


def iflow(capfd, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return end.value.code, *capfd.readouterr()


def test_the_command_line(table, tmp_path, capfd):
    """It says what it wrote; the same again is replaced; nothing is left beside the two files."""
    _, folder = table
    file = tmp_path / "out/model.onnx"
    ifl.FlowMap(ifl.MLP(2, 8, 1), ifl.RectifiedFlow()).save_pretrained(tmp_path / "flow_map")
    for _ in range(2):
        code, out, err = iflow(capfd, "export", tmp_path / "flow_map", "--out", file, "--nfe", 2)
        assert (code, err) == (0, "")
        assert "model.onnx: samples, 2 network calls a sample" in out
        assert "model.json says the rest" in out
    assert sorted(f.name for f in file.parent.iterdir()) == ["model.json", "model.onnx"]
    opened = exports.open_model(folder / "flow")
    assert opened.sample(9).equals(table[0].sample(9))


def one_line(capfd, *arguments):
    code, out, err = iflow(capfd, "export", *arguments)
    assert code == 2 and err.count("\n") == 1 and err.startswith("iflow: "), err
    return err


def test_wrong_use(table, tmp_path, capfd):
    flow, folder = table
    model = tmp_path / "flow_map"
    mlp().save_pretrained(model)
    files = {f: f.read_bytes() for f in folder.glob("model.*")}
    assert "is missing" in one_line(capfd, tmp_path / "no", "--out", tmp_path / "a.onnx")
    assert "must end in .onnx" in one_line(capfd, model, "--out", tmp_path / "a.pt")
    said = one_line(capfd, model, "--out", tmp_path / "a.onnx", "--format", "torch")
    assert "must end in .pt2" in said
    assert "'--nfe'" in one_line(capfd, model, "--out", tmp_path / "a.onnx", "--nfe", "0")
    said = one_line(capfd, model, "--out", tmp_path / "a.onnx", "--method", "rk45")
    assert "rk45 is not one chain of steps" in said
    said = one_line(capfd, model, "--out", folder / "model.onnx")
    assert "was exported for other columns, species, island" in said
    assert "samples of shape (3,)" in said and "choose another file" in said
    said = one_line(capfd, model, "--out", folder / "model.pt2", "--format", "torch")
    assert "model.json belongs to model.onnx: choose another name" in said
    (tmp_path / "model.json").write_text('{"made_by": "iflow_lib 9"}')
    assert "is no earlier export" in one_line(capfd, model, "--out", tmp_path / "model.onnx")
    (tmp_path / "model.json").write_text("[1, 2]")
    assert "is no earlier export" in one_line(capfd, model, "--out", tmp_path / "model.onnx")
    (tmp_path / "b.onnx").write_text("mine")
    assert "b.onnx is there and is no earlier" in one_line(
        capfd, model, "--out", tmp_path / "b.onnx"
    )
    (tmp_path / "c.onnx").mkdir()
    assert "is a folder" in one_line(capfd, model, "--out", tmp_path / "c.onnx")
    assert files == {f: f.read_bytes() for f in folder.glob("model.*")}
    assert (tmp_path / "model.json").read_text() == "[1, 2]" and not (tmp_path / "a.onnx").exists()
    assert not list(tmp_path.glob(".*"))


class Looking(nn.Module):
    """A network whose way depends on its numbers."""

    data_shape = (2,)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, s):
        return self.layer(x) if x.sum() > 0 else x

    def config(self):
        return {}


class OddNoise(ifl.RectifiedFlow):
    """A path with noise of its own."""

    def noise(self, shape, *, generator=None, device=None, dtype=None):
        return super().noise(shape, generator=generator, device=device, dtype=dtype) + 1


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    file = tmp_path / "model.onnx"

    def refused(model, words, error=ValueError, **how):
        with pytest.raises(error, match=words) as caught:
            export(model, how.pop("file", file), **how)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    refused(ifl.FlowMap(Looking(), ifl.RectifiedFlow()), "Looking cannot be exported")
    refused(
        ifl.FlowMap(Looking(), ifl.RectifiedFlow()),
        "fixed chain of tensor",
        format="torch",
        file=tmp_path / "m.pt2",
    )
    refused(ifl.FlowMap(ifl.MLP(2), OddNoise()), "OddNoise draws noise of its own law")
    refused(nn.Linear(2, 2), "not a Linear")
    refused(mlp(), "must be one of onnx, torch", format="tflite")
    refused(ifl.TableFlow(), "nothing was fitted")
    velocity = mlp()
    velocity.learned = "velocity"
    refused(velocity, "say how many network calls")
    refining = mlp(anchor=True)
    refining.learned = "refinement"
    refused(refining, "anchor is not one chain of steps")
    monkeypatch.setattr(exports, "LARGEST", 1000)
    refused(mlp(), "2 GiB or more")
    monkeypatch.undo()
    real = onnxruntime.InferenceSession.run
    wrong = lambda *a: [x + 0.001 for x in real(*a)]  # noqa: E731
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", wrong)
    refused(mlp(), "onnxruntime differs from PyTorch in 100.0% of 'x'")
    monkeypatch.undo()
    find = exports.importlib.util.find_spec
    lacks = lambda name: None if name == "onnxscript" else find(name)  # noqa: E731
    monkeypatch.setattr(exports.importlib.util, "find_spec", lacks)
    refused(mlp(), r'onnxscript: pip install "iflow-lib\[export\]"', ImportError)


def test_the_script_tells_what_is_wrong(table, tmp_path, capsys):
    _, folder = table
    out = tmp_path / "rows.csv"

    def refused(words, *arguments, model=folder / "model.onnx"):
        assert sample_onnx.main([str(model), "--out", str(out), *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said, said

    refused("is missing", model=tmp_path / "no.onnx")
    refused("-n must be at least 1", "-n", 0)
    refused("--seed at least 0", "--seed", -1)
    header = tmp_path / "header.csv"
    header.write_text("species,island,wingspan\nAdelie,Dream,3\n")
    refused("exported for other columns: it makes species, island", "--like", header)
    other = tmp_path / "model.onnx"
    other.write_bytes((folder / "model.onnx").read_bytes())
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (tmp_path / "model.json").write_text(json.dumps(about | {"sha256": "0" * 64}))
    refused("is not the file that was written with", model=other)
    out.write_text("mine")
    refused("must be a new .csv file")
    assert out.read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_samples_and_noise_of_the_script(tmp_path, capsys):
    """Images and vectors come as an array; the noise of PFGM++ has its tails."""
    export(
        with_weights(ifl.FlowMap(ifl.MLP(4, 16, 1), ifl.PoissonFlow(aug_dim=4))),
        tmp_path / "m.onnx",
    )
    assert (
        sample_onnx.main([str(tmp_path / "m.onnx"), "-n", "7", "--out", str(tmp_path / "x.npy")])
        == 0
    )
    assert np.load(tmp_path / "x.npy").shape == (7, 4)
    _, about = sample_onnx.load(tmp_path / "m.onnx", threads=1)
    noise = sample_onnx.inputs(about, 20_000, 0)[0]["noise"]
    ours = (
        torch.cat(list(initial_noise(ifl.FlowMap(ifl.MLP(4), ifl.PoissonFlow(aug_dim=4)), 20_000)))
        * 81
        / 80
    )
    far = lambda x: float((np.abs(np.asarray(x)) > 4).mean())  # noqa: E731
    assert far(ours) > 0.01 and abs(far(noise) - far(ours)) < 0.25 * far(ours)
    knows = {**about, "classes": 3, "knows_no_class": False, "inputs": {"noise": [4], "labels": []}}
    with pytest.raises(ValueError, match="nothing without a class"):
        sample_onnx.inputs(knows, 2, 0)
    with pytest.raises(ValueError, match="no class '7': expected one of 0, 1, 2"):
        sample_onnx.inputs(knows, 2, 0, label="7")
    assert sample_onnx.inputs(knows, 2, 0, label="1")[0]["labels"].tolist() == [1, 1]
