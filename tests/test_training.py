"""``fit``: learns what is known in closed form, is reproducible to the bit, and refuses bad data before it starts."""

import copy
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exact import one_line, randomise
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from iflow_lib.data import TensorData, standardize
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.objectives import (
    ConsistencyTraining,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    Objective,
    TerminalVelocity,
    X0Regression,
)
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding
from iflow_lib.sampling import initial_noise, sample
from iflow_lib.training import TrainConfig, fit
from iflow_lib.training.config import learning_rate
from iflow_lib.training.distributed import Processes
from iflow_lib.utils import check_int, check_seed, pick_device

ALL = [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8)]
paths = pytest.mark.parametrize("path", ALL, ids=repr)
DATA = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


def tiny(path=ALL[0], seed=0):
    return FlowMap(randomise(MLP(dim=2, hidden=8, layers=1), seed), path)


def config(steps=12, **options):
    small = {"batch_size": 32, "device": "cpu", "progress": False, "log_every": 5}
    return TrainConfig(steps=steps, **{**small, **options})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Noisy(nn.Module):
    """A network as people write them: with dropout, batch normalisation, and weights that are tied."""

    data_shape = (2,)

    def __init__(self, drop=0.2, classes=0):
        super().__init__()
        self.norm, self.drop, self.classes = nn.BatchNorm1d(8), nn.Dropout(drop), classes
        self.start, self.middle, self.end = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.middle.weight
        self.of_class = nn.Embedding(classes + 1, 8)

    def forward(self, x, t, s, labels=None):
        x = self.norm(self.start(torch.cat([x, t[:, None], s[:, None]], 1)))
        x = x if labels is None else x + self.of_class(labels + 1)
        return self.end(self.again(self.drop(self.middle(x).relu())))


