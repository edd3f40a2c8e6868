"""Models on disk: what is loaded is what was saved, and anything damaged or half-written is refused in one line."""

import copy
import json
import math
import os
from pathlib import Path as FilePath

import pytest
import torch
from exact import one_line, randomise
from torch import nn

from iflow_lib.io import sha256, write_atomic
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, NETWORKS, UNet, register_network
from iflow_lib.paths import (
    PATHS,
    PoissonFlow,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    register_path,
)
from iflow_lib.pretrained import config_digest, learned_by, read_config
from iflow_lib.sampling import sample
from iflow_lib.scaling import Standardization

SHIPPED = sorted(
    (FilePath(__file__).parent.parent / "results" / "reference" / "checkpoints").iterdir()
)

NETS = [
    lambda: MLP(dim=3, hidden=16, layers=2),
    lambda: MLP(dim=3, hidden=8, layers=1, anchor=True),
    lambda: UNet(channels=3, size=16, width=8, blocks=1),
    lambda: UNet(channels=1, size=(8, 12), width=8, blocks=1),
]


def model(seed=0):
    return FlowMap(randomise(NETS[0](), seed), PoissonFlow(aug_dim=8))


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def rewrite(folder, change):
    """Change a configuration, its own digest with it."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    config["config_sha256"] = config_digest(config)
    file.write_text(json.dumps(config))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    model().save_pretrained(folder, card="# A card\n", steps=5)
    return folder


@pytest.mark.parametrize("build", NETS, ids=["MLP", "MLP-anchor", "UNet", "UNet-8x12"])
@pytest.mark.parametrize(
    "path",
    [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8), VariancePreserving(0.2)],
    ids=repr,
)
def test_round_trip(build, path, tmp_path):
    first = FlowMap(randomise(build()), path)
    first.save_pretrained(tmp_path / "a" / "b")
    twin = FlowMap.from_pretrained(tmp_path / "a" / "b")
    assert twin.path == path and type(twin.net) is type(first.net) and not twin.training
    assert list(first.state_dict()) == list(twin.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), twin.state_dict().values())
    )
    if not first.net.anchor:
        assert torch.equal(sample(first, 9, 2).x, sample(twin, 9, 2).x)


def test_files(saved):
    assert set(files(saved)) == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == 2 and config["info"] == {"steps": 5}
    assert config["path"] == {
        "name": "PoissonFlow",
        "module": "iflow_lib.paths",
        "arguments": {"aug_dim": 8},
    }
    assert config["network"] == {
        "name": "MLP",
        "module": "iflow_lib.networks",
        "arguments": {
            "dim": 3,
            "hidden": 16,
            "layers": 2,
            "anchor": False,
            "classes": 0,
            "features": 0,
            "frequencies": 2,
            "gap_frequencies": 2,
        },
    }
    assert config["learned"] is None and config["scaling"] is None
    assert config == read_config(saved)
    assert config["sha256"] == sha256((saved / "model.safetensors").read_bytes())
    assert (saved / "README.md").read_text() == "# A card\n"


def test_half_precision(tmp_path):
    first = model()
    first.save_pretrained(tmp_path / "half", dtype=torch.float16)
    first.save_pretrained(tmp_path / "full")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.75 * sizes[1]
    twin = FlowMap.from_pretrained(tmp_path / "half")
    for a, b in zip(first.parameters(), twin.parameters()):
        assert b.dtype == torch.float32 and torch.equal(a.half().float(), b)
    error = (sample(first, 50).x - sample(twin, 50).x).abs().max()
    assert 0 < float(error) < 0.02


def test_saving_does_not_change_the_model(tmp_path):
    first = model().train()
    before = [p.clone() for p in first.parameters()]
    first.save_pretrained(tmp_path, dtype=torch.float16)
    assert first.training and all(
        torch.equal(a, b) and b.dtype == a.dtype for a, b in zip(before, first.parameters())
    )


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("where", [0, 8, 200, -1])
def test_one_wrong_byte_in_the_weights(saved, where):
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert str(file) in one_line(error) and "damaged" in str(error.value)


def test_cut_weights(saved):
    file = saved / "model.safetensors"
    for content in (b"", file.read_bytes()[:-1]):
        file.write_bytes(content)
        with pytest.raises(ValueError) as error:
            FlowMap.from_pretrained(saved)
        assert str(file) in one_line(error)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        FlowMap.from_pretrained(saved)
    assert name in one_line(error) and str(saved) in str(error.value)


def test_what_is_no_folder():
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(None)
    assert "the folder of a model must be a path, got None" in one_line(error)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        FlowMap.from_pretrained(tmp_path / "nowhere")
    assert "nowhere" in one_line(error) and "train it" not in one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"format": 1}',
        '{"format": 1, "network": "MLP"}',
        '{"format": 2, "network": {"name": "MLP"}, "path": {"name": "R"}, "sha256": ""}',
        '{"format": 3, "network": {"name": "MLP"}, "path": {"name": "R"}, "sha256": ""}',
    ],
)
def test_damaged_config(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert "config.json" in one_line(error) and str(saved) in str(error.value)


def test_config_of_random_bytes(saved):
    (saved / "config.json").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert "config.json" in one_line(error) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "part, change, words",
    [
        ("network", {"depth": 3}, "MLP does not take"),
        ("path", {"beta": 3}, "PoissonFlow does not take"),
        ("network", {"hidden": 8}, "do not fit the network"),
        ("network", {"layers": 3}, "do not fit the network"),
        ("network", {"hidden": -1}, "hidden must be a whole number of at least 1"),
        ("path", {"aug_dim": -1}, "aug_dim must be a positive number"),
        ("path", {"aug_dim": "x"}, "PoissonFlow"),
        ("network", {"hidden": "x"}, "MLP"),
        ("network", {"hidden": 1.5}, "MLP"),
    ],
)
def test_config_that_names_something_else(saved, part, change, words):
    """Written so by another version: its own digest fits."""
    rewrite(saved, lambda config: config[part]["arguments"].update(change))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert words in one_line(error) and str(saved) in str(error.value)


def test_a_config_from_before_octaves_were_an_argument(tmp_path):
    """It names none, and is a network with four of each time and none of x, as all had then."""
    saved = tmp_path / "model"
    net = MLP(dim=2, hidden=16, layers=2, features=0, frequencies=4)
    FlowMap(randomise(net), RectifiedFlow()).save_pretrained(saved)
    now = FlowMap.from_pretrained(saved)

    def forget(config):
        for name, value in (("features", 0), ("frequencies", 4), ("gap_frequencies", 4)):
            assert config["network"]["arguments"].pop(name) == value

    rewrite(saved, forget)
    then = FlowMap.from_pretrained(saved)
    assert then.net.config() == now.net.config() and torch.equal(
        sample(then, 9).x, sample(now, 9).x
    )


def test_a_u_net_from_before_its_octaves_were_an_argument(tmp_path):
    """It had six of t; and others are saved."""
    for octaves in (6, 3):
        folder = tmp_path / str(octaves)
        net = randomise(UNet(size=8, width=8, blocks=1, frequencies=octaves))
        first = FlowMap(net, RectifiedFlow())
        first.save_pretrained(folder)
        if octaves == 6:
            rewrite(folder, lambda config: config["network"]["arguments"].pop("frequencies"))
        again = FlowMap.from_pretrained(folder)
        assert again.net.config() == net.config()
        assert torch.equal(sample(again, 3).x, sample(first, 3).x)


@pytest.mark.parametrize("options", [{"frequencies": 2}, {"frequencies": 3, "gap_frequencies": 1}])
def test_octaves_are_saved(options, tmp_path):
    first = FlowMap(randomise(MLP(dim=3, hidden=8, layers=1, **options)), RectifiedFlow())
    first.save_pretrained(tmp_path)
    twin = FlowMap.from_pretrained(tmp_path)
    assert options.items() <= twin.net.config().items()
    assert torch.equal(sample(first, 9).x, sample(twin, 9).x)


@pytest.mark.parametrize(
    "part, name, words",
    [
        ("network", "Diffuser", "unknown network 'Diffuser': import the module that registers it"),
        ("path", "Loop", "unknown path 'Loop': import the module that registers it first"),
    ],
)
def test_a_name_that_is_not_registered(saved, part, name, words):
    rewrite(saved, lambda config: config[part].update(name=name, module="my_plant.parts"))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert words in one_line(error) and "my_plant.parts" in str(error.value)


@pytest.mark.parametrize(
    "old, new", [('"aug_dim": 8', '"aug_dim": 9'), ('"steps": 5', '"steps": 50')]
)
def test_config_changed_by_hand(saved, old, new):
    file = saved / "config.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match="config.json is damaged.*changed after it was written"):
        FlowMap.from_pretrained(saved)


def test_weights_that_are_not_safetensors(saved):
    (saved / "model.safetensors").write_bytes(b"not a safetensors file")
    rewrite(saved, lambda config: config.update(sha256=sha256(b"not a safetensors file")))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert str(saved) in one_line(error)


# ---------------------------------------------------------------- writing


def test_folder_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    for folder in (blocker, blocker / "model"):
        with pytest.raises(OSError) as error:
            model().save_pretrained(folder)
        assert "cannot write" in one_line(error) and str(folder) in str(error.value)
    assert files(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_interrupted_write_leaves_the_old_model(saved, call, failure, monkeypatch):
    """Whichever of the files it strikes, before any is put in place: the old model loads as before."""
    before, calls, original = files(saved), [0], os.fsync

    def fail(*arguments):
        calls[0] += 1
        if calls[0] == call:
            raise failure
        return original(*arguments)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((OSError, KeyboardInterrupt)) as error:
        model(seed=1).save_pretrained(saved, card="# New\n")
    if isinstance(failure, OSError):
        assert "No space left" in one_line(error) and str(saved) in str(error.value)
    assert files(saved) == before


@pytest.mark.parametrize(
    "failure", [OSError(13, "Permission denied"), KeyboardInterrupt()], ids=repr
)
def test_rename_that_fails_leaves_the_old_model(saved, failure, monkeypatch):
    before = files(saved)

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        model(seed=1).save_pretrained(saved, card="# New\n")
    assert files(saved) == before


def test_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        model().save_pretrained(tmp_path)
    assert files(tmp_path) == {}


def test_nothing_is_written_when_the_model_cannot_be_saved(tmp_path):
    for options, words in (
        (dict(steps=torch.ones(1)), "what is kept beside the model must be JSON values"),
        (dict(dtype="float16"), "dtype must be a type of floats such as torch.float16"),
        (dict(dtype=torch.int8), "dtype must be a type of floats"),
    ):
        with pytest.raises(ValueError) as error:
            model().save_pretrained(tmp_path / "a", **options)
        assert words in one_line(error)
    with pytest.raises(ValueError) as error:
        FlowMap(Stranger(), RectifiedFlow()).save_pretrained(tmp_path / "a")
    assert (
        "the network Stranger cannot be saved: decorate the class with @ifl.register_network and "
        "give it config()" in one_line(error)
    )
    with pytest.raises(ValueError) as error:
        FlowMap(MLP(dim=3), StrangePath()).save_pretrained(tmp_path / "a")
    assert "the path StrangePath cannot be saved: decorate the class with @ifl.register_path" in (
        one_line(error)
    )
    assert not (tmp_path / "a").exists()


def test_the_device_must_be_there(saved):
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved, device="cuda:99")
    assert "not available" in one_line(error)
    assert FlowMap.from_pretrained(saved, device=torch.device("cpu")).data_shape == (3,)


def test_write_atomic(tmp_path):
    file = tmp_path / "new" / "notes.txt"
    for content in ("é\n", b"\x00\xff", ""):
        write_atomic(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in file.parent.iterdir()] == ["notes.txt"]
    umask = os.umask(0)
    os.umask(umask)
    if os.name == "posix":
        assert (
            file.stat().st_mode & 0o777 == 0o666 & ~umask
        )  # readable by others, as any file would be


# ---------------------------------------------------------------- what a model learned, and its scale


@pytest.mark.parametrize("learned", [None, "velocity", "jump", "jump_to_data", "refinement"])
def test_what_it_learned_is_kept(tmp_path, learned):
    first = model()
    first.learned = learned
    first.save_pretrained(tmp_path)
    assert FlowMap.from_pretrained(tmp_path).learned == learned


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)], ids=str)
def test_the_scale_is_kept(tmp_path, shape):
    first = model() if shape == (3,) else FlowMap(randomise(NETS[2]()), RectifiedFlow())
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, *shape, generator=generator)
    first.scaling = Standardization(50 * mean, std.abs() / 3)
    first.save_pretrained(tmp_path)
    twin = FlowMap.from_pretrained(tmp_path)
    assert torch.equal(twin.scaling.mean, 50 * mean) and torch.equal(
        twin.scaling.std, std.abs() / 3
    )
    assert torch.equal(sample(first, 5).x, sample(twin, 5).x)
    assert float(sample(twin, 5).x.std()) > 5
    rewrite(tmp_path, lambda config: config["scaling"].update(std=[0.0]))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(tmp_path)
    assert str(tmp_path) in one_line(error) and "mean and std" in str(error.value)


LEARNED = {
    "velocity": "velocity",
    "integral": "jump",
    "integral_self": "jump",
    "additivity": "jump",
    "consistency": "jump_to_data",
    "x0_none": "jump_to_data",
    "x0_shared": "refinement",
    "x0_per_example": "refinement",
    "x0_ground_truth": "refinement",
    "x0_self": "refinement",
}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_folders_of_earlier_versions(folder, tmp_path):
    """They load, say what they learned, and are the same model when they are saved again."""
    first, config = FlowMap.from_pretrained(folder), read_config(folder)
    kind = max((k for k in LEARNED if folder.name.endswith(f"_{k}")), key=len)
    assert first.learned == LEARNED[kind] == config["learned"] and first.scaling is None
    arguments = config["network"]["arguments"]
    assert arguments.items() <= first.net.config().items() and "name" not in arguments
    assert config["info"]["system"] and config["info"]["manifest"]
    first.save_pretrained(tmp_path, dtype=torch.float16, **config["info"])
    twin = FlowMap.from_pretrained(tmp_path)
    assert twin.path == first.path and twin.learned == first.learned
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), twin.parameters()))
    weights = "model.safetensors"
    assert (tmp_path / weights).read_bytes() == (folder / weights).read_bytes()


def test_all_of_them_are_here():
    assert len(SHIPPED) == 16


def test_objectives_of_manifests():
    for objective, learned in (
        ({}, None),
        ({"name": "Mine"}, None),
        ({"name": "FlowMatching"}, "velocity"),
        ({"name": "IntegralIdentity", "teacher": {"network": "UNet"}}, "jump"),
        ({"name": "FlowMapDistillation"}, "jump"),
        ({"name": "TerminalVelocity"}, "jump"),
        ({"name": "Distillation"}, "jump_to_data"),
        ({"name": "X0Regression"}, "jump_to_data"),
    ):
        assert learned_by(objective) == learned


# ---------------------------------------------------------------- networks and paths of one's own


class Stranger(nn.Module):
    data_shape = (3,)

    def forward(self, x, t, s):
        return x


class StrangePath(RectifiedFlow):
    pass


@pytest.fixture
def registries():
    before = dict(NETWORKS), dict(PATHS)
    yield
    for known, names in zip((NETWORKS, PATHS), before):
        known.clear()
        known.update(names)


class Linear(nn.Module):
    """A network of one's own, with every kind of JSON value in its configuration, "name" among them."""

    def __init__(self, name="plain", width=8, sizes=(1, 2), options=None, rate=math.nan, on=True):
        super().__init__()
        self.data_shape = (3,)
        self.given = dict(name=name, width=width, sizes=sizes, options=options, rate=rate, on=on)
        self.first, self.norm = nn.Linear(5, width), nn.BatchNorm1d(width)
        self.second = nn.Linear(width, 3)
        self.second_again = self.second  # tied weights

    def forward(self, x, t, s):
        h = self.norm(self.first(torch.cat([x, t[:, None], s[:, None]], dim=1)))
        return self.second(h) + self.second_again(h)

    def config(self):
        return self.given


