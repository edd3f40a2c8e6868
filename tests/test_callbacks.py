"""Callbacks of ``fit``: validation, the best model, early stopping, loggers; and that they change nothing else."""

import json
import math
import os
import signal
import sys
import time
import types

import pandas as pd
import pytest
import torch
from exact import one_line, randomise
from test_resume import Noisy, linux, process
from test_scale import torchrun

import iflow_lib as ifl
from iflow_lib.data import TensorData
from iflow_lib.frames.given import draw_like as draw_given
from iflow_lib.training.callbacks import Callback
from iflow_lib.training.checkpoints import RunFolder
from iflow_lib.training.validation import METRICS, VELOCITY_NFE

STEPS = 60


def held_out(n=100, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def train(
    *callbacks, out_dir="", net=None, objective=None, data=None, resume="auto", **settings
) -> ifl.TrainRun:
    """A small run."""
    model = ifl.FlowMap(randomise(net or ifl.MLP(2, 16, 2)), ifl.RectifiedFlow())
    known = {"steps": STEPS, "batch_size": 16, "device": "cpu", "progress": False, "log_every": 20}
    config = ifl.TrainConfig(**known | settings, out_dir=out_dir, callbacks=callbacks)
    data = held_out(200, 0) if data is None else data
    return ifl.fit(model, objective or ifl.FlowMatching(), data, config, resume=resume)


class Scripted:
    """A metric that gives known numbers, one after the other."""

    def __init__(self, *values):
        self.values, self.seen = list(values), []

    def __call__(self, samples, data):
        self.seen.append((samples, data))
        return self.values[len(self.seen) - 1]


class Watching(Callback):
    """Keeps the averaged weights after each step, and the rows of the history."""

    def start(self, training, state):
        self.weights, self.rows, self.told = {}, {}, []

    def after_step(self, training):
        kept = training.average.state_dict()
        self.weights[training.step] = {k: v.clone() for k, v in kept.items()}

    def log(self, step, values):
        self.rows[step] = values

    def end(self, training):
        self.told.append("end")

    def close(self, failed):
        self.told.append(f"closed, {failed}")


def same_weights(model, state):
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def but_seconds(run):
    return run.history.drop(columns="seconds")


# ---- validation


def test_the_best_model_is_returned_and_its_step_is_told(tmp_path):
    metric, watching = Scripted(3.0, 1.0, 2.0, 1.5), Watching()
    validation = ifl.Validation(held_out(), every=15, metric=metric, n=50)
    run = train(validation, watching, out_dir=tmp_path)
    assert same_weights(run.model, watching.weights[30])
    assert not same_weights(run.model, watching.weights[STEPS])
    table = run.history.set_index("step")
    assert table.validation.dropna().to_dict() == {15: 3.0, 30: 1.0, 45: 2.0, 60: 1.5}
    assert table.validation_best_step.dropna().to_dict() == {15: 15, 30: 30, 45: 30, 60: 30}
    assert list(table.index) == [15, 20, 30, 40, 45, 60]
    assert table.loss.notna().all() and table.seconds.is_monotonic_increasing
    assert pd.read_csv(tmp_path / "history.csv").validation_best_step.tolist()[-1] == 30
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    said = manifest["callbacks"][0]
    assert said["name"] == "validation" and said["best"] == 1.0 and said["best_step"] == 30
    assert manifest["callbacks"][1] == {"name": "Watching"} and manifest["stopped"] is None
    assert "callbacks" not in manifest["config"] and not manifest["interrupted"]
    assert all(x.shape == (50, 2) and y.shape == (50, 2) for x, y in metric.seen)
    # the same examples each time
    assert all(torch.equal(y, metric.seen[0][1]) for _, y in metric.seen)
    assert watching.rows[30] | {"seconds": 0, "lr": 0} == {
        "loss": table.loss[30],
        "validation": 1.0,
        "validation_best_step": 30,
        "lr": 0,
        "seconds": 0,
    }
    assert 0 < watching.rows[60]["lr"] < watching.rows[20]["lr"] <= 1 / 16
    assert watching.told == ["end", "closed, False"]


def test_a_value_that_rises_with_the_quality():
    metric = Scripted(0.1, 0.9, 0.5)
    run = train(ifl.Validation(held_out(), 20, metric, larger_is_better=True, keep_best=False))
    assert run.manifest["callbacks"][0]["best_step"] == 40


@pytest.mark.parametrize("net", [None, Noisy])
def test_training_sees_nothing_of_a_validation(net):
    """Not even a network with dropout, whose masks come from the same generator as a metric's numbers."""

    def draws(samples, data):
        return float(torch.rand(()))

    watch = ifl.Validation(held_out(), every=7, metric=draws, keep_best=False, n=10)
    torch.manual_seed(3)
    watched = train(watch, Watching(), net=net and net())
    after = torch.rand(())
    torch.manual_seed(3)
    plain = train(net=net and net())
    assert torch.equal(after, torch.rand(()))
    assert same_weights(watched.model, plain.model.state_dict())
    assert len(watched.history.validation.dropna().unique()) == 1  # the metric has its own seed
    assert "validation" not in plain.history and "callbacks" not in plain.manifest
    # a row has the mean of the losses since the row before, wherever there are more rows
    rows = watched.history.set_index("step").loss
    counts = rows.index.to_series().diff().fillna(rows.index[0])
    upto = plain.history.set_index("step").loss
    assert (rows * counts).loc[:20].sum() / 20 == pytest.approx(upto[20], rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_each_distance_tells_a_trained_model_from_a_fresh_one(metric):
    data = ifl.data.load("two_moons")
    test = ifl.data.load("two_moons", n=400, split="test")
    watch = ifl.Validation(test, every=150, metric=metric, n=400, keep_best=False)
    run = train(watch, data=data, objective=ifl.IntegralIdentity(), steps=300, batch_size=128)
    values = run.history.validation.dropna()
    fresh = watch.measure(ifl.FlowMap(randomise(ifl.MLP(2, 16, 2)), ifl.RectifiedFlow()))
    assert len(values) == 2 and 2 * values.iloc[-1] < fresh
    x = ifl.sample(run.model, 400, 1, seed=0).x
    assert METRICS[metric](x, test.x) == pytest.approx(values.iloc[-1])


def test_a_velocity_is_followed_in_sixteen_steps():
    calls = []
    watch = ifl.Validation(held_out(), every=60, n=20)
    run = train(watch)
    run.model.net.register_forward_hook(lambda *_: calls.append(1))
    watch.measure(run.model)
    assert len(calls) == VELOCITY_NFE
    calls.clear()
    watch.nfe = 4
    watch.measure(run.model)
    assert len(calls) == 4


def test_scales_are_taken_off_for_a_distance_and_put_back_for_a_function():
    x = 100 + 20 * held_out(300)
    data = ifl.data.standardize(x)
    known = TensorData(data.scaling.apply(x), scaling=data.scaling)
    seen = Scripted(1.0)
    values = []
    for given in (x, known):
        run = train(ifl.Validation(given, every=60, n=300, keep_best=False), data=data)
        values.append(run.history.validation.iloc[-1])
    assert values[0] == pytest.approx(values[1], rel=1e-3) and abs(values[0]) < 5
    train(ifl.Validation(known, every=60, metric=seen, n=300), data=data)
    samples, compared = seen.seen[0]
    assert torch.allclose(compared, x, rtol=1e-5) and samples.mean() > 50
    with pytest.raises(
        ValueError, match="a scale of their own: give them in the original"
    ) as error:
        train(ifl.Validation(ifl.data.standardize(held_out())), data=data)
    one_line(error)
    with pytest.raises(ValueError, match="a scale of their own"):
        train(ifl.Validation(known))


def test_samples_have_the_classes_of_the_held_out_examples():
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(90) % 3
    known = TensorData(x + labels[:, None], labels)
    seen = Scripted(1.0)
    watch = ifl.Validation(known, every=60, metric=seen, n=200)
    run = train(watch, net=ifl.MLP(2, 16, 2, classes=3), data=known)
    expected = ifl.sample(run.model, 200, VELOCITY_NFE, labels=labels[torch.arange(200) % 90]).x
    assert torch.equal(seen.seen[0][0], expected)
    assert torch.equal(seen.seen[0][1], known.x)


# ---- stopping early


def test_a_run_stops_when_nothing_is_better_any_more(tmp_path):
    metric = Scripted(3.0, 1.0, 1.0, 2.0)
    validation = ifl.Validation(held_out(), every=10, metric=metric, patience=2)
    run = train(validation, out_dir=tmp_path)
    assert run.manifest["steps_done"] == 40 and not run.manifest["interrupted"]
    assert run.manifest["stopped"] == (
        "validation was no better 2 times in a row; it was best at step 20"
    )
    assert "40 steps" in repr(run) and "stopped early" in repr(run)
    assert RunFolder(tmp_path).checkpoints()[0].name == "step-00000040"
    # a continuation trains no further, and returns the same
    metric.seen.clear()
    again = train(validation, out_dir=tmp_path)
    assert same_weights(again.model, run.model.state_dict()) and not metric.seen
    assert but_seconds(again).equals(but_seconds(run))
    for name in ("stopped", "callbacks", "steps_done", "interrupted"):
        assert again.manifest[name] == run.manifest[name]


def test_a_callback_serves_several_runs():
    validation = ifl.Validation(held_out(), every=20, n=50)
    runs = [train(validation, seed=seed) for seed in (0, 1, 0)]
    values = [run.history.validation.dropna().tolist() for run in runs]
    assert values[0] == values[2] != values[1] and len(values[0]) == 3


def test_a_callback_of_ones_own_stops_a_run():
    class Enough(ifl.Callback):
        name = "enough"

        def after_step(self, training):
            training.record("twice", 2 * training.step)
            if training.step == 33:
                training.stop("it is enough")

    run = train(Enough())
    assert run.manifest["stopped"] == "it is enough" and run.manifest["steps_done"] == 33
    assert run.history.twice.tolist() == [2 * n for n in range(1, 34)]


# ---- killed and continued


def settings(folder, *more):
    validation = ifl.Validation(held_out(), every=7, n=50, patience=20)
    return dict(out_dir=folder, checkpoint_every=10), (validation, ifl.TensorBoard(), *more)


def killed(folder, at):
    """Train until a step, and die there by kill -9."""
    torch.set_num_threads(1)

    class Killer(Callback):
        def after_step(self, training):
            if training.step == at:
                os.kill(os.getpid(), signal.SIGKILL)

    options, callbacks = settings(folder, Killer())
    train(*callbacks, **options)


def scalars(folder):
    """What TensorBoard would show: by tag, (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if tag != "seconds"
    }


@linux
def test_killed_and_continued_is_the_undisturbed_run(tmp_path):
    """The best value and its weights, patience, the history and what TensorBoard shows."""
    options, callbacks = settings(tmp_path / "whole")
    whole = train(*callbacks, **options)
    one = process(killed, tmp_path / "killed", 48)  # after the checkpoint of 40, and a row of 42
    one.join(120)
    assert one.exitcode == -signal.SIGKILL
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which have the second
    options, callbacks = settings(tmp_path / "killed")
    run = train(*callbacks, **options)
    assert same_weights(run.model, whole.model.state_dict())
    assert but_seconds(run).equals(but_seconds(whole))
    assert run.manifest["callbacks"] == whole.manifest["callbacks"]
    mine, theirs = (
        scalars(tmp_path / name / "tensorboard" / "FlowMatching") for name in ("killed", "whole")
    )
    assert mine == theirs and set(mine) == {"loss", "lr", "validation", "validation_best_step"}
    assert [step for step, _ in mine["validation"]] == [7, 14, 21, 28, 35, 42, 49, 56, 60]


def test_another_validation_does_not_continue(tmp_path):
    train(ifl.Validation(held_out(), every=20), out_dir=tmp_path / "a", steps=40)
    for other, words in (
        (ifl.Validation(held_out(), every=10), "{'every': 20}, here it is {'every': 10}"),
        (ifl.Validation(held_out(), every=20, metric="w2"), "'energy'.*'w2'"),
        (ifl.Validation(held_out(seed=5), every=20), "held_out"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            train(other, out_dir=tmp_path / "a", steps=40)
        assert "the callback validation cannot start" in one_line(error)
    free = ifl.Validation(held_out(), every=20, patience=9)
    best = train(free, out_dir=tmp_path / "a", steps=40)
    without = train(out_dir=tmp_path / "a", steps=40)  # the last weights; the best are kept
    assert "callbacks" not in without.manifest
    again = train(free, out_dir=tmp_path / "a", steps=40)
    assert same_weights(again.model, best.model.state_dict())
    last = ifl.Validation(held_out(), every=20, keep_best=False)
    run = train(last, out_dir=tmp_path / "a", steps=40)
    assert same_weights(run.model, without.model.state_dict())
    train(last, out_dir=tmp_path / "b", steps=40)
    with pytest.raises(ValueError, match="began with keep_best=False") as error:
        train(free, out_dir=tmp_path / "b", steps=40)
    one_line(error)


def test_a_run_that_began_without_callbacks_goes_on_with_some(tmp_path):
    train(out_dir=tmp_path, checkpoint_every=20, keep=9)
    early = tmp_path / "checkpoints" / "step-00000020"
    state = RunFolder(tmp_path).load(early)
    assert "called" not in state.info and not any("callback" in name for name in state.tensors)
    run = train(ifl.Validation(held_out(), every=20), out_dir=tmp_path, resume=early)
    assert run.history.validation.notna().tolist() == [False, True, True]


# ---- what goes wrong


class Failing(Callback):
    """Fails once, in one of its methods, at a step."""

    def __init__(self, method, step=33):
        self.method, self.step, self.failed, self.calls = method, step, False, []

    def _fail(self, method, step=None):
        if method == self.method and not self.failed and step in (None, self.step):
            self.failed = True
            raise KeyError("no such sensor")

    def start(self, training, state):
        self._fail("start")

    def after_step(self, training):
        self.calls.append(training.step)
        self._fail("after_step", training.step)
        training.record("number", training.step)

    def log(self, step, values):
        self._fail("log", step)

    def end(self, training):
        self._fail("end")

    def state(self):
        self._fail("state")
        return {"thing": object()} if self.method == "not JSON" else {"calls": len(self.calls)}

    def describe(self):
        self._fail("describe")
        return {}


@pytest.mark.parametrize(
    "method, where, kept",
    [
        ("start", "at the start", "there is no checkpoint yet"),
        ("after_step", "after step 33", "step-00000033"),
        ("log", "at the row of step 33", "step-00000033"),
        ("state", r"in state\(\)", "step-00000060"),  # the next try has succeeded
        ("end", "at the end", "step-00000060"),
        ("describe", r"in describe\(\)", ""),
    ],
)
def test_a_callback_that_fails_is_named_and_the_run_goes_on_from_there(
    method, where, kept, tmp_path
):
    whole = train(Failing("nothing"), out_dir=tmp_path / "whole")
    failing = Failing(method)
    with pytest.raises(
        RuntimeError, match=f"the callback Failing failed {where}: KeyError"
    ) as error:
        train(failing, out_dir=tmp_path / "run")
    assert kept in one_line(error) and isinstance(error.value.__cause__, KeyError)
    run = train(failing, out_dir=tmp_path / "run")
    assert same_weights(run.model, whole.model.state_dict())
    assert but_seconds(run).equals(but_seconds(whole))
    if method in ("after_step", "log"):  # that step's callbacks are called again, and no other's
        assert failing.calls == [*range(1, 34), *range(33, STEPS + 1)]


def test_a_state_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"Failing failed in state\(\): TypeError"):
        train(Failing("not JSON"), out_dir=tmp_path)


def test_without_a_folder_a_failure_says_so():
    with pytest.raises(RuntimeError, match="after step 33.*no out_dir was given") as error:
        train(Failing("after_step"))
    one_line(error)


def test_what_fails_while_closing_loses_nothing():
    class Stuck(Callback):
        def close(self, failed):
            raise OSError("the line is dead")

    with pytest.warns(RuntimeWarning, match="Stuck could not be closed: OSError: the line"):
        assert train(Stuck()).manifest["steps_done"] == STEPS


def test_callbacks_are_closed_when_the_training_fails():
    class Lost(ifl.FlowMatching):
        def loss(self, model, **drawn):
            loss, rest = super().loss(model, **drawn)
            return loss * math.nan, rest

    watching = Watching()
    with pytest.raises(FloatingPointError):
        train(watching, objective=Lost())
    assert watching.told == ["closed, True"]


def test_too_little_memory_in_a_callback_names_the_callback():
    def metric(samples, data):
        raise torch.OutOfMemoryError("DefaultCPUAllocator: not enough memory")

    with pytest.raises(RuntimeError, match="the callback validation failed after step 20: Out"):
        train(ifl.Validation(held_out(), 20, metric))


@pytest.mark.parametrize(
    "metric, kind",
    [
        (lambda x, y: None, "must return one number, got a NoneType"),
        (lambda x, y: x, "must return one number, got a Tensor"),
        (lambda x, y: math.nan, "the metric is nan"),
        (lambda x, y: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_metric_that_gives_no_number(metric, kind, tmp_path):
    with pytest.raises(RuntimeError, match=f"the callback validation failed after step 20.*{kind}"):
        train(ifl.Validation(held_out(), 20, metric), out_dir=tmp_path)
    assert RunFolder(tmp_path).checkpoints()[0].name == "step-00000020"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ifl.TrainConfig(1, callbacks=3), "callbacks must be a list"),
        (lambda: ifl.TrainConfig(1, callbacks=[print]), "must hold objects that extend"),
        (lambda: ifl.TrainConfig(1, callbacks=[ifl.Validation]), "the class Validation: give an"),
        (lambda: ifl.TrainConfig(1, callbacks=[Watching(), Watching()]), "two callbacks have the"),
        (lambda: ifl.Validation(held_out(), every=0), "every must be"),
        (lambda: ifl.Validation(held_out(), metric="fid"), "metric must be one of energy, mmd"),
        (lambda: ifl.Validation(held_out(), patience=0), "patience must be"),
        (lambda: ifl.Validation(held_out(), n=1), "n must be"),
        (lambda: ifl.Validation(held_out(), name="loss"), "every history has a 'loss'"),
        (lambda: ifl.Validation(held_out(), name=""), "must be text"),
        (lambda: ifl.Validation(held_out(), larger_is_better=True), "energy is a distance"),
        (lambda: train(ifl.Validation(held_out(1))), "1 held-out example is too few"),
        (lambda: train(ifl.Validation(torch.randn(9, 3))), r"examples of shape \(3,\), and the"),
        (lambda: train(ifl.Validation("x.csv")), "the callback validation cannot start"),
        (lambda: train(ifl.TensorBoard()), "give TensorBoard"),
        (lambda: ifl.TrainConfig(1, callbacks=[ifl.Validation(held_out(), name="a.b")]), "dots"),
    ],
)
def test_wrong_arguments_are_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    one_line(error)


def test_a_refused_run_leaves_the_model_as_it_was():
    model = ifl.FlowMap(ifl.MLP(2, 16, 2), ifl.RectifiedFlow())
    config = ifl.TrainConfig(1, callbacks=ifl.Validation(torch.randn(9, 3)), progress=False)
    with pytest.raises(ValueError, match="cannot start"):
        ifl.fit(model, ifl.FlowMatching(), held_out(), config)
    assert model.learned is None


def test_a_column_that_is_taken_is_refused():
    class Loss(Callback):
        def after_step(self, training):
            training.record("loss", 1.0)

    with pytest.raises(RuntimeError, match="Loss failed after step 1: every history has a 'loss'"):
        train(Loss())


def test_settings_with_callbacks_are_settings():
    validation = ifl.Validation(held_out())
    config = ifl.TrainConfig(5, callbacks=[validation])
    assert config.callbacks == (validation,) and config == ifl.TrainConfig(5)
    assert hash(config) == hash(ifl.TrainConfig(5)) and "callbacks" not in repr(config)
    assert json.loads(json.dumps(config.values())) == config.values()


# ---- loggers


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "iflow-lib\[logging\]"') as error:
        ifl.TensorBoard()
    one_line(error)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb") as error:
        ifl.WeightsAndBiases()
    one_line(error)


def test_tensorboard_in_a_folder_of_ones_own(tmp_path):
    train(ifl.TensorBoard(tmp_path / "board"))
    shown = scalars(tmp_path / "board" / "FlowMatching")
    assert [step for step, _ in shown["loss"]] == [20, 40, 60] and set(shown) == {"loss", "lr"}
    train(ifl.TensorBoard(tmp_path / "board"), steps=20)  # a new run takes the place of the earlier
    assert [s for s, _ in scalars(tmp_path / "board" / "FlowMatching")["loss"]] == [20]


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, with what is used of it."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**settings):
        run = types.SimpleNamespace(settings=settings, rows=[], ended=None)
        run.id = settings.get("id") or f"id{len(module.runs)}"
        run.log = lambda values, step: run.rows.append((step, values))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        module.runs.append(run)
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases(wandb, tmp_path):
    logger = ifl.WeightsAndBiases(project="furnace")
    validation = ifl.Validation(held_out(), every=30, n=50)
    with pytest.raises(RuntimeError, match="after step 45"):
        train(validation, logger, Failing("after_step", 45), out_dir=tmp_path)
    first = wandb.runs[0]
    assert first.settings["project"] == "furnace" and first.settings["resume"] == "allow"
    assert first.settings["config"]["config"]["steps"] == STEPS
    assert [step for step, _ in first.rows][:2] == [1, 2] and first.ended == 1  # Failing records
    again = ifl.WeightsAndBiases(project="furnace")
    run = train(validation, again, Failing("nothing"), out_dir=tmp_path)
    second = wandb.runs[1]
    assert second.settings["id"] == first.id == "id0" and second.ended == 0
    assert second.rows[0][0] == 45 and second.rows[-1][0] == STEPS
    assert {"loss", "lr", "seconds", "validation"} <= set(second.rows[-1][1])
    assert run.manifest["callbacks"][1] == {"name": "WeightsAndBiases", "id": "id0"}
    with pytest.raises(ValueError, match="resume is set by fit"):
        ifl.WeightsAndBiases(resume="must")


# ---- own data


@pytest.mark.parametrize("conditions", [True, False])
def test_a_table_is_compared_with_held_out_rows(conditions):
    table = ifl.data.frame("penguins")
    rows = table.sample(frac=0.8, random_state=0)
    rest = table.drop(rows.index)
    validation, watching = ifl.Validation(rest, every=20, n=100), Watching()
    flow = ifl.TableFlow(steps=100, hidden=16, conditions=conditions)
    flow.fit(rows, callbacks=[validation, watching])
    # the second of two trainings, 30 steps: its best model is what the flow has
    assert list(watching.weights) == list(range(1, 31)) and validation.best_step in (20, 30)
    assert same_weights(flow.model, watching.weights[validation.best_step])
    numbers = sum(code.width for code in flow._codes)
    drawn = draw_given(flow.model, validation.held_out, 100, None, 0, False)
    assert METRICS["energy"](drawn, validation.held_out.x) == pytest.approx(validation.best)
    assert not bool(validation.held_out.x[:, numbers:].any())
    assert validation.encode is ifl.data.as_dataset  # as it was
    for given, words in (
        (rest.drop(columns="species"), "this frame lacks 'species'"),
        (rest.assign(species="Emperor"), "never was 'Emperor'"),
        (held_out(), "must be a pandas DataFrame"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            flow.fit(rows, callbacks=ifl.Validation(given))
        one_line(error)
    with pytest.raises(ValueError, match="callbacks must be a list"):
        flow.fit(rows, callbacks="validation")


def test_held_out_numbers_may_lie_beyond_those_that_are_learned():
    table = pd.DataFrame({"a": torch.arange(400.0).numpy() / 7, "b": held_out(400)[:, 0].numpy()})
    validation = ifl.Validation(table[300:], every=10, n=50)
    ifl.TableFlow(steps=20, hidden=16).fit(table[:300], callbacks=validation)
    assert validation.best > 1  # and they count as far


@pytest.mark.parametrize("calendar", [(), ("hour",)])
def test_windows_are_compared_with_held_out_windows(calendar):
    table = ifl.data.frame("weather")
    table = table[table.origin != "LGA"].sort_values("time_hour").iloc[-4000:]
    cut = len(table) * 9 // 10
    validation, watching = ifl.Validation(table[cut:], every=5, n=40), Watching()
    known = dict(every="1h", time="time_hour", channels=["temp", "humid"], width=8)
    flow = ifl.SeriesFlow(24, entity="origin", calendar=calendar, steps=20, batch_size=16, **known)
    flow.fit(table[:cut], callbacks=[validation, watching])
    x = validation.held_out.x
    assert x.shape[1:] == flow.model.data_shape and set(validation.held_out.labels.tolist()) == {
        0,
        1,
    }
    assert same_weights(flow.model, watching.weights[validation.best_step])
    drawn = draw_given(flow.model, validation.held_out, 40, None, 0, False)
    assert METRICS["energy"](drawn, x) == pytest.approx(validation.best, rel=1e-5)
    told = flow.model.net.values
    if calendar:  # the calendar of the held-out windows was given
        rows = torch.arange(40) % len(x)
        assert torch.equal(drawn[:, :, 2:told], x[rows][:, :, 2:told]) and told > 2
    with pytest.raises(ValueError, match="no window to learn is of origin 'EWR'"):
        one = table[:cut].query("origin == 'JFK'")
        flow.fit(pd.concat([one, one.assign(origin="OLD")]), callbacks=validation)

    def windows(rows, *channels):
        return ifl.frames.windows(rows, "time_hour", "origin", channels, every="1h", length=24)

    flow = ifl.SeriesFlow(24, entity="origin", steps=4, **known | {"channels": None})
    with pytest.raises(ValueError, match="have the channels"):
        other = ifl.Validation(windows(table[cut:], "temp"))
        flow.fit(windows(table[:cut], "temp", "humid"), callbacks=other)


# ---- several processes


@linux
def test_two_processes_measure_and_stop_as_one(tmp_path):
    from together import watched

    watched(alone := tmp_path / "alone")
    (tmp_path / "two").mkdir()
    torchrun(tmp_path / "two", "0", "callbacks")
    mine, theirs = (pd.read_csv(f / "run" / "history.csv") for f in (tmp_path / "two", alone))
    assert list(mine.columns) == list(theirs.columns) and list(mine.step) == list(theirs.step)
    assert (mine.validation - theirs.validation).abs().max() < 1e-4
    said = [json.loads((tmp_path / "two" / f"said-{rank}").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]  # both have the best weights, and the words of what failed in one
    assert said[0]["stopped"] == "it is enough" and said[0]["steps"] == 33
    assert "the callback Broken failed at the row of step 10: OSError: no room" in said[0]["error"]
    assert "step-00000010" in said[0]["error"]
    board = scalars(tmp_path / "two" / "run" / "tensorboard" / "FlowMatching")
    assert [step for step, _ in board["validation"]] == [10, 20, 30]