def noisy(path=ALL[0], **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FlowMap(Noisy(**options), path)


# ---------------------------------------------------------------- it learns


def jump_error(model, path, nfe, method="map"):
    """RMS distance of samples from where the exact flow map takes the same noise: N(1, 1) data, so that
    x_0 = 1 + (x - (1 - t)) / S with S^2 = (1 - t)^2 + t^2 at the start of sampling."""
    z, t = torch.cat(list(initial_noise(model, 2000, seed=7))), path.tau_max
    truth = 1 + (z - (1 - t)) / math.hypot(1 - t, t)
    return float((sample(model, 2000, nfe, method, seed=7).x - truth).square().mean().sqrt())


@pytest.fixture(scope="module")
def trained():
    """A velocity model and a jump model of N(1, 1) on each Gaussian path, 400 steps of 256 each."""
    x = 1 + torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    runs = {}
    for path in ALL[:2]:
        for objective in (FlowMatching(), IntegralIdentity()):
            torch.manual_seed(0)
            model = FlowMap(MLP(dim=1, hidden=32, layers=2), path)
            run = fit(
                model, objective, x, config(400, batch_size=256, lr=5e-3, ema=0.95, warmup=20)
            )
            runs[path.name, objective.name] = run
    return runs


@pytest.mark.parametrize("path", ALL[:2], ids=repr)
def test_training_finds_the_exact_flow_map(trained, path):
    """Data of std 1. RMS bounds: 0.5 in one jump, 0.3 in two or by many solver steps. An untrained network is off by
    1, and so is one jump of a velocity model: it gives the mean of the data. (Checked on the rectified path only: the
    training times of VE's velocity model hardly reach t_max in so short a run.)"""
    flow, jumps = (trained[path.name, name].model for name in ("FlowMatching", "IntegralIdentity"))
    untrained = FlowMap(MLP(dim=1, hidden=32, layers=2), path)
    assert jump_error(jumps, path, 1) < 0.5
    assert jump_error(jumps, path, 2) < 0.3
    assert jump_error(flow, path, 63, "heun") < 0.3
    assert jump_error(untrained, path, 1) > 0.9
    if path.name == "RectifiedFlow":
        assert jump_error(flow, path, 1) > 0.9


def test_loss_goes_down(trained):
    for run in trained.values():
        assert run.history.loss.iloc[-5:].mean() < 0.8 * run.history.loss.iloc[0]


# ---------------------------------------------------------------- the same seed, the same run


@paths
@pytest.mark.parametrize("objective", [FlowMatching(), IntegralIdentity()], ids=lambda o: o.name)
def test_same_seed_bit_for_bit(path, objective):
    runs = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):  # the global generator plays no part
        torch.manual_seed(global_seed)
        model = tiny(path)
        runs.append((weights(fit(model, objective, DATA, config(seed=seed)).model), weights(model)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_labels_and_kind_of_data_set_change_nothing():
    class Items(Dataset):
        def __len__(self):
            return len(DATA)

        def __getitem__(self, i):
            return DATA[i]

    labels = torch.arange(len(DATA))
    kinds = [
        DATA,
        DATA.double(),
        DATA.numpy(),
        TensorData(DATA, labels, "x"),
        TensorDataset(DATA, labels),
        Items(),
        DATA.tolist(),
        DataLoader(TensorDataset(DATA, labels), batch_size=7, shuffle=True),
    ]
    first, *others = [weights(fit(tiny(), FlowMatching(), data, config()).model) for data in kinds]
    assert all(torch.equal(first, other) for other in others)


def test_labels_of_a_data_set_are_used_by_a_network_with_classes():
    """Labels of (x, y) are those of a ``TensorData``: the class embeddings learn, and to the same bits."""
    labels = torch.arange(len(DATA)) % 3
    kinds = [
        TensorData(DATA, labels),
        TensorDataset(DATA, labels),
        DataLoader(TensorDataset(DATA, labels), batch_size=7),
    ]
    ends = []
    for data in kinds:
        model = noisy(classes=3)
        before = model.net.of_class.weight.detach().clone()
        fit(model, FlowMatching(), data, config())
        ends.append(weights(model))
        assert bool((model.net.of_class.weight != before).any(dim=1).all())  # -1, too: withheld
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    with pytest.raises(ValueError, match="3 classes needs data with labels 0 to 2"):
        fit(noisy(classes=3), FlowMatching(), DATA, config())


def test_a_batch_may_be_larger_than_the_data():
    run = fit(tiny(), IntegralIdentity(), DATA[:3], config(batch_size=50))
    assert run.manifest["steps_done"] == 12 and bool(torch.isfinite(weights(run.model)).all())


def test_data_far_from_unit_scale_are_said_to_be_so():
    for x, number in ((DATA * 1000, "standard deviation 932"), (50 + DATA / 100, "mean 50")):
        with pytest.warns(UserWarning, match="standardize") as said:
            fit(tiny(), FlowMatching(), x, config(1))
        ours = [str(w.message) for w in said if "standardize" in str(w.message)]
        assert len(ours) == 1 and number in ours[0] and "\n" not in ours[0]
        assert said[0].filename == __file__  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tiny(), FlowMatching(), DATA, config(1))
        fit(tiny(), FlowMatching(), standardize(DATA * 1000), config(1))


def test_a_model_knows_what_it_was_trained_for_and_the_scale_of_its_data():
    data = standardize(DATA * 7)
    for objective, learned in ((FlowMatching(), "velocity"), (IntegralIdentity(), "jump")):
        model = tiny()
        run = fit(model, objective, data, config(2))
        assert model.learned == run.model.learned == learned
        assert model.scaling is data.scaling is not None
        assert torch.equal(run.model.scaling.std, data.scaling.std)
    fit(model, Recording(), DATA, config(2))
    assert model.learned is None and model.scaling is None


def test_data_are_left_alone():
    before = DATA.clone()
    fit(tiny(), FlowMatching(), DATA, config())
    assert torch.equal(DATA, before) and not DATA.requires_grad


# ---------------------------------------------------------------- EMA, schedule, history


class Recording(Objective):
    """FlowMatching that keeps the weights it is called with."""

    def __init__(self):
        self.seen = []

    def config(self):
        return {}

    def __call__(self, model, x_0, generator=None):
        self.seen.append(weights(model).clone())
        return FlowMatching()(model, x_0, generator)


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.999])
def test_average_of_weights(ema):
    """avg <- d avg + (1 - d) w after each step, d = min(ema, (1 + k)/(10 + k)), from the network's start."""
    objective, model = Recording(), tiny()
    run = fit(model, objective, DATA, config(ema=ema))
    steps = [*objective.seen[1:], weights(model)]
    average = objective.seen[0]
    for k, w in enumerate(steps, 1):
        decay = min(ema, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * w
    torch.testing.assert_close(weights(run.model), average, rtol=1e-5, atol=1e-6)
    assert torch.equal(weights(run.model), weights(model)) == (ema == 0)
    assert not run.model.training and not any(p.requires_grad for p in run.model.parameters())
    assert len(objective.seen) == 12


def test_average_of_buffers():
    """Batch normalisation of the averaged model has the statistics that training ended with, whole numbers too.

    Without them it standardizes by those of step 0, and its samples are far off."""
    model = noisy(drop=0.0)
    run = fit(model, FlowMatching(), 3 + DATA, config(40, ema=0.9))
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(run.model.named_buffers())[name], buffer), name
    assert int(run.model.net.norm.num_batches_tracked) == 40
    assert float(run.model.net.norm.running_var.sub(1).abs().max()) > 0.1
    x, t = DATA[:100], torch.full((100,), 0.5)
    model.eval()
    both = [m.velocity(x=x, t=t).detach() for m in (model, run.model)]
    assert float((both[0] - both[1]).abs().mean()) < 0.5 * float(both[0].abs().mean())


