"""What a user adds in one file of their own: a path, an objective, a data set, a network, a sampler.

Each file is written into an empty folder, away from the package. It is run through ``fit``, ``sample``,
``save_pretrained``, ``from_pretrained`` and ``iflow sweep``.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import iflow_lib as ifl
from iflow_lib import data, networks, paths, sampling
from iflow_runner import cli

ROOT = Path(__file__).resolve().parent.parent

#: Every file starts with this and ends with ``TRAIN``; what stands between them is the extension.
START = """
import math
from dataclasses import dataclass

import torch
from torch import nn

import iflow_lib as ifl

path, objective = ifl.RectifiedFlow(), ifl.FlowMatching()
points, how = "eight_gaussians", {"nfe": 16}


def network():
    return ifl.MLP(dim=2, hidden=64, layers=2)

"""

TRAIN = '''

def train(steps: int = 300, seed: int = 0):
    """Train, save, load and sample: the two means and deviations of samples and data."""
    torch.manual_seed(seed)
    x = ifl.data.load(points, n=4000)
    config = ifl.TrainConfig(
        steps=steps, batch_size=128, lr=3e-3, ema=0.9, seed=seed, device="cpu", progress=False
    )
    run = ifl.fit(ifl.FlowMap(network(), path), objective, x, config)
    run.model.save_pretrained("saved", **run.manifest)
    model = ifl.FlowMap.from_pretrained("saved")
    out, again = (ifl.sample(m, 1000, seed=1, **how) for m in (model, run.model))
    assert torch.equal(out.x, again.x), "what was loaded is not what was saved"
    rows = []
    for axis in range(2):
        for name, values in (("samples", out.x[:, axis]), ("data", x.x[:, axis])):
            for metric in ("mean", "std"):
                value = float(getattr(values, metric)())
                rows.append({"metric": f"{metric} of {name} {axis}", "value": value, "nfe": out.nfe})
    return rows
'''

EXTENSIONS = {
    "a_path": '''
@ifl.register_path
class Trigonometric(ifl.Path):
    """``x_t = cos(a) x_0 + sin(a) z`` with ``a = pi t / (2 t_max)``."""

    def __init__(self, t_max: float = 1.0):
        self.t_max = t_max

    def angle(self, t):
        return t * (math.pi / 2 / self.t_max)

    def alpha(self, t):
        return torch.cos(self.angle(t))

    def sigma(self, t):
        return torch.sin(self.angle(t))

    def alpha_dot(self, t):
        return -torch.sin(self.angle(t)) * (math.pi / 2 / self.t_max)

    def sigma_dot(self, t):
        return torch.cos(self.angle(t)) * (math.pi / 2 / self.t_max)

    def time(self, tau):
        return torch.atan2(tau, 1 - tau) / (math.pi / 2) * self.t_max

    def config(self):
        return {"t_max": self.t_max}

path = Trigonometric(t_max=3.0)
''',
    "an_objective": '''
@dataclass(frozen=True)
class HuberMatching(ifl.Objective):
    """Flow matching with Huber's loss."""

    delta: float = 1.0
    learns = "velocity"

    def draw(self, model, batch, generator):
        z = batch.draw_noise(model, generator)
        t = model.path.tau(model.path.sample_times(len(z), generator=generator))
        return {"x_0": batch.x_0, "z": z, "t": t.to(z)}

    def loss(self, model, x_0, z, t):
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * z
        return nn.functional.huber_loss(model(x_t, t, t), z - x_0, delta=self.delta), None

objective = HuberMatching(delta=2.0)
''',
    "a_data_set": '''
@ifl.register_dataset("two_blobs", seed_id=4711, kind="plane")
def two_blobs(n, rng):
    """Two Gaussians on the diagonal."""
    side = rng.integers(0, 2, n)
    return (2 * side[:, None] - 1) * 0.9 + 0.4 * rng.standard_normal((n, 2)), side

points = "two_blobs"
''',
    "a_network": '''
@ifl.register_network
class Plain(nn.Module):
    """Two hidden layers with dropout; t and s as they are."""

    def __init__(self, width=64, dropout=0.0):
        super().__init__()
        self.data_shape, self.width, self.dropout = (2,), width, dropout
        self.layers = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Dropout(dropout), nn.Linear(width, 2),
        )

    def forward(self, x, t, s):
        return self.layers(torch.cat([x, t[:, None], s[:, None]], dim=1))

    def config(self):
        return {"width": self.width, "dropout": self.dropout}

def network():
    return Plain(width=96, dropout=0.05)