class Power(RectifiedFlow):
    """The rectified path with another clock, t -> t^power."""

    def __init__(self, power=2):
        self.power = power

    def alpha(self, t):
        return 1 - t**self.power

    def sigma(self, t):
        return t**self.power

    def alpha_dot(self, t):
        return -self.sigma_dot(t)

    def sigma_dot(self, t):
        return self.power * t ** (self.power - 1)

    def tau(self, t):
        return t**self.power

    def time(self, tau):
        return tau ** (1 / self.power)

    def config(self):
        return {"power": self.power}


def test_a_model_of_one_s_own(tmp_path, registries):
    register_network(Linear)
    register_path(Power)
    net = Linear("a name", 16, (3, 4), {"deep": [1, None, {"x": "y"}]}, 0.5, False)
    first = FlowMap(net, Power(3))
    first(torch.randn(50, 3), torch.rand(50), torch.zeros(50))  # fills the statistics of the norm
    assert int(net.norm.num_batches_tracked) == 1
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # saving draws no random numbers
    twin = FlowMap.from_pretrained(tmp_path)
    assert type(twin.net) is Linear and twin.path == Power(3)
    assert twin.net.given == {**net.given, "sizes": [3, 4]}  # as JSON keeps a tuple
    assert twin.net.norm.num_batches_tracked.dtype == torch.int64
    for a, b in zip(first.state_dict().values(), twin.state_dict().values()):
        assert torch.equal(a, b)
    assert torch.equal(sample(first, 7, 2).x, sample(twin, 7, 2).x)
    FlowMap(Linear(), Power(3)).save_pretrained(tmp_path)  # its rate is NaN, which JSON keeps
    FlowMap.from_pretrained(tmp_path)
    NETWORKS.pop("Linear")
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(tmp_path)
    assert "unknown network 'Linear': import the module that registers it first" in one_line(error)
    assert Linear.__module__ in str(error.value)
    register_network(Linear)
    PATHS.pop("Power")
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(tmp_path)
    assert "unknown path 'Power': import the module that registers it first" in one_line(error)