def test_buffers_that_a_network_replaces_are_averaged_too():
    class Replaces(Noisy):
        def __init__(self):
            super().__init__(drop=0.0)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, t, s, labels=None):
            if self.training:
                self.calls = self.calls + 1
            return super().forward(x, t, s)

    model = FlowMap(Replaces(), ALL[0])
    run = fit(model, FlowMatching(), DATA, config())
    assert float(run.model.net.calls) == float(model.net.calls) >= 12


@pytest.mark.parametrize("objective", [FlowMatching(), IntegralIdentity()], ids=lambda o: o.name)
def test_dropout_draws_from_the_seed_and_leaves_the_global_generator_alone(objective):
    ends = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        model = noisy()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        fit(model, objective, DATA, config(seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_global_generator_comes_back_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(FloatingPointError):
        fit(noisy(), FlowMatching(), DATA, config(lr=1e30))
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate():
    c = TrainConfig(steps=1000, lr=0.01, warmup=100)
    assert learning_rate(c, 0) == pytest.approx(1e-4) and learning_rate(c, 49) == pytest.approx(
        5e-3
    )
    assert learning_rate(c, 99) == pytest.approx(0.01) == learning_rate(c, 100)
    assert learning_rate(c, 550) == pytest.approx(0.005) and 0 < learning_rate(c, 999) < 1e-7
    for steps in (1, 5, 10, 11, 200):  # short runs: the rise is shortened, and no step stands still
        rates = [learning_rate(TrainConfig(steps=steps, lr=0.01), k) for k in range(steps)]
        assert max(rates) == pytest.approx(0.01) and min(rates) > 0


class Named(nn.Module):
    """A network of a user, who says at which rate it learns."""

    data_shape = (2,)

    def __init__(self, **options):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, x, t, s):
        return self.linear(torch.cat([x, t[:, None], s[:, None]], 1))


@pytest.mark.parametrize(
    "net, given, rate",
    [
        (lambda: MLP(2, hidden=16), None, 0.9 / 16),
        (lambda: MLP(2, hidden=16), 0.02, 0.02),
        (lambda: UNet(size=8, width=16), None, 4e-3),
        (lambda: Named(), None, 1e-3),
        (lambda: Named(lr=0.25), None, 0.25),
        (lambda: Named(lr=np.float32(0.25)), None, 0.25),
        (lambda: Named(lr=None), None, 1e-3),
        (lambda: Named(lr="fast"), 0.02, 0.02),
    ],
)
def test_a_network_knows_its_learning_rate(net, given, rate):
    """The first step of Adam moves a weight by just that; the manifest says which it was."""
    model = FlowMap(randomise(net()), ALL[0])
    before = weights(model)
    x = torch.randn(8, *model.data_shape)
    run = fit(model, FlowMatching(), x, config(1, batch_size=8, lr=given))
    assert run.manifest["config"]["lr"] == rate
    assert float((weights(model) - before).abs().max()) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("lr", ["fast", 0, -1.0, math.nan, True, nn.Linear(2, 2)])
def test_a_network_whose_lr_is_no_rate_is_refused(lr):
    """It may mean something else, so the line says how to go on."""
    with pytest.raises(ValueError) as error:
        fit(FlowMap(Named(lr=lr), ALL[0]), FlowMatching(), torch.randn(8, 2), config(1))
    assert "lr of the network Named must be a number above 0" in one_line(error)
    assert "give TrainConfig(lr=...)" in one_line(error)


def test_history_and_manifest():
    run = fit(
        tiny(PoissonFlow(8)), IntegralIdentity(), TensorData(DATA, None, "toy"), config(12, seed=9)
    )
    assert isinstance(run.history, pd.DataFrame) and list(run.history.columns) == [
        "step",
        "loss",
        "seconds",
    ]
    assert run.history.step.tolist() == [5, 10, 12] and run.history.seconds.is_monotonic_increasing
    assert all(math.isfinite(v) for v in run.history.loss)
    m = run.manifest
    assert m["steps_done"] == 12 and m["interrupted"] is False and m["seconds"] > 0
    assert m["objective"] == {
        "name": "IntegralIdentity",
        **IntegralIdentity().suited((2,)).config(),
    }
    assert m["path"] == {"name": "PoissonFlow", "aug_dim": 8} and m["config"]["seed"] == 9
    assert (
        m["data"]["name"] == "toy"
        and m["data"]["shape"] == [300, 2]
        and "sha256" not in m["data"]  # which only a folder asks for: see test_resume
    )
    assert m["network"]["parameters"] == len(weights(run.model))


def test_history_holds_means_of_the_loss():
    losses = []

    class Logged(Recording):
        def __call__(self, model, x_0, generator=None):
            loss = FlowMatching()(model, x_0, generator)
            losses.append(float(loss.detach()))
            return loss

    history = fit(tiny(), Logged(), DATA, config(12)).history
    expected = [sum(losses[a:b]) / (b - a) for a, b in ((0, 5), (5, 10), (10, 12))]
    assert history.loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_images():
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = FlowMap(UNet(channels=1, size=8, width=8, blocks=1), RectifiedFlow())
    run = fit(model, IntegralIdentity(), x, config(4, log_every=2))
    assert (
        sample(run.model, 3).x.shape == (3, 1, 8, 8) and float(weights(run.model).abs().max()) > 0
    )


@pytest.mark.parametrize("progress", [False, True])
def test_progress(capsys, progress):
    fit(tiny(), FlowMatching(), DATA, config(progress=progress))
    out = capsys.readouterr()
    assert out.out == "" and ("FlowMatching" in out.err) == progress
    assert progress or out.err == ""


def test_the_bar_is_kept_in_the_folder_of_the_run_while_it_trains(tmp_path, monkeypatch, capsys):
    texts = []

    class Looks(Recording):
        def __call__(self, model, batch, generator=None):
            if batch.step:
                texts.append((tmp_path / "run" / "progress.txt").read_text(encoding="utf-8"))
            return super().__call__(model, batch, generator)

    monkeypatch.setattr("iflow_lib.training.progress.INTERVAL", 0.0)
    fit(tiny(), Looks(), DATA, config(log_every=1, out_dir=tmp_path / "run"))
    assert len(texts) == 11 and all("Looks" in t and "\n" not in t for t in texts)
    assert "6/12" in texts[5] and "50%" in texts[5] and "loss" in texts[5] and len(texts[5]) <= 80
    assert not (tmp_path / "run" / "progress.txt").exists() and capsys.readouterr().err == ""


def test_the_bar_is_written_at_most_twice_a_second_and_never_stops_a_run(tmp_path):
    (tmp_path / "progress.txt").mkdir()  # so that it cannot be written, nor removed
    assert fit(tiny(), FlowMatching(), DATA, config(out_dir=tmp_path)).manifest["steps_done"] == 12
    times = []

    class Watches(Recording):
        def __call__(self, model, batch, generator=None):
            file = tmp_path / "other" / "progress.txt"
            times.append(file.stat().st_mtime_ns if file.exists() else 0)
            return super().__call__(model, batch, generator)

    fit(tiny(), Watches(), DATA, config(50, out_dir=tmp_path / "other"))
    assert len(set(times[1:])) <= 3  # in about 0.1 s


def test_no_environment_variable_changes_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("IFLOW_RUN", str(tmp_path))
    run = fit(tiny(), FlowMatching(), DATA, config())
    assert not list(tmp_path.iterdir()) and run.manifest["config"]["out_dir"] == ""


# ---------------------------------------------------------------- interruption and failure


@pytest.mark.parametrize("at", [1, 5])
def test_interrupted_run_keeps_what_it_learned(at):
    class Interrupted(Recording):
        def __call__(self, model, x_0, generator=None):
            loss = super().__call__(model, x_0, generator)
            if len(self.seen) == at:
                raise KeyboardInterrupt
            return loss

    model, objective = tiny(), Interrupted()
    run = fit(model, objective, DATA, config(12, log_every=2))
    assert run.manifest["interrupted"] is True and run.manifest["steps_done"] == at - 1
    assert run.history.step.tolist() == [k for k in (2, 4) if k < at]
    assert torch.equal(weights(model), objective.seen[-1])  # the weights of the last whole step
    assert torch.equal(weights(run.model), objective.seen[0]) == (at == 1)
    assert sample(run.model, 3).x.shape == (3, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite(value):
    class Broken(Recording):
        def __call__(self, model, x_0, generator=None):
            loss = super().__call__(model, x_0, generator)
            return loss * value if len(self.seen) == 3 else loss

    objective = Broken()
    with pytest.raises(FloatingPointError) as error:
        fit(tiny(), objective, DATA, config(1000))
    assert (
        "not finite by step 3" in one_line(error)
        and "Broken" in str(error.value)
        and len(objective.seen) == 3
    )


def test_a_loss_that_runs_away_stops_the_run(tmp_path):
    """With lr 1e6 the loss of two networks reaches 1e30 without being infinite. The last good checkpoint is named, and none
    is written of weights that have run away."""
    cases = {False: ConsistencyTraining(), True: X0Regression("shared")}
    for anchor, objective in cases.items():
        model = FlowMap(randomise(MLP(dim=2, hidden=8, layers=1, anchor=anchor)), ALL[0])
        with pytest.raises(FloatingPointError) as error:
            fit(model, objective, DATA, config(2000, lr=1e6))
        text = one_line(error)
        assert "lower lr, which is 1e+06" in text and "there is no checkpoint" in text
        assert "ran away" in text or "not finite" in text

    class Late(FlowMatching):
        """Runs away in step 60, by far and at once."""

        def __call__(self, model, batch, generator=None):
            return super().__call__(model, batch, generator) * (1e9 if batch.step >= 60 else 1)

    with pytest.raises(FloatingPointError) as error:
        fit(tiny(), Late(), DATA, config(500, log_every=50, checkpoint_every=20, out_dir=tmp_path))
    text = one_line(error)
    assert "ran away, from" in text and "by step 80" in text and "step-00000060" in text
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000040",
        "step-00000060",
    ]


def test_one_step_far_out_does_not_stop_a_run():
    class Spike(Recording):
        def __call__(self, model, batch, generator=None):
            loss = super().__call__(model, batch, generator)
            return loss * 1e20 if batch.step in (0, 30) else loss

    assert fit(tiny(), Spike(), DATA, config(60, log_every=1)).manifest["steps_done"] == 60


@paths
def test_ordinary_runs_are_not_stopped(path):
    """Unweighted losses at a high rate; the largest mean stays below 100 times the first loss, the bound is 10,000."""
    image = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cases = [
        (FlowMatching(), MLP(2, 16, 2), DATA),
        (IntegralIdentity(power=0.0), MLP(2, 16, 2), DATA),
        (IntegralIdentity(power=0.0, tangent="conditional", equal_share=0.0), MLP(2, 16, 2), DATA),
        (IntegralIdentity(detail=15.0), UNet(1, 8, width=8, blocks=1), image),
        (IntegralIdentity(gap=0.02), MLP(2, 16, 2), DATA),
        (IntegralAdditivity(power=0.0), MLP(2, 16, 2), DATA),
        (TerminalVelocity(), MLP(2, 16, 2), DATA),
        (ConsistencyTraining(), MLP(2, 16, 2), DATA),
        (X0Regression("per_example", blend=True), MLP(2, 16, 2, anchor=True), DATA),
    ]
    for objective, net, data in cases:
        model = FlowMap(randomise(net), path)
        steps = 5 if data is image else 60
        run = fit(model, objective, data, config(steps, lr=1e-2, log_every=1))
        assert run.history.loss.max() < 100 * max(1, run.history.loss[0]), objective


def test_too_little_memory_is_one_line(tmp_path):
    class Full(FlowMatching):
        def __call__(self, model, batch, generator=None):
            if batch.step == 7:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2 GiB\nand more"
                )
            return super().__call__(model, batch, generator)

    for options, words in (
        ({"out_dir": tmp_path, "checkpoint_every": 3}, "checkpoints/step-00000006"),
        ({}, "there is no checkpoint, because no out_dir was given"),
    ):
        with pytest.raises(torch.OutOfMemoryError) as error:
            fit(tiny(), Full(), DATA, config(**options))
        assert "out of memory on cpu, with batch_size 32: free the device" in one_line(error)
        assert words in str(error.value)