''',
    "a_sampler": '''
@ifl.register_sampler("midpoint")
class Midpoint(ifl.Sampler):
    """The midpoint rule: the velocity in the middle of a step."""

    calls = 2

    def step(self, u, x, t, s):
        middle = (t + s) / 2
        half = x - (t - middle) * u(x, t, t)
        return x - (t - s) * u(half, middle, middle)

how = {"nfe": 16, "method": "midpoint"}
''',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; afterwards nothing of it is known any more."""
    registries = [networks.NETWORKS, paths.PATHS, sampling.SAMPLERS, data.DATASETS]
    before = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for registry, names in zip(registries, before):
        registry.clear()
        registry.update(names)
    for name in [*EXTENSIONS, "saved"]:
        sys.modules.pop(name, None)


def write(folder, name):
    file = folder / f"{name}.py"
    file.write_text(START + EXTENSIONS[name] + TRAIN, encoding="utf-8")
    importlib.invalidate_caches()
    return file


def check(rows):
    """Samples have the means and deviations of the data, each within 0.25."""
    values = {row["metric"]: float(row["value"]) for row in rows}
    assert len(values) == 8
    for axis in range(2):
        for metric in ("mean", "std"):
            samples, truth = (values[f"{metric} of {name} {axis}"] for name in ("samples", "data"))
            assert abs(samples - truth) < 0.25, (metric, axis, values)
    assert all(row["nfe"] == 16 for row in rows)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_one_file_adds(folder, name):
    """Through fit, save, load and sample; and what was saved says what it is made of."""
    write(folder, name)
    module = importlib.import_module(name)
    check(module.train())
    config = json.loads((folder / "saved" / "config.json").read_text())
    assert config["learned"] == "velocity"
    if name == "a_network":
        assert config["network"] == {
            "name": "Plain",
            "module": "a_network",
            "arguments": {"width": 96, "dropout": 0.05},
        }
    if name == "a_path":
        assert config["path"]["arguments"] == {"t_max": 3.0}
        t = torch.linspace(0, 3, 31, dtype=torch.float64)
        torch.testing.assert_close(module.path.time(module.path.tau(t)), t)
    if name == "an_objective":
        assert config["info"]["objective"] == {"name": "HuberMatching", "delta": 2.0}
    if name == "a_data_set":
        assert config["info"]["data"]["name"] == "two_blobs"


@pytest.mark.parametrize("name", EXTENSIONS)
def test_one_file_on_the_command_line(folder, name, capsys):
    write(folder, name)
    Path("sweep.toml").write_text(
        f'run = "{name}:train"\n[parameters]\nsteps = 300\n[grid]\nseed = [3]\n'
    )
    with pytest.raises(SystemExit) as done:
        cli.main(["sweep", "sweep.toml", "--workers", "0", "--out", "out"])
    said = capsys.readouterr()
    assert done.value.code == 0 and "1 of 1 runs are done, 0 failed" in said.out, said
    check(pd.read_csv("out/results.csv").to_dict("records"))


def test_a_new_process_has_to_import_it_first(folder):
    """A process that knows nothing of the file says so in one line; one that imports it loads the model."""
    write(folder, "a_network")
    importlib.import_module("a_network").train(steps=20)
    load = "import iflow_lib as ifl; print(ifl.FlowMap.from_pretrained('saved').net.config())"

    def python(code):
        environment = {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )

    alone, together = python(load), python(f"import a_network; {load}")
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1] == (
        "ValueError: saved: unknown network 'Plain': import the module that registers it first, "
        "a_network; known are MLP, Transformer, UNet, UNet1d"
    )
    assert together.stdout == "{'width': 96, 'dropout': 0.05}\n", together.stderr


def test_public_names():
    """Whatever a file of one's own needs is public, and the list is complete and sorted."""
    needed = {
        "FlowMap", "Objective", "Path", "Sampler", "TensorData", "fit", "pick_device", "register_dataset",
        "register_network", "register_path", "register_sampler", "sample",
    }  # fmt: skip
    assert needed <= set(ifl.__all__)
    assert all(hasattr(ifl, name) for name in ifl.__all__)
    assert ifl.__all__ == sorted(ifl.__all__, key=lambda n: (n.upper() != n, n[0].islower(), n))
    shown = {name for name, value in vars(ifl).items() if not name.startswith("_")}
    hidden = shown - set(ifl.__all__)
    modules = {"export", "hub", "io", "model", "pretrained", "registry", "scaling", "utils"}
    assert hidden <= modules | {"Any", "TYPE_CHECKING"}, hidden
