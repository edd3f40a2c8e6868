"""Checkpoints of ``fit``: a run that was killed and continued is the run that was not, and nothing is lost on the way."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exact import one_line, randomise
from torch import nn

from iflow_lib.data import TensorData
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.objectives import (
    ConsistencyTraining,
    Distillation,
    EnergyMatching,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    TerminalVelocity,
)
from iflow_lib.objectives.x0_regression import X0Regression
from iflow_lib.paths import PoissonFlow, RectifiedFlow
from iflow_lib.training import TrainConfig, checkpoints, fit, loop
from iflow_lib.training.checkpoints import RunFolder, difference

STEPS = 150
OBJECTIVES = {
    "FlowMatching": FlowMatching,
    "IntegralIdentity": IntegralIdentity,
    "IntegralIdentity, self": lambda: IntegralIdentity(anchor="self"),
    "IntegralIdentity, gap": lambda: IntegralIdentity(gap=("sigmoid", 25, 0.005)),
    "IntegralAdditivity": IntegralAdditivity,
    "TerminalVelocity": TerminalVelocity,
    "EnergyMatching": lambda: EnergyMatching(space="random", calls=(1, 2)),
    "ConsistencyTraining": ConsistencyTraining,
    "Distillation": Distillation,
    "X0Regression": X0Regression,
    "X0Regression, shared": lambda: X0Regression(anchor="shared"),
    "X0Regression, per_example": lambda: X0Regression(anchor="per_example", blend=True),
}
linux = pytest.mark.skipif(os.name != "posix", reason="kills by signals")


class Averages(FlowMatching):
    """A user's objective that carries something from step to step, made in the first one: a running mean."""

    def __init__(self):
        object.__setattr__(self, "kept", {})

    def config(self):
        return {}

    def update_state(self, batch, drawn, loss, estimate):
        if batch.step == 0:
            self.kept["mean"] = batch.x_0.mean(0)
        self.kept["mean"] = self.kept["mean"].lerp(batch.x_0.mean(0), 0.1)

    def state(self):
        return dict(self.kept)

    def load_state(self, state):
        self.kept.update(state)


class Noisy(nn.Module):
    """A network with dropout and batch normalisation."""

    data_shape = (2,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
        )

    def forward(self, x, t, s):
        return self.layers(torch.cat([x, t[:, None], s[:, None]], 1))


OBJECTIVES |= {"Noisy": IntegralIdentity, "Averages": Averages}
#: What every run of the tests kills; the others are killed in `make test-all`.
BRIEF = ("X0Regression, per_example", "Noisy", "Averages")


def data():
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 200, 2, generator=g)
    return TensorData(x, noise=z)


def setup(name, out_dir, **options):
    """Model, objective, data and settings of a small run."""
    anchored = name in (
        "IntegralIdentity, self",
        "X0Regression, shared",
        "X0Regression, per_example",
    )
    path = RectifiedFlow() if name == "Distillation" else PoissonFlow(aug_dim=8)
    net = Noisy() if name == "Noisy" else MLP(2, 16, 2, anchored, features=0, frequencies=4)
    model = FlowMap(randomise(net), path)
    x = data() if name == "Distillation" else data().x
    config = TrainConfig(
        **{
            "steps": STEPS,
            "batch_size": 16,
            "lr": 1e-3,
            "device": "cpu",
            "progress": False,
            "log_every": 7,
            "warmup": 5,
            "ema": 0.9,
            "checkpoint_every": 4,
            "out_dir": str(out_dir),
        }
        | options
    )
    return model, OBJECTIVES[name](), x, config


def killed(name, out_dir, steps, in_save):
    """Continue the run, and after so many steps die by kill -9: in the step's first network call, or while the next
    checkpoint is written."""
    torch.set_num_threads(1)
    model, objective, x, config = setup(name, out_dir)
    done, rate, digest = [0], loop.learning_rate, checkpoints.file_sha256

    def count(*arguments):
        done[0] += 1  # called once a step
        return rate(*arguments)

    def die(*_):
        if done[0] >= steps:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.learning_rate = count
    if in_save:
        checkpoints.file_sha256 = lambda file: (
            die() if file.parent.name.endswith(".partial") else None,
            digest(file),
        )[1]
    else:
        model.net.register_forward_pre_hook(die)
    fit(model, objective, x, config, resume="auto")


