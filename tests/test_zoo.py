"""Systems have one setup and one name each; shipped models are loaded, trained again, and measured."""

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import iflow_lib as ifl
from experiments import common, models
from iflow_lib import zoo
from iflow_lib.objectives import FlowMatching

CHECKPOINTS = Path(__file__).resolve().parent.parent / "results" / "reference" / "checkpoints"


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# ---------------------------------------------------------------- systems


@pytest.mark.parametrize(
    "name, path, kind, data",
    [
        ("ve_integral", "ve", "integral", "fashion_mnist"),
        ("rectified_x0_per_example", "rectified", "x0_per_example", "fashion_mnist"),
        ("emoji_rectified_integral_self", "rectified", "integral_self", "emoji"),
        ("eight_gaussians_pfgmpp_velocity", "pfgmpp", "velocity", "eight_gaussians"),
    ],
)
def test_a_system_and_its_name(name, path, kind, data):
    system = zoo.System.parse(name)
    assert system == zoo.System(path, kind, data) and system.name == name
    assert zoo.System.parse(system) is system
    with pytest.raises(AttributeError):
        system.path = "ve"


def test_every_system_is_named_unlike_any_other():
    sets = (*ifl.data.PLANE, *zoo.IMAGE_SETS)
    systems = [zoo.System(p, k, d) for p in zoo.PATH_NAMES for k in zoo.KINDS for d in sets]
    assert [zoo.System.parse(system.name) for system in systems] == systems
    assert len({system.name for system in systems}) == len(systems)


@pytest.mark.parametrize(
    "name, words",
    [
        ("ve_integrel", "unknown kind 'integrel': expected one of integral, velocity"),
        ("vp_integral", "unknown path 'vp': expected one of rectified, ve, pfgmpp"),
        ("", "unknown path ''"),
        ("mnist_ve_integral", "unknown path 'mnist'"),
        (7, "7 is not a system"),
    ],
)
def test_a_name_that_is_none(name, words):
    with pytest.raises(ValueError) as error:
        zoo.System.parse(name)
    assert words in one_line(error) and "eight_gaussians_ve_integral" in str(error.value)


def test_a_system_on_unknown_data():
    with pytest.raises(ValueError) as error:
        zoo.System("ve", "integral", "cifar")
    assert "unknown data 'cifar': expected one of eight_gaussians" in one_line(error)


