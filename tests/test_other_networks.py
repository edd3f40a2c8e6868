"""Networks with randomness or state, and networks that forward mode cannot go through, with every objective.

The matrix {dropout, BatchNorm, LayerNorm, nn.TransformerEncoder, scaled_dot_product_attention} x {jvp, difference,
gap, additivity, terminal velocity, consistency} x {train, resume, EMA, save}, on series of four numbers; then each fact that it rests on.
"""

import functools
import warnings

import pytest
import torch
from exact import one_line
from torch import nn
from torch.nn import functional as F

import iflow_lib as ifl
from iflow_lib.objectives import network_state

LENGTH, WIDTH = 4, 16
NETWORKS = ["dropout", "BatchNorm", "LayerNorm", "TransformerEncoder", "attention"]
OBJECTIVES = {
    "jvp": functools.partial(ifl.IntegralIdentity, derivative="jvp"),
    "difference": functools.partial(ifl.IntegralIdentity, derivative="difference"),
    "gap": functools.partial(ifl.IntegralIdentity, gap=0.05),
    # with other times 200 steps are too few for batch normalisation
    "additivity": functools.partial(
        ifl.IntegralAdditivity, start_share=0.1, end_share=0.1, time_density=(0.0, 1.6)
    ),
    "terminal, jvp": functools.partial(ifl.TerminalVelocity, derivative="jvp"),
    "terminal, difference": functools.partial(ifl.TerminalVelocity, derivative="difference"),
    "consistency": ifl.ConsistencyTraining,
}
# losses of two networks are compared: with less noise in the target, they would be of what each has not learned yet
OBJECTIVES = {name: functools.partial(made, velocity="pair") for name, made in OBJECTIVES.items()}
matrix = pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind in NETWORKS for name in OBJECTIVES]
)


