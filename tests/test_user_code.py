"""Faults in what a user wrote, or in how it is used, end in one line that says what to do."""

import dataclasses
import threading
from functools import partial

import numpy as np
import pytest
import torch
from exact import one_line
from torch import nn

import iflow_lib as ifl
from iflow_lib.networks import NETWORKS
from iflow_lib.objectives import network_state
from iflow_lib.paths import PATHS

POINTS = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear network, and what a test does in its forward."""

    data_shape = (2,)

    def __init__(self, change=None, classes=0):
        super().__init__()
        self.layer, self.change, self.classes = nn.Linear(2, 2), change, classes

    def forward(self, x, t, s, labels=None):
        return self.layer(x) if self.change is None else self.change(self.layer(x), x)


def model(change=None, path=None, **options):
    return ifl.FlowMap(Net(change, **options), path or ifl.RectifiedFlow())


def fit(flow, objective=None, data=POINTS, **options):
    config = ifl.TrainConfig(steps=2, batch_size=8, device="cpu", progress=False, **options)
    return ifl.fit(flow, objective or ifl.FlowMatching(), data, config)


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    text = one_line(caught)
    assert all(word in text for word in words), text


def test_a_teacher_on_data_in_another_scale():
    data = ifl.data.TensorData(3 * POINTS + 1)
    scaled = ifl.data.standardize(data)
    scaled = scaled[0] if isinstance(scaled, tuple) else scaled
    teacher = fit(model(), data=scaled).model
    objective = ifl.FlowMapDistillation(teacher=teacher)
    refused(lambda: fit(model(), objective, data), "same scale", "not standardized")
    fit(model(), objective, scaled)


def writes(out, x):
    x *= 2
    return out


def test_a_network_that_writes_into_its_input():
    refused(lambda: fit(model(writes)), "Net writes into its input", "x = x * 2")
    refused(lambda: ifl.sample(model(writes), 4), "Net writes into its input", "x = x * 2")
    with torch.inference_mode():
        ifl.sample(model(), 4)


def test_random_numbers_from_elsewhere():
    own = torch.Generator().manual_seed(0)
    for draw in (
        lambda out, x: out + float(np.random.default_rng().normal()),
        lambda out, x: out + torch.randn(out.shape, generator=own),
    ):
        flow = model(draw)
        refused(partial(fit, flow), "Net returns another output", "torch.rand")
    random = model(lambda out, x: out + torch.randn_like(out))
    assert not network_state.is_pure(random) and network_state.is_pure(model())
    fit(random)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda out, x: (out, out), "tuple"),
        (lambda out, x: None, "NoneType"),
        (lambda out, x: out + 0j, "complex64"),
    ],
)
def test_a_network_that_returns_something_else(change, word):
    refused(lambda: ifl.sample(model(change), 4), word, "Net")
    refused(lambda: fit(model(change)), word, "Net")


def test_a_network_with_another_call():
    class Two(Net):
        def forward(self, x, t):
            return self.layer(x)

    refused(lambda: fit(ifl.FlowMap(Two(), ifl.RectifiedFlow())), "net(x, t, s)", "Two")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type(dtype):
    refused(lambda: fit(model().to(dtype)), str(dtype), "model.float()")
    fit(model().to(dtype).float())


class Cosine(ifl.Path):
    """A path as a user writes it, right unless a test changes it."""

    def alpha(self, t):
        return torch.cos(t * torch.pi / 2)

    def sigma(self, t):
        return torch.sin(t * torch.pi / 2)

    def alpha_dot(self, t):
        return -torch.pi / 2 * self.sigma(t)

    def sigma_dot(self, t):
        return torch.pi / 2 * self.alpha(t)

    def time(self, tau):
        return torch.atan2(tau, 1 - tau) * 2 / torch.pi


def seeded_noise(shape):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "method, function, words",
    [
        ("alpha", lambda self, t: 2 - t, "must be 1 at t = 0"),
        ("sigma", lambda self, t: 0.1 + t, "must be 0 at t = 0"),
        ("tau", lambda self, t: t * (1 - t), "must rise"),
        ("time", lambda self, tau: tau, "inverse of tau"),
        ("alpha_dot", lambda self, t: -1.0, "must return a tensor"),
        ("sigma_dot", ifl.Path.sigma_dot, "is missing"),
        ("noise", lambda self, shape, **options: torch.randn(shape[0]), "shape (2, 2)"),
        ("noise", lambda self, shape: torch.randn(shape), "fails: TypeError"),
        (
            "noise",
            lambda self, shape, dtype=None, **options: torch.randn(shape, dtype=dtype),
            "equal generators, equal noise",
        ),
        ("noise", lambda self, shape, **options: seeded_noise(shape), "must draw from generator="),
        ("noise", lambda self, shape, **options: torch.zeros(shape), "torch.float64"),
        ("alpha_dot", lambda self, t: torch.sin(t), "the derivative of alpha: at t = 0.13"),
        ("sigma_dot", lambda self, t: torch.cos(t * torch.pi / 2), "the derivative of sigma"),
        ("t_max", "1", "must be a positive number, got '1'"),
        ("t_max", float("inf"), "must be a positive number, got inf"),
        ("sample_times", lambda self, n, generator: 3, "must return a tensor"),
    ],
)
def test_a_path_with_a_wrong_method(method, function, words):
    net = Net()
    state = torch.get_rng_state()
    ifl.FlowMap(net, Cosine())
    assert torch.equal(torch.get_rng_state(), state)
    wrong = type("Wrong", (Cosine,), {method: function})()
    refused(lambda: model(path=wrong), f"{method} of the path Wrong", words)


def test_a_path_with_a_wrong_time_density():
    wrong = type("Wrong", (Cosine,), {"time_density": 3})()
    refused(lambda: model(path=wrong), 'density must be "uniform" or a mean', "got 3")


@pytest.mark.parametrize("path", [ifl.VariancePreserving, ifl.VarianceExploding, ifl.PoissonFlow])
def test_a_subclass_of_a_shipped_path_passes(path):
    model(path=type("Own", (path,), {})())


def test_config_must_name_every_argument(tmp_path):
    class Mine(ifl.PoissonFlow):
        def __init__(self, aug_dim=128, k=3):
            super().__init__(aug_dim)
            self.k = k

    class Wide(ifl.MLP):
        def __init__(self, *args, factor=2, **options):
            super().__init__(*args, **options)
            self.factor = factor

    try:
        ifl.register_path(Mine), ifl.register_network(Wide)
        mine = ifl.FlowMap(ifl.MLP(dim=2), Mine(k=4))
        refused(lambda: mine.save_pretrained(tmp_path), "the path Mine leaves out k")
        wide = ifl.FlowMap(Wide(dim=2), ifl.RectifiedFlow())
        refused(lambda: wide.save_pretrained(tmp_path), "the network Wide leaves out factor")
    finally:
        PATHS.pop("Mine", None), NETWORKS.pop("Wide", None)


def test_weights_that_do_not_fit_the_type(tmp_path):
    flow = ifl.FlowMap(ifl.MLP(dim=2), ifl.RectifiedFlow())
    with torch.no_grad():
        next(flow.parameters()).fill_(1e6)
    refused(lambda: flow.save_pretrained(tmp_path, dtype=torch.float16), "torch.float16", "None")
    flow.save_pretrained(tmp_path, dtype=torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Right(ifl.Objective):
    def draw(self, model, batch, generator):
        return {"x_0": batch.x_0}

    def loss(self, model, x_0):
        t = torch.ones(len(x_0))
        return model(x_0, t, t).square().mean(), None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learns": "velocities"}, "learns of Wrong"),
        ({"draw": lambda self, model, batch, generator: batch.x_0}, "must return a dict"),
        ({"loss": lambda self, model, x_0: Right.loss(self, model, x_0)[0]}, "return loss, None"),
    ],
)
def test_an_objective_with_a_fault(changes, words):
    fit(model(), Right())
    refused(lambda: fit(model(), type("Wrong", (Right,), changes)()), words)
    if "learns" not in changes:
        refused(lambda: type("Wrong", (Right,), changes)()(model(), POINTS), words)


def test_an_objective_without_settings():
    class Plain(ifl.Objective):
        draw, loss = Right.draw, Right.loss

    refused(lambda: fit(model(), Plain()), "Plain is no dataclass", "config()")


@pytest.mark.parametrize("learned", [None, "jump", "jump_to_data"])
def test_guidance_without_nfe(learned):
    flow = model(classes=3)
    flow.learned = learned
    out = ifl.sample(flow, 4, labels=1, guidance=2.0)
    assert out.nfe == 2
    assert torch.equal(out.x, ifl.sample(flow, 4, 2, labels=1, guidance=2.0).x)
    assert ifl.sample(flow, 4, labels=1).nfe == 1
    if learned == "jump_to_data":
        refused(lambda: ifl.sample(flow, 4, 1, labels=1, guidance=2.0), "nfe must be 2")


# ---- what a breaker found


def state_of(flow):
    modes = [part.training for part in flow.modules()]
    return flow.learned, flow.scaling, flow.knows_no_class, modes


def test_a_refused_run_leaves_the_model_as_it_was(tmp_path):
    fit(model(), out_dir=tmp_path)
    flow = fit(model(), ifl.IntegralIdentity(), ifl.data.standardize(POINTS * 100 + 700)).model
    flow.requires_grad_(True)
    before = state_of(flow)
    refused(
        lambda: ifl.fit(flow, ifl.FlowMatching(), POINTS + 1, config_of(tmp_path), "auto"),
        "another run",
    )
    assert state_of(flow) == before and flow.learned == "jump"

    class Fails(ifl.FlowMatching):
        def loss(self, model, **drawn):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fit(flow, Fails())
    assert state_of(flow) == before
    with pytest.raises(FloatingPointError):  # weights have moved: it is another model
        fit(flow, data=POINTS, lr=1e30)
    assert flow.learned == "velocity"


def config_of(folder):
    return ifl.TrainConfig(steps=2, batch_size=8, device="cpu", progress=False, out_dir=folder)


class Classes(Net):
    """Adds a vector for each class; ``rows`` more than classes are for unknown ones."""

    def __init__(self, kind, classes=2):
        super().__init__(classes=classes)
        self.kind = kind
        self.vectors = nn.Parameter(torch.zeros(classes + (kind == "right"), 2))
        self.table = nn.Embedding(classes, 2)

    def forward(self, x, t, s, labels):
        if self.kind == "embedding":
            return self.layer(x) + self.table(labels)
        return self.layer(x) + self.vectors[labels]


@pytest.mark.parametrize("kind", ["index", "embedding"])
def test_labels_of_unknown_classes(kind):
    data = ifl.data.TensorData(POINTS, labels=torch.arange(64) % 2)
    wrong, right = (ifl.FlowMap(Classes(k), ifl.RectifiedFlow()) for k in (kind, "right"))
    refused(lambda: fit(wrong, data=data), "Classes does not take the label -1", "label_dropout=0")
    fit(right, data=data)
    assert ifl.sample(right, 3, 2, "euler").x.shape == (
        3,
        2,
    )  # labels are a required argument there
    trained = fit(wrong, data=data, label_dropout=0).model
    assert trained.knows_no_class is False
    for options in ({}, {"labels": 1, "guidance": 2.0}, {"labels": [1, 0, -1, 1]}):
        refused(partial(ifl.sample, trained, 4, 2, **options), "label_dropout=0", "give labels")
    ifl.sample(trained, 4, 2, labels=1)


def test_what_is_known_without_a_class_is_kept_in_the_files(tmp_path):
    data = ifl.data.TensorData(POINTS, labels=torch.arange(64) % 2)
    for dropout in (0.0, 0.1):
        flow = ifl.FlowMap(ifl.MLP(dim=2, hidden=8, classes=2), ifl.RectifiedFlow())
        run = fit(flow, data=data, label_dropout=dropout)
        run.model.save_pretrained(tmp_path / str(dropout))
        again = ifl.FlowMap.from_pretrained(tmp_path / str(dropout))
        assert again.knows_no_class is run.model.knows_no_class is (dropout > 0)


def test_some_need_velocities():
    for options, batch in (({"equal_share": 0.0}, POINTS), ({}, POINTS[:1])):
        for kind in (ifl.IntegralAdditivity, ifl.TerminalVelocity):
            words = f"{kind.__name__} learns nothing without rows with s = t", "batch_size"
            refused(lambda: kind(**options)(model(), batch), *words)  # noqa: B023


@pytest.mark.parametrize(
    "make",
    [
        lambda: ifl.IntegralIdentity(step=0.0),
        lambda: ifl.IntegralIdentity(step=-1e-3),
        lambda: ifl.IntegralIdentity(step=1e-9),
        lambda: ifl.ConsistencyTraining(k=-20.0),
        lambda: ifl.ConsistencyTraining(stages=2.5),
        lambda: ifl.ConsistencyTraining(mean=float("nan")),
        lambda: ifl.ConsistencyTraining(q="2"),
        lambda: ifl.X0Regression(c=float("nan")),
    ],
)
def test_settings_out_of_range(make):
    refused(make, "must be")


def test_a_buffer_that_is_not_saved():
    twin = ifl.FlowMap(Moving(), ifl.RectifiedFlow())
    refused(lambda: fit(twin), "Moving changes the buffer mean", "persistent=True")


class Moving(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2), persistent=False)

    def forward(self, x, t, s):
        self.mean.mul_(0.9).add_(0.1)
        return self.layer(x) + self.mean


def test_two_trainings_in_threads_are_each_as_alone():
    def train(found, seed):
        torch_net = ifl.FlowMap(nets[seed], ifl.RectifiedFlow())
        found[seed] = fit(
            torch_net, ifl.IntegralIdentity(derivative="jvp"), seed=seed, label_dropout=0
        ).model

    def random(out, x):
        return out * torch.nn.functional.dropout(torch.ones_like(out), 0.2)

    results = []
    for at_once in (False, True):
        found, nets = {}, {}
        for seed in (0, 1, 2):
            torch.manual_seed(seed)
            nets[seed] = Net(random)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        threads = [threading.Thread(target=train, args=(found, seed)) for seed in nets]
        for thread in threads:
            thread.start()
            if not at_once:
                thread.join()
        for thread in threads:
            thread.join()
        assert torch.equal(torch.get_rng_state(), state)
        results.append(found)
    for seed in (0, 1, 2):
        alone, together = (list(found[seed].parameters()) for found in results)
        assert all(map(torch.equal, alone, together))


def test_a_teacher_that_does_not_fit():
    net, path = Net(), ifl.RectifiedFlow()
    teacher = ifl.FlowMap(net, path)
    objective = ifl.FlowMapDistillation(teacher=teacher)
    refused(lambda: fit(ifl.FlowMap(net, path), objective), "shares no weight", "deepcopy")
    jumps = fit(model(), ifl.ConsistencyTraining()).model
    refused(lambda: ifl.FlowMapDistillation(teacher=jumps), "velocity", "jump_to_data")


def test_the_scale_of_the_data_belongs_to_a_run(tmp_path):
    data = ifl.data.standardize(3 * POINTS + 1)
    fit(model(), data=data, out_dir=tmp_path)
    bare = ifl.data.TensorData(data.x, name=data.name)
    refused(
        lambda: ifl.fit(model(), ifl.FlowMatching(), bare, config_of(tmp_path), "auto"), "scaling"
    )


def test_home_is_not_a_folder_called_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    fit(model(), out_dir="~/run")
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_training_where_gradients_are_off():
    with torch.no_grad():
        run = fit(model())
    assert run.manifest["steps_done"] == 2
    with torch.inference_mode():
        refused(lambda: fit(model()), "torch.inference_mode()")


class Loss(ifl.FlowMatching):
    def __init__(self, change):
        object.__setattr__(self, "change", change)

    def config(self):
        return {}

    def loss(self, model, **drawn):
        value, _ = super().loss(model, **drawn)
        return self.change(value), None


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v.detach(), "detached"),
        (lambda v: v.expand(3), "shape (3,)"),
        (float, "one number with a gradient"),
    ],
)
def test_a_loss_that_cannot_be_differentiated(change, words):
    refused(lambda: fit(model(), Loss(change)), "loss of Loss must be one number", words)


def test_networks_that_are_wrapped_already():
    refused(lambda: ifl.FlowMap(model(), ifl.RectifiedFlow()), "FlowMap already", "model.net")
    wrapped = torch.compile(Net(), backend="eager")
    refused(
        lambda: ifl.FlowMap(wrapped, ifl.RectifiedFlow()), "compiled already", "model.compile()"
    )


def test_standardized_data_are_not_compared_with_samples(tmp_path):
    data = ifl.data.standardize(POINTS * 20 + 50)
    out = ifl.sample(fit(model(), data=data, out_dir=tmp_path).model, 64, 2)
    assert "standardized" in repr(data)
    for pair in ((out.x, data), (data, out.x)):
        refused(lambda: ifl.metrics.w2(*pair), "is standardized data", "original units")  # noqa: B023
    refused(lambda: ifl.metrics.w2(out, POINTS), "SampleResult", "samples are its .x")
    with pytest.raises(FileNotFoundError, match="holds a run, which fit"):
        ifl.FlowMap.from_pretrained(tmp_path)
