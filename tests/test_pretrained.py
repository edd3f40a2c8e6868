"""Models on disk: what is loaded is what was saved, and anything damaged or half-written is refused in one line."""

import json
import os

import pytest
import torch
from exact import one_line, randomise

from iflow_lib import io as checkpoints
from iflow_lib import zoo as studies
from iflow_lib.io import write_atomic
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding
from iflow_lib.sampling import sample
from iflow_runner import recorder as results
from iflow_runner import report

NETS = [
    lambda: MLP(dim=3, hidden=16, layers=2),
    lambda: MLP(dim=3, hidden=8, layers=1, anchor=True),
    lambda: UNet(channels=3, size=16, width=8, blocks=1),
]


def model(seed=0):
    return FlowMap(randomise(NETS[0](), seed), PoissonFlow(aug_dim=8))


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    model().save_pretrained(folder, card="# A card\n", steps=5)
    return folder


@pytest.mark.parametrize("build", NETS, ids=["MLP", "MLP-anchor", "UNet"])
@pytest.mark.parametrize(
    "path", [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8)], ids=repr
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
    assert config["info"] == {"steps": 5} and config["path"] == {
        "name": "PoissonFlow",
        "aug_dim": 8,
    }
    assert config["network"] == {
        "name": "MLP",
        "dim": 3,
        "hidden": 16,
        "layers": 2,
        "anchor": False,
        "classes": 0,
        "features": 0,
    }
    assert config["sha256"] == checkpoints.sha256((saved / "model.safetensors").read_bytes())
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


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        FlowMap.from_pretrained(tmp_path / "nowhere")
    assert "nowhere" in one_line(error) and "train it" not in one_line(error)


def test_a_missing_model_of_ours_offers_to_train(tmp_path, monkeypatch):
    """And says how long that took, as the committed manifest has it."""

    def manifest(name):
        return json.loads(results.reference(f"{name}.manifest.json").read_text(encoding="utf-8"))

    took = report.duration(manifest("images")["systems"]["ve_integral"]["seconds"])
    with pytest.raises(FileNotFoundError) as error:
        studies.pretrained("ve_integral", tmp_path)
    folder = (tmp_path / "ve_integral").as_posix()
    assert (
        f'train it: iflow_lib.zoo.train_images("ve_integral", "{folder}"), which took {took}'
        in one_line(error)
    )
    for name in "images", "plane":  # a checkout from which the shipped models are gone
        write_atomic(
            tmp_path / "results" / "reference" / f"{name}.manifest.json", json.dumps(manifest(name))
        )
    (tmp_path / "results" / "reference" / "checkpoints").mkdir()
    monkeypatch.setattr(results, "checkout", lambda: tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        studies.pretrained("ve_integral")
    assert (
        f"restore it with git, or train it: python experiments/make_reference.py train ve_integral, which took {took} on cpu"
        in one_line(error)
    )
    took = manifest("plane")["runs"]["eight_gaussians/rectified_velocity/steps10000/seed0"][
        "seconds"
    ]
    with pytest.raises(FileNotFoundError) as error:
        FlowMap.from_pretrained(
            results.reference("checkpoints") / "eight_gaussians_rectified_velocity"
        )
    assert (
        f"experiments/make_reference.py models, which took {report.duration(took)} on"
        in one_line(error)
    )


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
        ("network", {"name": "Diffuser"}, "unknown network 'Diffuser'"),
        ("path", {"name": "Loop"}, "unknown path"),
        ("network", {"depth": 3}, "MLP does not take"),
        ("path", {"beta": 3}, "PoissonFlow does not take"),
        ("network", {"hidden": 8}, "do not fit the network"),
        ("network", {"layers": 3}, "do not fit the network"),
        ("network", {"hidden": -1}, "positive"),
        ("path", {"aug_dim": -1}, "aug_dim"),
        ("path", {"aug_dim": "x"}, "PoissonFlow"),
        ("network", {"hidden": "x"}, "MLP"),
        ("network", {"hidden": 1.5}, "MLP"),
    ],
)
def test_config_that_names_something_else(saved, part, change, words):
    """Written so by another version: its own digest fits."""
    file = saved / "config.json"
    config = json.loads(file.read_text())
    config[part].update(change)
    config["config_sha256"] = checkpoints._config_digest(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        FlowMap.from_pretrained(saved)
    assert words in one_line(error)


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
    config = json.loads((saved / "config.json").read_text())
    config["sha256"] = checkpoints.sha256(b"not a safetensors file")
    config["config_sha256"] = checkpoints._config_digest(config)
    (saved / "config.json").write_text(json.dumps(config))
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
    with pytest.raises(TypeError):
        model().save_pretrained(tmp_path / "a", steps=torch.ones(1))  # not JSON
    stranger = FlowMap(torch.nn.Linear(2, 2), RectifiedFlow())
    with pytest.raises(ValueError) as error:
        stranger.save_pretrained(tmp_path / "a")
    assert "only MLP, UNet, Transformer can be saved, not Linear" in one_line(error)
    assert not (tmp_path / "a").exists()


def test_write_atomic(tmp_path):
    file = tmp_path / "new" / "notes.txt"
    for content in ("é\n", b"\x00\xff", ""):
        checkpoints.write_atomic(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in file.parent.iterdir()] == ["notes.txt"]
    umask = os.umask(0)
    os.umask(umask)
    if os.name == "posix":
        assert (
            file.stat().st_mode & 0o777 == 0o666 & ~umask
        )  # readable by others, as any file would be