class Attention(nn.Module):
    """One layer of self-attention through torch's fused function, or written out."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused, self.mix, self.merge = (
            fused,
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, h):
        q, k, v = (a.unflatten(2, (4, -1)).transpose(1, 2) for a in self.mix(h).chunk(3, dim=2))
        if self.fused:
            found = F.scaled_dot_product_attention(q, k, v)
        else:
            found = (q @ k.mT / q.shape[-1] ** 0.5).softmax(3) @ v
        return h + self.merge(found.transpose(1, 2).flatten(2))


class Series(nn.Module):
    """A network for x (B, 4, 1) with one thing that ours do not have.

    kind: one of ``NETWORKS``; or "plain" and "written out", the same without it.
    """

    data_shape = (LENGTH, 1)

    def __init__(self, kind="plain", rate=0.1):
        super().__init__()
        self.kind, self.rate = kind, rate
        self.tokens = kind in ("TransformerEncoder", "attention", "written out")
        if kind == "TransformerEncoder":
            layer = nn.TransformerEncoderLayer(
                WIDTH, 4, 2 * WIDTH, dropout=rate, activation="gelu", batch_first=True
            )
            body = nn.TransformerEncoder(layer, 1)
        elif self.tokens:
            body = nn.Sequential(Attention(kind == "attention"), self.layer(WIDTH, WIDTH))
        else:
            width = 2 * WIDTH
            body = nn.Sequential(self.layer(width, width), self.layer(width, width))
        self.inner = nn.Linear(
            3 if self.tokens else LENGTH + 2, WIDTH if self.tokens else 2 * WIDTH
        )
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH)) if self.tokens else None
        self.body = body
        self.outer = nn.Linear(self.inner.out_features, 1 if self.tokens else LENGTH)

    def layer(self, inputs, outputs):
        more = {
            "dropout": [nn.Dropout(self.rate)],
            "BatchNorm": [nn.BatchNorm1d(outputs)],
            "LayerNorm": [nn.LayerNorm(outputs)],
        }
        return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), *more.get(self.kind, []))

    def forward(self, x, t, s):
        times = torch.stack([t, t - s], dim=1)
        if not self.tokens:
            h = self.inner(torch.cat([x.flatten(1), times], dim=1))
            return self.outer(self.body(h)).unflatten(1, self.data_shape)
        h = torch.cat([x, times[:, None].expand(-1, LENGTH, -1)], dim=2)
        return self.outer(self.body(self.inner(h) + self.place))

    def config(self):
        return {"kind": self.kind, "rate": self.rate}


@functools.cache
def data():
    """Waves of one length and random phase, about 1: rank 2, mean 1, standard deviation 0.5."""
    phase = 6.28 * torch.rand(2000, 1, generator=torch.Generator().manual_seed(0))
    angle = phase + 1.5 * torch.arange(LENGTH)
    return (1 + 0.5 * 2**0.5 * angle.sin())[..., None]


def model(kind, **options):
    torch.manual_seed(0)
    return ifl.FlowMap(Series(kind, **options), ifl.RectifiedFlow())


def config(steps, **options):
    return ifl.TrainConfig(
        **{"steps": steps, "batch_size": 64, "lr": 5e-3, "ema": 0.98, "log_every": steps // 2}
        | {"device": "cpu", "progress": False, "threads": 1}
        | options
    )


@functools.cache
def trained(kind, name, rate=0.1):
    """A run of 200 steps, and the warnings that came with it."""
    start = model(kind, rate=rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = ifl.fit(start, OBJECTIVES[name](), data(), config(200))
    return run, start, [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


# ---------------------------------------------------------------- the matrix


@matrix
def test_train(kind, name):
    """The loss stays near that of the network without the feature, and one jump gives samples like the data."""
    without = {"TransformerEncoder": ("TransformerEncoder", 0.0), "attention": ("written out", 0.1)}
    reference, rate = without.get(kind, ("plain", 0.1))
    plain = trained(reference, name.replace("jvp", "difference"), rate)[0]
    run, _, said = trained(kind, name)
    ratio = run.history.loss.iloc[-1] / plain.history.loss.iloc[-1]
    assert 0.6 < ratio < 1.4
    draw = functools.partial(ifl.sample, n=500, nfe=1, method="map", seed=1)
    x, z = (draw(r.model).x[..., 0] for r in (run, plain))
    assert float((x.mean(0) - 1).abs().max()) < 0.45  # untrained: 1
    assert float(x.std(0).mean()) == pytest.approx(float(z.std(0).mean()), rel=0.45)
    if kind == "attention":
        assert ratio == pytest.approx(1, abs=0.01)  # the same function, the same derivative
    # its gradient cannot go through torch's layer, which works in place
    in_place = kind == "TransformerEncoder" and name == "terminal, jvp"
    assert len(said) == ("jvp" in name and kind == "attention" or in_place) and all(
        "using derivative='difference'" in line for line in said
    )


@matrix
def test_resume(kind, name, tmp_path):
    """Stopped and continued, a run ends bit for bit as one that was not: weights, buffers, averages, losses."""
    options = {"checkpoint_every": 3, "keep": 5, "log_every": 1}
    whole, half = (config(6, out_dir=str(tmp_path / name), **options) for name in ("a", "b"))
    first, second = model(kind), model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run = ifl.fit(first, OBJECTIVES[name](), data(), whole)
        torch.manual_seed(5)  # the caller's generator is at another place when the run goes on
        where = tmp_path / "a" / "checkpoints" / "step-00000003"
        again = ifl.fit(second, OBJECTIVES[name](), data(), half, resume=where)
    for ours, theirs in ((first, second), (run.model, again.model)):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key
    assert list(run.history.loss) == list(again.history.loss)


@matrix
def test_average(kind, name):
    """The averaged model is near the trained one in all it computes, so its buffers are no older than its weights."""
    run, last, _ = trained(kind, name)
    average, last = run.model, last.eval()
    x, t = torch.randn(300, LENGTH, 1, generator=torch.Generator().manual_seed(1)), torch.ones(300)
    with torch.no_grad():
        ours, theirs = average(x, t, 0 * t), last(x, t, 0 * t)
    assert float((ours - theirs).square().mean().sqrt() / theirs.std()) < 0.3
    assert not average.training and not any(w.requires_grad for w in average.parameters())
    buffers = dict(last.named_buffers())
    for key, value in average.named_buffers():
        assert value.dtype == buffers[key].dtype and value.shape == buffers[key].shape
        if key.endswith(("running_mean", "running_var")):
            assert torch.allclose(value, buffers[key], rtol=0.3, atol=0.3), key


@matrix
def test_save(kind, name, tmp_path, registered):
    """Saved and loaded, the averaged model gives the same samples."""
    run, _, _ = trained(kind, name)
    run.model.save_pretrained(tmp_path)
    loaded = ifl.FlowMap.from_pretrained(tmp_path)
    assert type(loaded.net) is Series and not loaded.training
    ours, theirs = (ifl.sample(m, n=50, nfe=2, method="map", seed=1).x for m in (run.model, loaded))
    assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def registered():
    return ifl.register_network(Series)


# ---------------------------------------------------------------- what it rests on


class Masks(Series):
    """Dropout, and a list of which of its rows' units were kept in each call."""

    def __init__(self, anchor=False):
        super().__init__("dropout", 0.5)
        self.anchor, self.seen = anchor, []
        self.body[0][2].register_forward_hook(
            lambda _module, _given, out: self.seen.append(out.detach() != 0)
        )

    def forward(self, x, t, s, anchor=None):
        return super().forward(x if anchor is None else x + 0.1 * anchor, t, s)

    def kept(self):
        masks = list(self.seen)
        self.seen.clear()
        return masks