BAD = [
    (DATA.masked_fill(torch.arange(600).reshape(300, 2) == 77, math.nan), "1 NaN or infinite"),
    (DATA * math.inf, "600 NaN or infinite"),
    ((DATA * 10).long(), "torch.int64"),
    (DATA[:, :1], "(1,)"),
    (DATA[None], "(300, 2)"),
    (DATA[:, 0], "rank 2"),
    (DATA[:0], "empty"),
    ("eight_gaussians", "str"),
    (None, "None"),
    (TensorDataset((DATA * 10).long()), "torch.int64"),
    ((DATA * 255).to(torch.uint8), "torch.uint8"),
]


@pytest.mark.parametrize("data, words", BAD, ids=[words for _, words in BAD])
def test_bad_data_are_refused_before_any_step(data, words):
    objective, model = Recording(), tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError) as error:
        fit(model, objective, data, config())
    assert words in one_line(error) and not objective.seen
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_a_model_without_gradients_is_refused_before_any_step():
    with pytest.raises(ValueError, match=r"takes gradients: call model.requires_grad_\(True\)"):
        fit(tiny().requires_grad_(False), FlowMatching(), DATA, config())
    assert len(
        fit(
            fit(tiny(), FlowMatching(), DATA, config(2)).model.requires_grad_(True),
            FlowMatching(),
            DATA,
            config(2),
        ).history
    )