def process(target, *arguments):
    """Start a function in a process of its own, which has imported the slow modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "iflow_lib.training", "pandas", "safetensors.torch", "pytest"]
    )
    started = context.Process(target=target, args=arguments)
    started.start()
    return started


def kill_and_continue(name, folder, kills):
    """A run that is killed again and again, every third time in a save, ends as one that is not."""
    model, objective, x, config = setup(name, folder / "whole")
    whole = fit(model, objective, x, config)
    rng = random.Random(name)
    for i in range(kills):
        steps, in_save = rng.randint(5, 17), i % 3 == 2
        one = process(killed, name, folder / "killed", steps, in_save)
        one.join(60)
        assert one.exitcode == -signal.SIGKILL
    again_from = int(RunFolder(folder / "killed").checkpoints()[0].name[5:])
    again, theirs, x, config = setup(name, folder / "killed")
    run = fit(again, theirs, x, config, resume="auto")
    for mine, other in ((again, model), (run.model, whole.model)):
        for (k, a), (_, b) in zip(
            mine.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert torch.equal(a, b), k
    assert (
        run.history[["step", "loss"]].equals(whole.history[["step", "loss"]])
        and len(run.history) > 20
    )
    assert 5 < again_from < STEPS
    assert run.manifest["steps_done"] == STEPS and not run.manifest["interrupted"]
    states = objective.state(), theirs.state()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert len(RunFolder(folder / "killed").checkpoints()) <= 2  # and the last two are kept
    assert not list((folder / "killed" / "checkpoints").glob(".*"))


@linux
@pytest.mark.parametrize("name", BRIEF)
def test_killed_and_continued_is_the_undisturbed_run(name, tmp_path):
    kill_and_continue(name, tmp_path, kills=3)


@linux
@pytest.mark.long
@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_ten_times_and_continued_is_the_undisturbed_run(name, tmp_path):
    kill_and_continue(name, tmp_path, kills=10)


def test_dropout_goes_on_with_its_own_random_numbers(tmp_path):
    """Whatever the caller drew in between."""
    whole = fit(*setup("Noisy", tmp_path / "whole", keep=50))
    torch.rand(5)
    early = tmp_path / "whole" / "checkpoints" / "step-00000008"
    run = fit(*setup("Noisy", tmp_path / "run"), resume=early)
    for (k, a), (_, b) in zip(
        run.model.state_dict().items(), whole.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), k


@pytest.mark.parametrize("name", ["IntegralIdentity", "X0Regression, per_example"])
def test_a_checkpoint_of_an_earlier_version_is_read(name, tmp_path):
    """One without the states of the global generators and without the first loss, with settings that objectives no longer
    have, without those that its network did not have yet, and with the estimates of the anchors in a file beside it."""
    whole = fit(*setup(name, tmp_path / "whole"))
    fit(*setup(name, tmp_path / "run", keep=50))
    for newer in RunFolder(tmp_path / "run").checkpoints()[:-3]:
        shutil.rmtree(newer)
    old = RunFolder(tmp_path / "run").checkpoints()[0]
    tensors, info, _ = RunFolder(tmp_path / "run").load(old)
    del tensors["rng.cpu"], info["first_loss"]
    for later in ("frequencies", "gap_frequencies"):
        assert info["identity"]["network"]["config"].pop(later) == 4
    estimates = tensors.pop("objective.estimates", None)
    retired = {"perceptual": 0.0, "matching": 0.0, "teacher": None}
    info["identity"]["objective"] |= (
        {"store_dtype": "float32"} if estimates is not None else retired
    )
    with RunFolder(tmp_path / "run") as folder:
        folder.save(int(old.name[5:]), tensors, info)
    if estimates is not None:
        np.save(old / "anchors.npy", estimates.numpy())
    again = fit(*setup(name, tmp_path / "run"), resume="auto")
    assert torch.equal(again.model.net.out.weight, whole.model.net.out.weight)
    assert again.history.loss.equals(whole.history.loss)
    info["identity"]["objective"] |= {"perceptual": 0.5}
    with RunFolder(tmp_path / "run") as folder:
        folder.save(STEPS, tensors, info)
    with pytest.raises(ValueError, match="another run: its objective is {'perceptual': 0.5}"):
        fit(*setup(name, tmp_path / "run"), resume="auto")


@pytest.mark.parametrize("octaves", [6, 5])
def test_a_u_net_from_before_its_octaves_were_a_setting_goes_on(octaves, tmp_path):
    """It had six of t; with another number it is another run."""
    net = UNet(size=8, width=8, blocks=1, frequencies=octaves)
    config = TrainConfig(2, batch_size=2, out_dir=str(tmp_path), device="cpu", progress=False)
    given = (FlowMap(net, RectifiedFlow()), FlowMatching(), torch.randn(4, 1, 8, 8), config)
    fit(*given)
    tensors, info, _ = RunFolder(tmp_path).load()
    assert info["identity"]["network"]["config"].pop("frequencies") == octaves
    with RunFolder(tmp_path) as folder:
        folder.save(2, tensors, info)
    if octaves == 6:
        assert fit(*given, resume="auto").manifest["steps_done"] == 2
    else:
        with pytest.raises(ValueError, match="frequencies"):
            fit(*given, resume="auto")


def test_a_checkpoint_of_another_kind_of_device_is_refused(tmp_path):
    fit(*setup("FlowMatching", tmp_path))
    tensors, info, place = RunFolder(tmp_path).load()
    with RunFolder(tmp_path) as folder:
        folder.save(STEPS, tensors | {"generator": tensors["generator"][:16].clone()}, info)
    with pytest.raises(ValueError) as error:
        fit(*setup("FlowMatching", tmp_path), resume="auto")
    assert "another kind of device than cpu" in one_line(error) and str(place) in str(error.value)


def test_a_short_run_leaves_a_checkpoint_and_tied_weights_are_kept(tmp_path):
    class Tied(nn.Module):
        data_shape = (2,)

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x, t, s):
            return self.second(self.first(torch.cat([x, t[:, None], s[:, None]], 1)))[:, :2]

    ends = []
    for steps, resume in ((1, None), (1, "auto")):
        model = FlowMap(randomise(Tied()), RectifiedFlow())
        config = TrainConfig(steps=steps, device="cpu", progress=False, out_dir=tmp_path)
        ends.append(fit(model, FlowMatching(), data().x, config, resume=resume).model)
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["step-00000001"]
    assert torch.equal(ends[0].net.first.weight, ends[1].net.first.weight)
    assert ends[1].net.first.weight is ends[1].net.second.weight


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole = fit(*setup("IntegralIdentity", tmp_path / "whole"))
    for damage in ("truncate", "flip", "no state"):
        out = tmp_path / damage
        fit(*setup("IntegralIdentity", out))
        newest, before = RunFolder(out).checkpoints()
        file = newest / ("state.json" if damage == "no state" else "state.safetensors")
        content = file.read_bytes()
        if damage == "no state":
            file.unlink()
        else:
            file.write_bytes(
                content[:-9] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1])
            )
        with pytest.warns(RuntimeWarning, match="falling back to the one before"):
            run = fit(*setup("IntegralIdentity", out), resume="auto")
        assert all(
            torch.equal(a, b)
            for a, b in zip(run.model.parameters(), whole.model.parameters(), strict=True)
        )
        for folder in RunFolder(out).checkpoints():
            (folder / "state.json").write_text("{")
        with (
            pytest.raises(ValueError, match="no checkpoint in .* is whole"),
            pytest.warns(RuntimeWarning),
        ):
            fit(*setup("IntegralIdentity", out), resume="auto")


def test_continue_from_a_given_checkpoint(tmp_path):
    whole = fit(*setup("FlowMatching", tmp_path, keep=50))
    early = tmp_path / "checkpoints" / "step-00000008"
    run = fit(*setup("FlowMatching", tmp_path, keep=50), resume=early)
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), whole.model.parameters(), strict=True)
    )
    for wrong in (tmp_path / "checkpoints" / "step-00000009", tmp_path, "Auto"):
        with pytest.raises(ValueError) as error:
            fit(*setup("FlowMatching", tmp_path, keep=50), resume=wrong)
        assert "there is no checkpoint" in one_line(error) and 'resume="auto"' in str(error.value)
    state = early / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        fit(*setup("FlowMatching", tmp_path, keep=50), resume=early)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(lr=0.5), "'lr': 0.001}, here it is {'lr': 0.5}"),
        (dict(steps=70), "'steps': 150}, here it is {'steps': 70}"),
        (dict(seed=1), "'seed'"),
    ],
)
def test_another_run_is_refused(tmp_path, change, words):
    fit(*setup("FlowMatching", tmp_path))
    with pytest.raises(ValueError) as error:
        fit(*setup("FlowMatching", tmp_path, **change), resume="auto")
    assert words in one_line(error) and "another run" in str(error.value)
    with pytest.raises(ValueError, match="another run"):  # other data
        model, objective, x, config = setup("FlowMatching", tmp_path)
        fit(model, objective, x + 1, config, resume="auto")
    with pytest.raises(ValueError, match="another run: its objective"):
        model, _, x, config = setup("FlowMatching", tmp_path)
        fit(model, IntegralIdentity(), x, config, resume="auto")


class Curved(nn.Module):
    """A network of a user; power changes what it computes and no weight."""

    data_shape = (2,)

    def __init__(self, power=1):
        super().__init__()
        self.power, self.linear = power, nn.Linear(4, 2)

    def config(self):
        return {"power": self.power}

    def forward(self, x, t, s):
        return self.linear(torch.cat([x, t[:, None], s[:, None]], 1) ** self.power)


def test_other_labels_noise_or_network_are_refused(tmp_path):
    x, labels = data().x, torch.arange(200) % 2
    config = TrainConfig(steps=1, device="cpu", progress=False, out_dir=tmp_path)

    def go_on(labels=labels, noise=x, power=1):
        model = FlowMap(randomise(Curved(power)), RectifiedFlow())
        fit(model, FlowMatching(), TensorData(x, labels, noise=noise), config, resume="auto")

    go_on()
    for other, word in (
        ({"labels": 1 - labels}, "labels"),
        ({"labels": None}, "labels"),
        ({"noise": x + 1}, "noise"),
        ({"power": 2}, "{'config': {'power': 1}}"),
    ):
        with pytest.raises(ValueError) as error:
            go_on(**other)
        assert word in one_line(error) and "the same settings, or another out_dir" in str(error)
    tensors, info, _ = RunFolder(tmp_path).load()
    for part, mark in (("data", "labels"), ("data", "noise"), ("network", "config")):
        del info["identity"][part][mark]
    with RunFolder(tmp_path) as folder:  # as earlier versions wrote it
        folder.save(1, tensors, info)
    go_on()


@pytest.mark.parametrize(
    "change",
    [{"sha256": {}}, {"sha256": []}, {"sha256": None}, {"info": {}}, {"info": []}, {"info": None}],
)
def test_a_state_without_its_parts_is_damaged(tmp_path, change):
    fit(*setup("FlowMatching", tmp_path))
    newest, before = RunFolder(tmp_path).checkpoints()
    file = newest / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.warns(RuntimeWarning, match="falling back to the one before"):
        assert RunFolder(tmp_path).load().folder == before


def test_what_a_finished_run_leaves(tmp_path):
    run = fit(*setup("FlowMatching", tmp_path))
    assert pd.read_csv(tmp_path / "history.csv").step.tolist() == run.history.step.tolist()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (
        manifest == json.loads(json.dumps(run.manifest))
        and manifest["data"]["sha256"] == TensorData(data().x).sha256
    )


def test_an_earlier_run_is_not_overwritten(tmp_path):
    fit(*setup("FlowMatching", tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="holds an earlier run"):
        fit(*setup("FlowMatching", tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_in_use_is_refused(tmp_path):
    with RunFolder(tmp_path), pytest.raises(OSError) as error:
        fit(*setup("FlowMatching", tmp_path))
    assert "in use by another process" in one_line(error)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to"):
        fit(*setup("FlowMatching", tmp_path / "file"))


def stopped(out_dir, ready):
    torch.set_num_threads(1)
    model, objective, x, config = setup("FlowMatching", out_dir, steps=100_000, checkpoint_every=0)
    model.net.register_forward_pre_hook(lambda *_: ready.set())
    run = fit(model, objective, x, config)
    os._exit(7 if run.manifest["interrupted"] and len(RunFolder(out_dir).checkpoints()) == 1 else 1)


def stopped_in_a_save(out_dir):
    torch.set_num_threads(1)
    model, objective, x, config = setup("FlowMatching", out_dir)
    digest, sent = checkpoints.file_sha256, []

    def terminate(file):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return digest(file)

    checkpoints.file_sha256 = terminate
    run = fit(model, objective, x, config)
    os._exit(7 if sent and run.manifest["interrupted"] and run.manifest["steps_done"] == 4 else 1)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(tmp_path, number):
    ready = multiprocessing.get_context("forkserver").Event()
    one = process(stopped, tmp_path, ready)
    assert ready.wait(60)
    time.sleep(0.1)
    os.kill(one.pid, number)
    one.join(60)
    assert one.exitcode == 7
    model, objective, x, config = setup("FlowMatching", tmp_path, steps=100_000)
    with RunFolder(tmp_path) as folder:
        assert folder.load()[1]["step"] > 0


def without_room(out_dir):
    """Train with room for the first checkpoints only: from then on no file may grow beyond a kilobyte."""
    import resource

    torch.set_num_threads(1)
    model, objective, x, config = setup("FlowMatching", out_dir)
    save = RunFolder.save

    def limited(folder, step, *arguments):
        if step >= 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return save(folder, step, *arguments)

    RunFolder.save = limited
    try:
        fit(model, objective, x, config)
    except OSError as error:
        text = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (Path(out_dir).parent / "error.txt").write_text(text)


@linux
def test_no_room_names_the_last_good_checkpoint(tmp_path):
    process(without_room, tmp_path / "run").join(60)
    text = (tmp_path / "error.txt").read_text()
    assert (
        "step 12" in text and "too large" in text and "step-00000008" in text and "\n" not in text
    )
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    whole = fit(*setup("FlowMatching", tmp_path / "whole"))
    run = fit(*setup("FlowMatching", tmp_path / "run"), resume="auto")  # with room again
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), whole.model.parameters(), strict=True)
    )


@linux
def test_sigterm_while_a_checkpoint_is_written(tmp_path):
    one = process(stopped_in_a_save, tmp_path / "run")
    one.join(60)
    assert one.exitcode == 7
    whole = fit(*setup("FlowMatching", tmp_path / "whole"))
    run = fit(*setup("FlowMatching", tmp_path / "run"), resume="auto")
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    model, objective, x, config = setup("FlowMatching", tmp_path)

    class Breaks(FlowMatching):
        def __call__(self, model, batch, generator=None):
            if batch.step == 10:
                with torch.no_grad():
                    model.net.out.bias.fill_(float("inf"))
            return (
                super().__call__(model, batch, generator)
                if batch.step < 10
                else sum(p.sum() * 0 for p in [model.net.hidden[0].bias])
            )

    with pytest.raises(FloatingPointError) as error:
        fit(model, Breaks(), x, config)
    assert "not finite at step 12" in one_line(error) and "step-00000008" in str(error.value)


def test_an_objective_from_before_gaps_took_the_derivative():
    """It named no gap. With one, it is another run."""
    then = {"objective": {"name": "IntegralIdentity", "power": 0.0}}
    for gap in (None, 0.02):
        now = {"objective": {"name": "IntegralIdentity", "power": 0.0, "gap": gap}}
        said = difference(then, now)
        assert said is None if gap is None else said is not None and "'gap': 0.02" in said