def step(objective, net, generator):
    """The loss of one batch of 32 with gradients, and the masks of its calls."""
    torch.randn(3)  # wherever the global generator is
    x_0 = data()[:32]
    loss = objective(net, ifl.Batch(x_0, index=torch.arange(32)), generator)
    torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return loss, net.net.kept()


_by_network = functools.partial(ifl.IntegralIdentity, tangent="network")
COMPARING = {
    "difference": (_by_network(derivative="difference"), 4),
    "jvp": (_by_network(derivative="jvp"), 3),
    "conditional": (ifl.IntegralIdentity(derivative="difference", tangent="conditional"), 3),
    "all pairs": (_by_network(derivative="difference", equal_share=0.0), 4),
    "no pairs": (ifl.IntegralIdentity(derivative="difference", equal_share=1.0), 1),
    "self": (_by_network(derivative="difference", anchor="self"), 5),
    "gap": (_by_network(gap=0.05), 3),
    "gap, conditional": (ifl.IntegralIdentity(gap=0.05, tangent="conditional"), 2),
    "gap, self": (_by_network(gap=0.05, anchor="self"), 4),
    "additivity": (ifl.IntegralAdditivity(), 3),
    "terminal, jvp": (ifl.TerminalVelocity(derivative="jvp"), 3),
    "terminal, difference": (ifl.TerminalVelocity(derivative="difference"), 4),
    "consistency": (ifl.ConsistencyTraining(), 2),
    "x0 self": (ifl.X0Regression(anchor="self"), 2),
    "x0 shared": (ifl.X0Regression(anchor="shared"), 1),
    "velocity": (ifl.FlowMatching(), 1),
    "taught": (ifl.FlowMapDistillation(teacher=model("plain"), derivative="difference"), 3),
}