@pytest.mark.parametrize(
    "data, shape", [("spiral", (2,)), ("fashion_mnist", (1, 28, 28)), ("emoji", (3, 32, 32))]
)
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_a_model_is_fresh_and_fits_its_objective(kind, data, shape):
    """The same seed gives the same weights, and torch's own numbers stay as they were."""
    system = zoo.System("pfgmpp", kind, data)
    before = torch.get_rng_state()
    first, again, other = system.model(3), system.model(3), system.model(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.data_shape == shape and first.path.aug_dim == (8 if data == "spiral" else 128)
    weights = [torch.cat([w.flatten() for w in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    x = torch.randn(4, *shape)
    objective = system.objective()
    objective.prepare(first, ifl.data.TensorData(x))
    loss = objective(first, ifl.Batch(x, index=torch.arange(4)), torch.Generator())
    assert math.isfinite(float(loss.detach())) and objective is not system.objective()


def test_networks_can_be_changed():
    plane, images = (zoo.System.parse(f"{p}ve_velocity") for p in ("spiral_", ""))
    assert plane.model(hidden=32).parameter_count < plane.model().parameter_count / 5
    assert images.model(width=8).parameter_count < images.model().parameter_count / 5


def test_only_an_integral_has_a_teacher():
    teacher = zoo.pretrained("ve_velocity", CHECKPOINTS)
    with pytest.raises(ValueError) as error:
        zoo.System.parse("ve_additivity").objective(teacher)
    assert "only an integral" in one_line(error)
    with pytest.raises(ValueError) as error:
        zoo.finish("spiral_ve_integral", teacher, teacher)
    assert "only integrals of images" in one_line(error)


# ---------------------------------------------------------------- training and measuring


@pytest.mark.parametrize("kind", ["integral_self", "x0_ground_truth"])
def test_a_system_is_trained_and_measured(kind):
    name = f"spiral_ve_{kind}"
    run = zoo.train(name, seed=1, steps=4, device="cpu", lr=1e-3)
    assert run.manifest["config"]["lr"] == 1e-3 and run.manifest["config"]["batch_size"] == 512
    rows = zoo.evaluate(run.model, name, run.manifest, nfes=(1, 2), draws=2, n=100)
    assert {(row["method"], row["nfe"]) for row in rows} == set(
        zoo.System.parse(name).methods((1, 2))
    )
    sizes = {"off_support": 200}
    assert all(row["n_samples"] == sizes.get(row["metric"], 100) for row in rows)
    assert {row["seed"] for row in rows} == {1}
    assert {row["step"] for row in rows} == {4} and all(row["value"] >= 0 for row in rows)
    refined = kind.startswith("x0_")
    further = {"spread", "copy"} if refined else set()
    assert {row["metric"] for row in rows} == {"w2", "off_support"} | further
    assert {row["anchor"] for row in rows} == {"ground_truth" if refined else "self"}


def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """With a folder; and ends as one that was not."""
    whole = zoo.train("spiral_ve_velocity", steps=6, device="cpu").model
    own, seen = FlowMatching.loss, []

    def loss(self, *given, **named):
        seen.append(len(seen))
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return own(self, *given, **named)

    monkeypatch.setattr(FlowMatching, "loss", loss)
    runs = [
        zoo.train("spiral_ve_velocity", steps=6, device="cpu", out_dir=tmp_path) for _ in range(2)
    ]
    assert [run.manifest["interrupted"] for run in runs] == [True, False] and len(seen) == 6
    ours, theirs = runs[1].model.state_dict().values(), whole.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


class Exact(torch.nn.Module):
    """The exact velocity of eight Gaussians on a path."""

    data_shape = (2,)

    def __init__(self, path):
        super().__init__()
        self.flow = ifl.analytic.MixtureFlow(path, *ifl.data.modes("eight_gaussians"))
        self.one = torch.nn.Parameter(torch.ones((), dtype=torch.float64))  # says float64

    def forward(self, x, t, s):
        x_path, time = self.flow.path.from_line(x, t)
        x_0, z = self.flow.ends(x=x_path, t=time)
        return (z - x_0).to(x)


@pytest.mark.parametrize("path", ["rectified", "ve", "pfgmpp"])
def test_what_is_measured_of_the_exact_flow(path, monkeypatch):
    """It ends where it should, on the support, and more calls bring it nearer; a step of Euler is the mean, far from all."""
    monkeypatch.setitem(zoo.EXACT_POINTS, path, 100)
    zoo._exact_ends_of.cache_clear()
    system = zoo.System(path, "velocity", "eight_gaussians")
    manifest = {"config": {"seed": 0}, "steps_done": 0}
    model = ifl.FlowMap(Exact(system.make_path()), system.make_path())
    calls = (1, 64) if path != "pfgmpp" else (1, 32)
    rows = zoo.evaluate(model, system, manifest, nfes=calls, draws=1, n=200)
    zoo._exact_ends_of.cache_clear()
    found = {(r["metric"], r["method"], r["nfe"]): r for r in rows}
    assert {r["n_samples"] for r in rows if r["metric"] == "rms_to_exact"} == {100}
    value = {key: row["value"] for key, row in found.items()}
    many = calls[1]
    # one step ends at the mean, whose distance from the ends is their spread
    assert value["rms_to_exact", "euler", 1] == pytest.approx(2.0**0.5, rel=0.1)
    assert value["off_support", "euler", 1] == 1
    assert value["rms_to_exact", "heun", many - 1] < 0.15 < value["rms_to_exact", "euler", 1]
    assert value["off_support", "heun", many - 1] < 0.05


def test_floors_are_on_the_draws_of_the_models(monkeypatch):
    """Of each training seed; samples that are the fresh draws of the floor are as far as it is."""
    rows = zoo.floor_rows("spiral", seeds=2, draws=2, n=100)
    w2 = [row for row in rows if row["metric"] == "w2"]
    assert [row["seed"] for row in w2] == [0] * 4 + [1] * 4
    assert all(0 < row["value"] < 1 for row in w2)
    assert {row["objective"] for row in rows} == {"data"} and {r["method"] for r in rows} == {
        "floor"
    }
    off = [row for row in rows if row["metric"] == "off_support"]
    assert [row["n_samples"] for row in off] == [200, 200] and len(rows) == 10
    assert all(row["value"] <= 0.05 for row in off)
    pairs = ifl.metrics.real_pairs("spiral", 100)

    def fresh(model, n, nfe, method, seed, *given):
        return ifl.SampleResult(pairs(seed - 1000)[0], nfe), 0.0

    monkeypatch.setattr(zoo, "timed_sample", fresh)
    system = zoo.System("ve", "consistency", "spiral")
    manifest = {"config": {"seed": 1}, "steps_done": 0}
    perfect = zoo.evaluate(system.model(), system, manifest, nfes=(1,), draws=2, n=100)
    found = {row["metric"]: row["value"] for row in perfect}
    own = [row["value"] for row in w2 if row["seed"] == 1]
    assert found["w2"] == pytest.approx((own[0] + own[3]) / 2)  # each with its own of the four
    assert found["off_support"] == off[1]["value"]


def test_jump_times():
    for path in (ifl.RectifiedFlow(), ifl.PoissonFlow(8)):
        times = zoo.jump_times(path, 2)
        assert times[0] == path.t_max and times[2] == 0
        assert path.tau(times)[1] == pytest.approx(0.3 * path.tau_max, rel=1e-3)


def test_what_is_copied_needs_the_first_anchors():
    anchors = torch.randn(500, 2)
    result = ifl.SampleResult(anchors, 1, anchors[None], None)
    assert zoo.copied(result) == pytest.approx(1)
    with pytest.raises(ValueError, match="sample with trajectory=True"):
        zoo.copied(ifl.SampleResult(anchors, 1, None, None))


# ---------------------------------------------------------------- shipped models


def test_the_shipped_models_are_listed(tmp_path):
    assert zoo.shipped(CHECKPOINTS) == sorted([*common.IMAGE_MODELS, *common.PLANE_MODELS])
    assert zoo.shipped(tmp_path) == [] == zoo.shipped(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as error:
        zoo.pretrained("spiral_ve_integral", CHECKPOINTS)
    assert "(there: eight_gaussians_rectified_additivity, " in one_line(error)


@pytest.mark.parametrize("name", [*common.IMAGE_MODELS, *common.PLANE_MODELS])
def test_a_shipped_model_is_what_its_name_says(name):
    system = zoo.System.parse(name)
    model, manifest = zoo.pretrained(name, CHECKPOINTS), zoo.training_manifest(name, CHECKPOINTS)
    fresh = system.model()
    assert model.data_shape == fresh.data_shape and model.path.config() == fresh.path.config()
    assert model.parameter_count == fresh.parameter_count
    assert manifest["objective"]["name"] == zoo.KINDS[system.kind]().name
    assert manifest["data"]["name"] == system.data
    assert "before" in manifest or manifest["steps_done"] in (system.steps, 12000)


def test_a_missing_model_of_ours_offers_to_train(tmp_path):
    """With a command that exists."""
    with pytest.raises(FileNotFoundError) as error:
        zoo.pretrained("ve_integral", tmp_path)
    said = one_line(error)
    assert said.endswith(f"python -m experiments.models ve_integral --folder {tmp_path.as_posix()}")
    assert "there is no model ve_integral in" in said


def test_a_model_that_is_there_is_not_trained_again(tmp_path, capsys):
    for name in ("ve_velocity", "ve_integral"):
        shutil.copytree(CHECKPOINTS / name, tmp_path / name)
    models.main(["ve_velocity", "ve_integral", "--folder", str(tmp_path)])
    assert capsys.readouterr().out == "ve_velocity is there\nve_integral is there\n"


@pytest.fixture
def no_measuring(monkeypatch):
    monkeypatch.setattr(zoo, "evaluate", lambda *given, **named: [])


SETTINGS = {"device": "cpu", "progress": False}


def test_an_image_model_is_saved_once_it_is_whole(tmp_path, monkeypatch, no_measuring):
    """Interrupted: nothing is saved, and the next call continues; then nothing but the model is left, and it is that of a
    training without a break."""
    own, seen = FlowMatching.loss, []

    def loss(self, *given, **named):
        seen.append(len(seen))
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return own(self, *given, **named)

    system, folder = zoo.System.parse("ve_velocity"), tmp_path / "models"
    with monkeypatch.context() as patch:
        patch.setattr(FlowMatching, "loss", loss)
        with pytest.raises(KeyboardInterrupt, match="3 of 5 steps"):
            models.train(system, folder, steps=5, **SETTINGS)
        assert not (folder / system.name).exists() and not models.complete(system, folder)
        model = models.train(system, folder, steps=5, **SETTINGS)
    assert len(seen) == 5 and [file.name for file in folder.iterdir()] == ["ve_velocity"]
    assert models.complete(system, folder)
    manifest = zoo.training_manifest("ve_velocity", folder)
    assert manifest["steps_done"] == 5 and str(tmp_path) not in json.dumps(manifest)
    kept = zoo.pretrained("ve_velocity", folder)
    assert all(
        torch.allclose(a, b, atol=1e-2)
        for a, b in zip(kept.state_dict().values(), model.state_dict().values())
    )
    again = zoo.train("ve_velocity", steps=5, **SETTINGS).model
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values())
    )


def test_an_integral_of_images_is_finished_once(tmp_path, monkeypatch, no_measuring):
    """From the saved weights, with matching; interrupted it continues, and the earlier model stays until it is done."""
    system = zoo.System.parse("rectified_integral")
    models.train(system, tmp_path, steps=1, second_stage=False, **SETTINGS)
    folder = tmp_path / system.name
    objective = type(system.objective(zoo.pretrained("rectified_velocity", CHECKPOINTS)))
    first, own, seen = (folder / "model.safetensors").read_bytes(), objective.loss, []

    def loss(self, *given, **named):
        seen.append(self.matching)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return own(self, *given, **named)

    monkeypatch.setattr(objective, "loss", loss)
    with pytest.raises(KeyboardInterrupt, match="2 of 3 steps"):
        models.finish(system, tmp_path, steps=3, **SETTINGS)
    assert (folder / "model.safetensors").read_bytes() == first
    assert not models.complete(system, tmp_path)
    with pytest.raises(ValueError, match="checkpoint of another run: its config"):
        # not anew: it would finish this one
        models.train(system, tmp_path, steps=300, **SETTINGS)
    model = models.train(system, tmp_path, steps=90, **SETTINGS)
    assert seen == [zoo.FINISH_MATCHING] * 3
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]
    manifest = zoo.training_manifest(system, tmp_path)
    assert (manifest["steps_done"], manifest["before"]["steps_done"]) == (4, 1)
    assert manifest["objective"]["matching"] == zoo.FINISH_MATCHING
    assert not manifest["before"]["objective"]["matching"]
    kept = zoo.pretrained(system, tmp_path)
    assert all(
        torch.allclose(a, b, atol=1e-2)
        for a, b in zip(kept.state_dict().values(), model.state_dict().values())
    )
    with pytest.raises(ValueError, match="finished already"):
        models.finish(system, tmp_path)


def test_killed_between_the_stages_the_first_is_not_lost(tmp_path, monkeypatch, no_measuring):
    system = zoo.System.parse("rectified_integral")

    def interrupted(*given, **named):
        # Not by a signal: a shell's background jobs ignore Ctrl-C, and then nothing happens.
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(models, "finish", interrupted)
        models.train(system, tmp_path, steps=1, **SETTINGS)
    first = zoo.training_manifest(system, tmp_path)
    models.train(system, tmp_path, steps=1, **SETTINGS)
    assert zoo.training_manifest(system, tmp_path)["before"] == first
    assert [file.name for file in tmp_path.iterdir()] == ["rectified_integral"]
    # Killed once more, as the second stage was saved.
    models.checkpoints_of(system, tmp_path, 2).mkdir()
    models.train(system, tmp_path, steps=1, **SETTINGS)
    assert models.complete(system, tmp_path)


def test_a_card_says_what_was_measured(tmp_path, monkeypatch):
    """Of a model in the plane, trained by the command."""
    own = zoo.evaluate
    monkeypatch.setattr(zoo, "POINTS", 100)
    monkeypatch.setattr(zoo, "evaluate", lambda *given, **named: own(*given, **named, n=100))
    name = "spiral_ve_additivity"
    models.main([name, "--folder", str(tmp_path), "--steps", "3", "--device", "cpu"])
    card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and f'pretrained("{name}", FOLDER)' in card
    assert re.search(r"^\| map \| 8 \| w2 \| \d\.\d{3} \|$", card, flags=re.M)
    assert re.search(r"floor, real against real: w2 0\.\d{4}, off_support 0\.\d{4}\)", card)