class Foreign:
    def loss(self):
        return 0


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"objective": IntegralIdentity},
            "class IntegralIdentity: give an instance, IntegralIdentity()",
        ),
        (
            {"objective": "integral"},
            "must be an Objective, such as IntegralIdentity(), got 'integral'",
        ),
        (
            {"objective": Foreign()},
            "must be an Objective, such as IntegralIdentity(), got a Foreign",
        ),
        ({"objective": None}, "must be an Objective"),
        (
            {"model": MLP(2, 8, 1)},
            "must be a FlowMap, such as FlowMap(MLP(dim=2), RectifiedFlow()), got a MLP",
        ),
        ({"model": FlowMap}, "must be a FlowMap"),
        (
            {"config": {"steps": 5}},
            "must be a TrainConfig, such as TrainConfig(steps=1000), got a dict",
        ),
        ({"config": 100}, "must be a TrainConfig"),
        ({"resume": True}, 'resume must be "auto"'),
        ({"resume": "step-00000008"}, "resume needs a folder"),
    ],
)
def test_wrong_arguments_are_one_line(change, words):
    right = {"model": tiny(), "objective": FlowMatching(), "data": DATA, "config": config()}
    with pytest.raises(ValueError) as error:
        fit(**right | change)
    assert words in one_line(error)