@pytest.mark.parametrize("name", COMPARING)
def test_calls_that_are_compared_see_the_same_masks(name):
    """All rows, whatever the call needs; other masks in the next step, and those of one call alone."""
    objective, calls = COMPARING[name]
    torch.manual_seed(0)
    anchored = getattr(objective, "anchor", None) not in (None, "none")
    net = ifl.FlowMap(Masks(anchor=anchored), ifl.RectifiedFlow()).train()
    objective.prepare(net, ifl.data.TensorData(data()))
    net.net.kept()
    generator, steps = torch.Generator().manual_seed(0), []
    for _ in range(2):
        _, masks = step(objective, net, generator)
        assert len(masks) == calls and all(torch.equal(m, masks[-1]) for m in masks)
        assert masks[-1].shape == (32, 2 * WIDTH) and 0.3 < float(masks[-1].float().mean()) < 0.7
        steps.append(masks[-1])
    assert not torch.equal(*steps)
    # the generator moves as far as by the prediction alone
    torch.manual_seed(3)
    net(torch.zeros(32, LENGTH, 1), torch.ones(32), torch.zeros(32))
    expected = torch.rand(1)
    batch = ifl.Batch(data()[:32], index=torch.arange(32))
    torch.manual_seed(3)
    objective(net, batch, generator)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_dropout_is_held_in_the_derivative(derivative):
    """With the masks of one call held, both derivatives are those of the network without dropout, masks written in."""
    torch.manual_seed(0)
    net = ifl.FlowMap(Masks().double(), ifl.RectifiedFlow())
    x = torch.randn(20, LENGTH, 1, dtype=torch.float64)
    t, s = torch.full((20,), 0.7).double(), torch.full((20,), 0.2).double()
    objective = ifl.IntegralIdentity(derivative=derivative)
    with torch.no_grad():
        torch.manual_seed(1)
        rate = objective.total_derivative(net, x, t, s, x)
        ends = []
        for sign in (1, -1):
            torch.manual_seed(1)
            ends.append(net(x + sign * 1e-4 * x, t + sign * 1e-4, s))
    assert torch.allclose(rate, (ends[0] - ends[1]) / 2e-4, atol=1e-4)


class Normalised(nn.Module):
    """An MLP in the plane with BatchNorm after each layer."""

    data_shape = (2,)

    def __init__(self, width=32):
        super().__init__()
        self.layers = nn.Sequential(
            *[
                part
                for i in (4, width, width)
                for part in (nn.Linear(i, width), nn.BatchNorm1d(width), nn.SiLU())
            ],
            nn.Linear(width, 2),
        )

    def forward(self, x, t, s):
        return self.layers(torch.cat([x, t[:, None], s[:, None]], dim=1))