def test_a_copy_and_a_cell_that_is_run_again(tmp_path, registries):
    """The class is another object then, under the same name."""
    register_network(Linear)
    first = FlowMap(Linear(), RectifiedFlow())
    again = type("Linear", (Linear,), {"__module__": Linear.__module__})
    register_network(again)
    copy.deepcopy(first).save_pretrained(tmp_path)
    assert type(FlowMap.from_pretrained(tmp_path).net) is again


@pytest.mark.parametrize(
    "config, words",
    [
        ({"width": 8}, "config() of the network Linear leaves out name, sizes, options, rate, on"),
        (
            {**Linear().given, "width": 8},
            "the weights do not fit the network that config() of the network describes",
        ),
        ({**Linear().given, "depth": 3}, "Linear does not take the arguments"),
        (
            {"width": torch.tensor(16)},
            "must be a dict of JSON values: JSON has no form for a Tensor",
        ),
        ([16], "must be a dict of JSON values: it is a list"),
        (None, "must be a dict of JSON values: it is a NoneType"),
    ],
    ids=str,
)
def test_a_config_that_does_not_build_the_network(tmp_path, registries, config, words):
    """It is refused when it is saved, not when it is loaded and the weights are all there is."""
    register_network(Linear)
    first = FlowMap(Linear(width=16), RectifiedFlow())
    first.net.config = lambda: config
    with pytest.raises(ValueError) as error:
        first.save_pretrained(tmp_path / "a")
    assert words in one_line(error) and not (tmp_path / "a").exists()


def test_a_config_that_gives_other_arguments_back(tmp_path, registries):
    @register_path
    class Rounded(RectifiedFlow):
        def __init__(self, power):
            self.power = round(power)

        def config(self):
            return {"power": self.power + 1}

    with pytest.raises(ValueError) as error:
        FlowMap(MLP(dim=3), Rounded(1.5)).save_pretrained(tmp_path / "a")
    assert "config() of the path Rounded gives power=4 for 3" in one_line(error)
    assert not (tmp_path / "a").exists()


def test_a_state_that_is_no_tensor(tmp_path, registries):
    @register_network
    class Extra(Stranger):
        def config(self):
            return {}

        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError) as error:
        FlowMap(Extra(), RectifiedFlow()).save_pretrained(tmp_path / "a")
    assert "the state of Extra holds _extra_state, a dict: only tensors can be saved" in (
        one_line(error)
    )