def test_resume_without_a_folder_starts():
    run = fit(tiny(), FlowMatching(), DATA, config(), resume="auto")
    assert torch.equal(
        weights(run.model), weights(fit(tiny(), FlowMatching(), DATA, config()).model)
    )


def test_the_device_that_was_asked_for(monkeypatch):
    """cuda:1 is cuda:1. torchrun's LOCAL_RANK counts only if several processes share the run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    second = torch.device("cuda", 1)
    for wanted in ("cuda:1", second):
        assert pick_device(wanted) == second and Processes.join(wanted) == Processes(0, 1, second)
        assert TrainConfig(steps=1, device=wanted).device == "cuda:1"
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda")
    for wanted in ("cuda:2", "cuda:x", "cuda:", "cuda:-1"):
        with pytest.raises(ValueError) as error:
            pick_device(wanted)
        assert wanted in one_line(error)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert Processes.join("cuda:0") == Processes(1, 2, second)


def test_unknown_device_is_refused_before_any_step():
    for device in ("tpu", "cuda:99"):
        objective = Recording()
        with pytest.raises(ValueError) as error:
            fit(tiny(), objective, DATA, config(device=device))
        assert device in one_line(error) and not objective.seen


@pytest.mark.parametrize(
    "options, words",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": "9"}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"log_every": 0}, "log_every"),
        ({"lr": 0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"clip": 0}, "clip"),
        ({"warmup": -1}, "warmup"),
        ({"ema": 1.0}, "ema"),
        ({"ema": -0.1}, "ema"),
        ({"ema": math.nan}, "ema"),
        ({"steps": True}, "steps"),
        ({"lr": math.inf}, "lr"),
        ({"lr": "1e-3"}, "lr"),
        ({"lr": True}, "lr"),
        ({"ema": "0.9"}, "ema"),
        ({"clip": "1"}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"warmup": 1.5}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": None}, "seed"),
        ({"device": 0}, "device"),
        ({"device": None}, "device"),
        ({"channels_last": "yes"}, "channels_last"),
        ({"progress": 1}, "progress"),
        ({"compile": "yes"}, "compile"),
        ({"compile": None}, "compile"),
        ({"precision": "float16"}, "precision"),
        ({"precision": torch.bfloat16}, "precision"),
        ({"threads": -1}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"threads": np.nan}, "threads"),
        ({"label_dropout": 1}, "label_dropout"),
        ({"out_dir": None}, "out_dir"),
        ({"out_dir": 5}, "out_dir"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"checkpoint_every": "5"}, "checkpoint_every"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes"),
        ({"checkpoint_minutes": "1"}, "checkpoint_minutes"),
        ({"keep": 0}, "keep"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError) as error:
        TrainConfig(**{"steps": 5, **options})
    assert words in one_line(error)


def test_settings_of_numpy_and_torch():
    """Each becomes what JSON can hold, and the run is that of plain numbers."""
    plain = {"steps": 5, "batch_size": 16, "warmup": 2, "seed": 3, "threads": 1, "log_every": 2}
    plain |= {"checkpoint_every": 4, "keep": 1}
    real = {"lr": 0.5, "ema": 0.25, "clip": 0.5, "label_dropout": 0.125, "checkpoint_minutes": 2.0}
    flags = {"channels_last": True, "compile": False, "progress": False}
    theirs = (
        {k: np.int64(v) for k, v in plain.items()}
        | {k: np.float32(v) for k, v in real.items()}
        | {k: np.bool_(v) for k, v in flags.items()}
        | {"steps": torch.tensor(5), "ema": torch.tensor(0.25)}
    )
    other = TrainConfig(**theirs, device=torch.device("cpu"), out_dir=Path("a") / "b")
    mine = TrainConfig(**plain, **real, **flags, device="cpu", out_dir=str(Path("a") / "b"))
    assert other == mine and json.dumps(other.values()) == json.dumps(mine.values())
    assert {type(v) for v in other.values().values()} == {int, float, bool, str}


def test_whole_numbers_and_seeds():
    for kind in (int, np.int8, np.uint64, torch.tensor):
        assert check_int("n", kind(7)) == 7 and check_seed(kind(0)) == 0
        assert type(check_int("n", kind(7))) is int
    assert check_int("n", np.int64(0), minimum=0) == 0
    for wrong in (0, 1.0, "1", True, np.True_, None, torch.tensor(True), torch.tensor(1.0), [1]):
        with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
            check_int("n", wrong)
    for wrong in (-1, 2**32, 0.5):
        with pytest.raises(ValueError, match="seed must be"):
            check_seed(wrong)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@paths
def test_cuda(path):
    first, again = (
        fit(tiny(path), IntegralIdentity(), DATA, config(device="cuda")).model for _ in range(2)
    )
    assert torch.equal(weights(first), weights(again)) and next(first.parameters()).is_cuda
    torch.testing.assert_close(
        sample(first, 20).x, sample(first, 20, device="cpu").x, rtol=0, atol=1e-4
    )


def test_what_is_printed_of_a_run_and_its_model():
    model = FlowMap(MLP(dim=2, hidden=8), RectifiedFlow())
    run = fit(model, FlowMatching(), torch.randn(64, 2), TrainConfig(steps=3, batch_size=8))
    said = repr(run)
    assert (
        said.startswith("TrainRun(FlowMatching on RectifiedFlow, 3 steps in ") and "loss " in said
    )
    assert len(said) < 120 and "interrupted" not in said
    shown = repr(run.model)
    assert "path=RectifiedFlow()" in shown and "learned='velocity'" in shown
    assert f"parameters={model.parameter_count:,}" in shown and "data_shape=(2,)" in shown