@pytest.mark.parametrize(
    "name", ["consistency", "difference", "gap", "additivity", "terminal, difference"]
)
def test_batch_normalisation_learns_to_jump(name):
    """W2 of the data to their mean is 1.4; consistency training once ended there and beyond, at 2 after 500 steps."""
    torch.manual_seed(0)
    net, points = ifl.FlowMap(Normalised(), ifl.RectifiedFlow()), ifl.data.load("eight_gaussians")
    config = ifl.TrainConfig(steps=500, batch_size=128, progress=False, device="cpu", threads=1)
    run = ifl.fit(net, OBJECTIVES[name](), points, config)
    real = ifl.data.load("eight_gaussians", n=500, split="test").x
    assert ifl.metrics.w2(ifl.sample(run.model, 500).x, real) < 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_prediction_moves_running_statistics(name):
    """After a step they are what the call with gradient alone makes of them."""
    net, objective = model("BatchNorm").train(), OBJECTIVES[name]()
    calls = []
    net.net.register_forward_pre_hook(
        lambda _m, given: calls.append(given) if torch.is_grad_enabled() else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        objective.prepare(net, ifl.data.TensorData(data()))
        before = {key: value.clone() for key, value in net.named_buffers()}
        loss = objective(net, data()[:32], torch.Generator().manual_seed(0))
    after = {key: value.clone() for key, value in net.named_buffers()}
    loss.backward()  # autograd takes no offence at statistics that were put back
    other = model("BatchNorm").train()
    other(*calls[-1])
    for key, value in other.named_buffers():
        assert torch.equal(after[key], value) and not torch.equal(after[key], before[key]), key


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_statistics_stand_still_in_a_derivative(derivative):
    """As they do in sampling. Those of the batch would move with its rows, and one jump come out too narrow."""
    net, objective = model("BatchNorm").double(), ifl.IntegralIdentity(derivative=derivative)
    x = torch.randn(20, LENGTH, 1, dtype=torch.float64)
    t, s = torch.full((20,), 0.7).double(), torch.full((20,), 0.2).double()
    with torch.no_grad():
        net(x, t, s)
        ours = objective.total_derivative(net.train(), x, t, s, x)
        assert net.training and net.net.body[0][2].training
        assert torch.equal(ours, objective.total_derivative(net.eval(), x, t, s, x))
        assert not net.net.body[0][2].training


def test_matching_moves_no_running_statistics():
    """Its jumps have gradients, and are no prediction at the points that are trained on."""

    class Features(Series):
        def features_at(self, x, t, s, anchor=None, labels=None):
            return self.inner(torch.cat([x.flatten(1), t[:, None], s[:, None]], dim=1))[..., None]

    torch.manual_seed(0)
    teacher = ifl.FlowMap(Features(), ifl.RectifiedFlow())
    found = []
    for matching in (0.0, 1.0):
        net = model("BatchNorm").train()
        objective = ifl.FlowMapDistillation(teacher=teacher, matching=matching)
        objective.prepare(net, ifl.data.TensorData(data()))
        loss = objective(net, data()[:32], torch.Generator().manual_seed(0))
        loss.backward()
        found.append({key: value.clone() for key, value in net.named_buffers()})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert found[0]["net.body.0.2.num_batches_tracked"] == 1


def test_a_power_iteration_stands_still_in_a_difference():
    """Spectral normalisation moves its buffers in each call in training, and with them the weights."""
    torch.manual_seed(0)
    net = ifl.FlowMap(Series(), ifl.RectifiedFlow()).double().train()
    nn.utils.parametrizations.spectral_norm(net.net.inner)
    x = torch.randn(20, LENGTH, 1, dtype=torch.float64)
    t, s = torch.full((20,), 0.7).double(), torch.full((20,), 0.2).double()
    assert not network_state.is_pure(net)
    with torch.no_grad():
        rate = ifl.IntegralIdentity(derivative="difference").total_derivative(net, x, t, s, x)
        exact = ifl.IntegralIdentity(derivative="difference").total_derivative(
            net.eval(), x, t, s, x
        )
    assert float((rate - exact).square().mean().sqrt()) < 0.5 * float(exact.square().mean().sqrt())


@pytest.mark.parametrize(
    "kind, pure",
    [
        ("plain", True),
        ("LayerNorm", True),
        ("attention", True),
        ("dropout", False),
        ("BatchNorm", False),
        ("TransformerEncoder", False),
    ],
)
def test_what_is_pure(kind, pure):
    """Found out without a trace; what is not pure is not compiled."""
    net = model(kind).eval()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    assert network_state.is_pure(net) is pure
    assert all(objective().compiles(net) is pure for objective in OBJECTIVES.values())
    assert torch.equal(torch.get_rng_state(), before) and not net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_dropout_of_rate_zero_is_pure_until_it_is_not():
    net, objective = model("dropout", rate=0.0), ifl.IntegralIdentity()
    assert objective.compiles(net)
    for layer in net.net.body:
        layer[2].p = 0.1
    objective.prepare(net, ifl.data.TensorData(data()))
    assert not objective.compiles(net)


def test_a_network_that_takes_no_small_batch():
    """It cannot be examined, so it is called with care, and trains."""

    class Only32(Series):
        def forward(self, x, t, s):
            return super().forward(x.reshape(32, LENGTH, 1), t, s)

    torch.manual_seed(0)
    net = ifl.FlowMap(Only32(), ifl.RectifiedFlow())
    objective = ifl.IntegralIdentity(derivative="jvp", equal_share=0.5)
    objective.prepare(net, ifl.data.TensorData(data()))
    assert not objective.compiles(net)
    ours = objective(net, data()[:32], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    like = ifl.FlowMap(Series(), ifl.RectifiedFlow())
    theirs = objective(like, data()[:32], torch.Generator().manual_seed(0))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


# ---------------------------------------------------------------- where forward mode cannot go


def fallback(net, x, t, s, objective=None):
    """The derivative asked for in forward mode, by differences, and the warnings."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        objective = objective or ifl.IntegralIdentity(derivative="jvp")
        found = [objective.total_derivative(net, x, t, s, x) for _ in range(2)][-1]
        plain = ifl.IntegralIdentity(derivative="difference").total_derivative(net, x, t, s, x)
    return found, plain, [w for w in caught if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize(
    "kind, training, words",
    [
        (
            "attention",
            True,
            "Series (Trying to use forward AD with _scaled_dot_product",
        ),
        ("attention", False, "Series"),
        ("TransformerEncoder", False, "Series"),  # its fast path
    ],
)
def test_forward_mode_falls_back_with_one_line(kind, training, words):
    net = model(kind).train(training)
    x, t, s = torch.randn(20, LENGTH, 1), torch.full((20,), 0.7), torch.full((20,), 0.2)
    found, plain, caught = fallback(net, x, t, s)
    assert torch.equal(found, plain) and len(caught) == 1
    text = str(caught[0].message)
    assert words in text and text.startswith("forward mode cannot go through") and "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["dropout", "BatchNorm", "LayerNorm", "TransformerEncoder"])
def test_forward_mode_is_used_where_it_can(kind, training):
    """It gives what the difference gives, with the same masks and without moving statistics."""
    net = model(kind, rate=0.1).double().train(training)
    x = torch.randn(20, LENGTH, 1, dtype=torch.float64)
    t, s = torch.full((20,), 0.7).double(), torch.full((20,), 0.2).double()
    before = {key: value.clone() for key, value in net.named_buffers()}
    torch.manual_seed(1)
    found, plain, caught = fallback(net, x, t, s)
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())
    if kind == "TransformerEncoder" and not training:
        assert len(caught) == 1 and torch.equal(found, plain)  # its fast path cannot
    else:
        assert not caught and not torch.equal(found, plain)
        assert torch.allclose(found, plain, rtol=1e-3, atol=1e-3)


def test_the_fallback_is_found_before_the_first_step():
    """So that what is compiled is the difference; on a copy, whose warning is the only one."""
    net, objective = model("attention"), ifl.IntegralIdentity(derivative="jvp")
    with pytest.warns(RuntimeWarning, match="forward mode cannot go through Series") as caught:
        objective.prepare(net, ifl.data.TensorData(data()))
        assert not objective.uses_jvp(net, torch.device("cpu"))
        objective(net, data()[:32], torch.Generator().manual_seed(0))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ifl.IntegralIdentity(derivative="difference").prepare(net, ifl.data.TensorData(data()))
        assert ifl.IntegralIdentity(derivative="jvp").uses_jvp(net, torch.device("cpu"))


def test_the_fallback_of_a_gradient_is_found_where_none_is_recorded():
    """The trial takes a gradient of its own: without one, every network would seem to need the fallback."""
    objective, found = ifl.TerminalVelocity(derivative="jvp"), {}
    for kind in ("plain", "TransformerEncoder"):
        net = model(kind)
        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            objective.prepare(net, ifl.data.TensorData(data()))
        assert all(w.grad is None for w in net.parameters())
        found[kind] = objective.uses_jvp(net, torch.device("cpu")), len(caught)
    assert found == {"plain": (True, 0), "TransformerEncoder": (False, 1)}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), ValueError("bad shape")])
def test_other_faults_are_no_obstacle(error):
    """Neither a lack of memory nor a network's own fault is taken for something about forward mode."""

    class Faulty(Series):
        def forward(self, x, t, s):
            raise error

    net = ifl.FlowMap(Faulty(), ifl.RectifiedFlow())
    x, t = torch.randn(20, LENGTH, 1), torch.ones(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(type(error)) as caught:
            ifl.IntegralIdentity(derivative="jvp").total_derivative(net, x, t, t, x)
    assert one_line(caught) == str(error)
    assert ifl.IntegralIdentity(derivative="jvp").uses_jvp(net, torch.device("cpu"))
