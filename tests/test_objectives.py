"""Objectives against the Gaussian whose average velocity is known: it is their fixed point, and nothing near it is."""

import math

import pytest
import torch
from exact import MEAN, STD, GaussianNet, column, one_line, randomise, spread
from torch import nn

from iflow_lib.data import TensorData
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP, UNet
from iflow_lib.objectives import (
    Batch,
    ConsistencyTraining,
    Distillation,
    EnergyMatching,
    FlowMapDistillation,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    Objective,
    TerminalVelocity,
    X0Regression,
    paired_energy_distance,
)
from iflow_lib.objectives.base import on_line
from iflow_lib.objectives.gap import gap_at
from iflow_lib.objectives.two_time import BY_SHAPE
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving
from iflow_lib.training import TrainConfig, fit
from iflow_lib.training.runtime import autocast

ALL = [RectifiedFlow(), VarianceExploding(), PoissonFlow(aug_dim=8), VariancePreserving()]
paths = pytest.mark.parametrize("path", ALL, ids=lambda p: p.name)
gaussian_paths = pytest.mark.parametrize(
    "path", [p for p in ALL if p.name != "PoissonFlow"], ids=lambda p: p.name
)


def triples(n=400, seed=0):
    """x_t of the Gaussian, t and s < t on the line, corners included."""
    g = torch.Generator().manual_seed(seed)
    s, t = torch.rand(2, n, generator=g, dtype=torch.float64).sort(0).values
    t[:20], s[10:30] = 1.0, 0.0
    z = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return column(1 - t, z) * MEAN + column(spread(1 - t, t), z) * z, t, s


@pytest.mark.parametrize("derivative, tolerance", [("jvp", 1e-6), ("difference", 1e-3)])
def test_the_exact_average_velocity_obeys_the_identity(derivative, tolerance):
    """u = v - (t - s) du/dt, with the objective's own du/dt; a wrong u does not obey it."""
    x, t, s = triples()
    inside = (
        (t + 0.01 < 1) & (t - s > 0.01) if derivative == "difference" else t >= s
    )  # away from its one-sided ends
    objective = IntegralIdentity(derivative=derivative)

    def residual(net):
        model = FlowMap(net, RectifiedFlow())
        with torch.no_grad():
            v = GaussianNet()(x, t, t)
            rate = objective.total_derivative(model, x, t, s, v)
            return (model(x, t, s) - v + (t - s)[:, None] * rate)[inside].abs().max()

    exact, wrong = GaussianNet(), GaussianNet()
    assert float(residual(exact)) < tolerance
    with torch.no_grad():
        wrong.tilt.fill_(0.1)
    assert float(residual(wrong)) > 0.03


def test_difference_at_the_ends_of_the_line():
    """One-sided near s: first order in the step there, so held to a looser bound."""
    x, t, s = triples()
    model = FlowMap(GaussianNet(), RectifiedFlow())
    with torch.no_grad():
        v = model(x, t, t)
        exact, rough = (
            IntegralIdentity(derivative=name).total_derivative(model, x, t, s, v)
            for name in ("jvp", "difference")
        )
    error = (t - s)[:, None] * (exact - rough)
    assert float(error.abs().max()) < 0.02


def test_a_difference_survives_bfloat16():
    """Under autocast too it is taken in float32: in bfloat16, half of it and more would be rounding."""
    torch.manual_seed(0)
    model = FlowMap(randomise(MLP(dim=2, hidden=32, layers=2)), RectifiedFlow())
    x, t, s = (a.float() for a in triples())
    inside = (t + 0.01 < 1) & (t - s > 0.01)
    plain, mixed = [], []
    with torch.no_grad():
        for found, precision in ((plain, "float32"), (mixed, "bfloat16")):
            with autocast(torch.device("cpu"), precision):
                found += [
                    IntegralIdentity(derivative=d).total_derivative(model, x, t, s, x)
                    for d in ("jvp", "difference")
                ]
    scale = plain[0][inside].square().mean().sqrt()
    for rate in (plain[1], mixed[1]):
        assert float((rate - plain[0])[inside].abs().max() / scale) < 0.02
    assert float((mixed[0] - plain[0]).abs().max()) > 0  # autocast was on


def test_the_derivative_is_chosen_by_the_device():
    model = FlowMap(GaussianNet(), RectifiedFlow())
    x, t, s = triples()
    with torch.no_grad():
        found = {
            d: IntegralIdentity(derivative=d).total_derivative(model, x, t, s, x)
            for d in ("auto", "jvp", "difference")
        }
    assert torch.equal(found["auto"], found["difference"]) and not torch.equal(
        found["auto"], found["jvp"]
    )


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_total_derivative_follows_the_given_velocity(derivative):
    """d_t u + v . grad_x u with s held: against autograd, for a velocity that is not the model's."""
    net = randomise(MLP(dim=2, hidden=16, layers=2).double())
    x, t, s = triples(50)
    keep = (t < 0.98) & (t - s > 0.02)
    x, t, s = x[keep].requires_grad_(), t[keep].requires_grad_(), s[keep]
    velocity = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    rate = IntegralIdentity(derivative=derivative, step=1e-3).total_derivative(
        FlowMap(net, RectifiedFlow()), x, t, s, velocity
    )
    for i in range(2):
        grad_x, grad_t = torch.autograd.grad(net(x, t, s)[:, i].sum(), (x, t))
        expected = grad_t + (grad_x * velocity).sum(1)
        assert float((rate[:, i] - expected).abs().max().detach()) < (
            1e-9 if derivative == "jvp" else 1e-3
        )


# ---------------------------------------------------------------- fixed point of the whole loss


def gradient_scores(objective, path, net, batches=40, size=1500):
    """Mean of the loss' gradient in each of GaussianNet's parameters, in its own standard errors."""
    model, g, rows = FlowMap(net, path), torch.Generator().manual_seed(0), []
    for _ in range(batches):
        x_0 = MEAN + STD * torch.randn(size, 2, generator=g, dtype=torch.float64)
        grads = torch.autograd.grad(
            objective(model, x_0, g), list(net.parameters()), allow_unused=True
        )
        rows.append(
            torch.stack([torch.zeros((), dtype=torch.float64) if d is None else d for d in grads])
        )
    rows = torch.stack(rows)
    return rows.mean(0) / (rows.std(0) / math.sqrt(batches)).clamp(
        min=1e-6
    )  # times are float32: rounding is not a push


OBJECTIVES = [
    FlowMatching(),
    IntegralAdditivity(),
    IntegralAdditivity(equal_share=0.3, time_density="uniform"),
    *[
        IntegralIdentity(tangent=tangent, derivative=derivative, power=0.0)
        for tangent in ("network", "conditional")
        for derivative in ("jvp", "difference")
    ],
    *[IntegralIdentity(tangent=tangent, gap=1e-3) for tangent in ("network", "conditional")],
    TerminalVelocity(derivative="jvp"),
    # with the default share of pairs that end at the data, the error of the difference shows in a direction that has next to no
    # noise: the rounding of float32 times, which a smaller step makes larger, and truncation, which a larger one does
    TerminalVelocity(derivative="difference", end_share=0.1),
]


@gaussian_paths
@pytest.mark.parametrize(
    "objective",
    OBJECTIVES,
    ids=lambda o: "-".join(
        [o.name]
        + [str(getattr(o, name)) for name in ("tangent", "derivative", "gap") if hasattr(o, name)]
    ),
)
def test_the_truth_is_the_fixed_point(objective, path):
    """At the exact average velocity the gradient has mean zero; each displaced parameter is pushed back."""
    scores = gradient_scores(objective, path, GaussianNet())
    assert float(scores.abs().max()) < 4, scores
    assert float(scores[:2].abs().min()) > 0
    for i, name in enumerate(
        ["gain", "shift", "tilt"][: 2 if objective.name == "FlowMatching" else 3]
    ):
        for sign in (1, -1):
            net = GaussianNet()
            with torch.no_grad():
                getattr(net, name).add_(0.3 * sign)
            pushed = gradient_scores(objective, path, net, batches=10)
            assert sign * float(pushed[i]) > 6, (name, sign, pushed)


@gaussian_paths
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_truth_is_the_fixed_point_with_a_teacher(path, derivative):
    """Its targets are without noise: at the truth the loss itself is zero, and each displaced parameter is pushed back."""
    teacher = FlowMap(GaussianNet(), path).requires_grad_(False)
    objective = FlowMapDistillation(teacher=teacher, derivative=derivative)
    x_0 = MEAN + STD * torch.randn(
        500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for name in ("", "gain", "shift", "tilt"):
        for sign in (1, -1):
            model = FlowMap(GaussianNet(), path)
            with torch.no_grad():
                if name:
                    getattr(model.net, name).add_(0.1 * sign)
            objective.prepare(model, None)
            loss = objective(model, x_0, torch.Generator().manual_seed(1))
            assert (float(loss.detach()) < 1e-4) == (not name), (name, loss)
            if name:
                assert sign * float(torch.autograd.grad(loss, getattr(model.net, name))[0]) > 0
    assert objective.frozen_teacher.net.calls and all(p.grad is None for p in teacher.parameters())


def test_a_teacher_that_does_not_fit():
    teacher = FlowMap(GaussianNet(), RectifiedFlow())
    for model, words in (
        (teacher, "the teacher must be another model"),
        (FlowMap(GaussianNet(), PoissonFlow(8)), "on the same path"),
        (FlowMap(GaussianNet((3,)), RectifiedFlow()), "on the same path and data"),
    ):
        with pytest.raises(ValueError) as error:
            FlowMapDistillation(teacher=teacher).prepare(model, None)
        assert words in one_line(error)
    with pytest.raises(ValueError) as error:
        FlowMapDistillation(teacher=teacher).prepare(FlowMap(Anchored(), RectifiedFlow()), None)
    assert "a teacher's velocity knows nothing of anchors" in one_line(error)
    for wrong, words in (
        (teacher.net, "teacher must be a FlowMap with a trained velocity, got a GaussianNet"),
        (None, "got a NoneType"),
        (FlowMap(Anchored(), RectifiedFlow()), "the teacher's network takes an anchor"),
    ):
        with pytest.raises(ValueError) as error:
            FlowMapDistillation(teacher=wrong)
        assert words in one_line(error)
    with pytest.raises(ValueError) as error:
        FlowMapDistillation(teacher=teacher)(
            FlowMap(GaussianNet(), RectifiedFlow()), torch.ones(5, 2)
        )
    assert "call prepare first" in one_line(error)
    first, same, other = (FlowMap(MLP(dim=2, hidden=8), RectifiedFlow()) for _ in range(3))
    same.load_state_dict(first.state_dict())
    first, same, other = (
        FlowMapDistillation(teacher=t).config()["teacher"] for t in (first, same, other)
    )
    assert first == same != other and first["network"] == "MLP"


class Anchored(GaussianNet):
    """Takes an anchor, and leans on it by ``lean``: 0 is the truth."""

    anchor = True

    def __init__(self):
        super().__init__()
        self.lean = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.anchors = []

    def forward(self, x, t, s, anchor):
        self.anchors.append(anchor)
        return super().forward(x, t, s) + self.lean * (t - s)[:, None] * anchor


@gaussian_paths
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_truth_is_the_fixed_point_with_an_anchor_too(path, derivative):
    objective = IntegralIdentity(anchor="self", derivative=derivative)
    net = Anchored()
    assert float(gradient_scores(objective, path, net).abs().max()) < 4
    for sign in (1, -1):
        net = Anchored()
        with torch.no_grad():
            net.lean.add_(0.3 * sign)
        assert sign * float(gradient_scores(objective, path, net, batches=10)[-1]) > 6


def test_self_anchor_is_the_unanchored_jump_or_nothing():
    net, objective = Anchored(), IntegralIdentity(anchor="self", equal_share=0.0)
    objective(
        FlowMap(net, RectifiedFlow()),
        torch.randn(400, 2).double(),
        torch.Generator().manual_seed(0),
    )
    first, used = net.anchors[0], net.anchors[-1]
    assert float(first.abs().max()) == 0 and len(net.anchors) >= 3
    empty = (used == 0).all(1)
    assert 0.4 < float(empty.double().mean()) < 0.6 and not used.requires_grad
    for rule, anchored in (("self", False), (None, True)):
        net = Anchored() if anchored else GaussianNet()
        with pytest.raises(ValueError, match="needs a network built with anchor="):
            IntegralIdentity(anchor=rule).prepare(
                FlowMap(net, RectifiedFlow()), TensorData(torch.zeros(5, 2))
            )


@gaussian_paths
def test_consistency_training_is_near_its_fixed_point_at_the_truth(path):
    """The last stage's gap between t and r leaves a small bias: a twentieth of the push on a displaced parameter."""

    def mean_gradient(name=None, change=0.0):
        net, g = GaussianNet(), torch.Generator().manual_seed(0)
        if name:
            with torch.no_grad():
                getattr(net, name).add_(change)
        x_0 = MEAN + STD * torch.randn(60_000, 2, generator=g, dtype=torch.float64)
        loss = ConsistencyTraining(c=1.0)(FlowMap(net, path), Batch(x_0, step=79, steps=80), g)
        return torch.stack(
            [
                d if d is not None else torch.zeros(())
                for d in torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
            ]
        )

    at_truth = mean_gradient()
    for i, name in enumerate(["gain", "shift", "tilt"]):
        for change in (0.3, -0.3):
            pushed = mean_gradient(name, change)[i]
            assert (
                float(pushed) * change > 0 and abs(float(at_truth[i])) < abs(float(pushed)) / 5
            ), (name, at_truth, pushed)


@paths
def test_consistency_levels_follow_ect(path):
    objective, model = ConsistencyTraining(start_share=0.25), FlowMap(MLP(dim=2), path)
    for stage in (0, 3, 7):
        high, low = objective.levels(model, 4000, stage, torch.Generator().manual_seed(0), "cpu")
        expected = high * (1 - 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-high))).clamp(min=0)
        torch.testing.assert_close(low, expected)
        assert bool(((low >= 0) & (low < high)).all())
        highest = (
            80
            if path.t_max == 80
            else (1 - path.tau_max) and path.tau_max / (1 - path.tau_max) or 9999
        )
        assert abs(float((high > 0.99 * highest).float().mean()) - 0.25) < 0.04
        middle = high[high < 0.9 * float(high.max())].log()
        assert abs(float(middle.mean()) + 1.1) < 0.15 and abs(float(middle.std()) - 2) < 0.15


def test_distillation_regresses_on_the_pairs():
    z, x_0 = torch.randn(2, 50, 2, dtype=torch.float64)
    net = GaussianNet()
    model = FlowMap(net, RectifiedFlow())
    loss = Distillation()(model, Batch(x_0, noise=z))
    end = model.jump(x=z, t=torch.ones(50), s=torch.zeros(50))
    assert float(loss.detach()) == pytest.approx(float((end - x_0).square().mean().detach()))
    with pytest.raises(ValueError, match="reflow"):
        Distillation()(model, x_0)
    with pytest.raises(
        ValueError, match="pure noise, such as RectifiedFlow; VarianceExploding does not"
    ):
        Distillation().prepare(FlowMap(net, VarianceExploding()), TensorData(torch.zeros(5, 2)))


def test_coupled_noise_is_used():
    z, x_0 = torch.zeros(50, 2, dtype=torch.float64), torch.ones(50, 2, dtype=torch.float64)
    seen = []

    class Spy(GaussianNet):
        def forward(self, x, t, s):
            seen.append((x, t))
            return super().forward(x, t, s)

    FlowMatching()(
        FlowMap(Spy(), RectifiedFlow()), Batch(x_0, noise=z), torch.Generator().manual_seed(0)
    )
    x, t = seen[0]
    torch.testing.assert_close(x, (1 - t)[:, None].expand(50, 2).double())


def test_value_of_flow_matching_at_the_truth():
    """The loss left at the exact velocity is Var(z - x_0 | x_t) = std^2 + 1 - cov^2 / S^2, averaged over times."""
    path, g = RectifiedFlow(), torch.Generator().manual_seed(0)
    x_0 = MEAN + STD * torch.randn(100_000, 2, generator=g, dtype=torch.float64)
    objective = FlowMatching(velocity="pair")
    loss = float(objective(FlowMap(GaussianNet(), path), x_0, g).detach())
    t = path.sample_times(100_000, generator=g).double()
    expected = float((STD**2 + 1 - (t - (1 - t) * STD**2) ** 2 / spread(1 - t, t) ** 2).mean())
    assert abs(loss / expected - 1) < 0.02


class Slope(nn.Module):
    """u = c (t - s), for which the loss can be differentiated by hand."""

    data_shape = (2,)

    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x, t, s):
        return self.c * (t - s)[:, None] + 0 * x


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_no_gradient_through_the_target(derivative):
    """With u = c (t - s) the error is 2 c (t - s) - (z - x_0), one c of which is in the target: the gradient is half
    the slope of the loss in c."""
    model = FlowMap(Slope(), RectifiedFlow())
    objective = IntegralIdentity(equal_share=0.0, power=0.0, derivative=derivative)

    def loss(c):
        with torch.no_grad():
            model.net.c.fill_(c)
        g = torch.Generator().manual_seed(0)
        return objective(model, torch.randn(500, 2, generator=g, dtype=torch.float64), g)

    # the loss is quadratic in c, so a wide difference is exact; a narrow one would show the rounding of float32 times
    slope = float((loss(1.0) - loss(0.0)).detach())
    gradient = float(torch.autograd.grad(loss(0.5), model.net.c)[0])
    assert gradient == pytest.approx(slope / 2, rel=1e-3) and abs(slope) > 0.1


# ---------------------------------------------------------------- the gap and its limits


class Lively(nn.Module):
    """Smooth in x, t and s; with ``ends`` False it does not know s. Times in the type of x."""

    data_shape = (2,)

    def __init__(self, ends=True):
        super().__init__()
        self.ends, self.net = ends, randomise(MLP(dim=2, hidden=16, layers=2).double(), scale=0.2)

    def forward(self, x, t, s):
        return self.net(x, t.to(x), s.to(x) if self.ends else t.to(x))


class Told(Lively):
    """Knows three classes, and takes an anchor if ``anchor``."""

    classes = 3

    def __init__(self, anchor):
        super().__init__()
        self.anchor = anchor
        self.net = randomise(
            MLP(dim=2, hidden=16, layers=2, classes=3, anchor=anchor).double(), scale=0.2
        )

    def forward(self, x, t, s, **more):
        return self.net(x, t.to(x), s.to(x), **more)


class OfOnePoint(Lively):
    """``u(x, t, t)`` is the velocity of data that are MEAN alone, (x - MEAN) / t."""

    def forward(self, x, t, s):
        straight = (x - MEAN) / column(t, x)
        return straight + column(t - s, x) * super().forward(x, t, s)


def drawn_pairs(n=200, k=200, at_data=False, seed=0):
    """Arguments of a loss, float64: the first k of n rows have s < t, or s = 0."""
    g = torch.Generator().manual_seed(seed)
    x_0, z = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    t = 0.05 + 0.95 * torch.rand(n, generator=g, dtype=torch.float64)
    s = torch.rand(k, generator=g, dtype=torch.float64) * t[:k] * (not at_data)
    return {"x_0": x_0, "z": z, "t": t, "s": s, "labels": None}


def loss_and_gradient(model, loss):
    weights = list(model.parameters())
    grads = torch.autograd.grad(loss, weights)
    return float(loss.detach()), torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("kind", [IntegralIdentity, IntegralAdditivity, TerminalVelocity])
def test_settings_by_the_shape_of_the_data(kind):
    """What is given stays; what is not is another thing for images; and the run says what it was."""
    by_hand = _by_difference(kind)
    for shape, place in (((2,), 0), ((6, 3), 0), ((1, 8, 8), 1)):
        own = kind(**by_hand).suited(shape)
        assert {name: getattr(own, name) for name in BY_SHAPE} == {
            name: values[place] for name, values in BY_SHAPE.items()
        }
        assert own.suited((9,)) == own
        given = kind(**by_hand, equal_share=0.125, power=0.25, time_density=None).suited(shape)
        assert (given.equal_share, given.power, given.time_density) == (0.125, 0.25, None)
    net = UNet(size=8, width=8, blocks=1)
    config = TrainConfig(1, batch_size=8, device="cpu", progress=False)
    run = fit(FlowMap(net, RectifiedFlow()), kind(**by_hand), torch.randn(8, 1, 8, 8), config)
    assert run.manifest["objective"]["power"] == BY_SHAPE["power"][1]
    with pytest.raises(ValueError, match="power must be"):
        kind(power="much")


def test_the_base_of_matching_is_suited_too():
    assert EnergyMatching().suited((1, 8, 8)).base.power == BY_SHAPE["power"][1]
    assert EnergyMatching().suited((2,)).base.power == BY_SHAPE["power"][0]


def test_a_draw_by_hand_is_that_of_the_shape():
    """Without fit, which would have filled the settings in."""
    model, x_0 = FlowMap(UNet(size=8, width=8, blocks=1), RectifiedFlow()), torch.randn(8, 1, 8, 8)
    objective = IntegralIdentity()
    assert len(objective.draw(model, Batch(x_0), None)["s"]) == 2
    loss, expected = (
        one(model, x_0, torch.Generator().manual_seed(0))
        for one in (objective, objective.suited((1, 8, 8)))
    )
    assert loss == expected


def test_a_gap_unless_a_derivative_is_asked_for():
    assert IntegralIdentity().gap == IntegralIdentity().config()["gap"] == 0.02
    for asked in ({"derivative": "jvp"}, {"derivative": "difference"}, {"step": 0.01}):
        assert IntegralIdentity(**asked).gap is None
    assert IntegralIdentity(gap=None).gap is None and IntegralIdentity(gap=0.5).gap == 0.5
    assert IntegralIdentity(**IntegralIdentity().config()) == IntegralIdentity()


def gap_loss(model, drawn, gap, objective):
    a = torch.full_like(drawn["s"], gap)
    return loss_and_gradient(model, objective.loss(model, **drawn, gap=a)[0])


def agree(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < tolerance


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("tangent", ["network", "conditional"])
def test_what_a_gap_compares(tangent, power, anchored):
    """By the loss written out, with classes, some unknown, and anchors: |e / a|^2, with the gradient of |e|^2 / a."""
    drawn, a, k = drawn_pairs(k=120), 0.3, 120
    x_0, z, t = drawn["x_0"], drawn["z"], drawn["t"]
    labels = drawn["labels"] = torch.arange(200) % 4 - 1
    known = {"known": torch.arange(200) % 3 > 0} if anchored else {}
    model = FlowMap(Told(anchored), RectifiedFlow())
    anchor = "self" if anchored else None
    objective = IntegralIdentity(gap=a, tangent=tangent, power=power, anchor=anchor)
    found = gap_loss(model, drawn | known, a, objective)

    s = torch.cat([drawn["s"], t[k:]])
    x_t = column(1 - t, z) * x_0 + column(t, z) * z
    with torch.no_grad():
        given = None
        if anchored:
            nothing = torch.zeros_like(x_t)
            end = x_t - column(t, z) * model(x_t, t, 0 * t, nothing, labels)
            given = torch.where(known["known"][:, None], end, nothing)
        w = model(x_t, t, t, given, labels) if tangent == "network" else z - x_0
        m, x_m = t - a * (t - s), x_t - a * column(t - s, z) * w
        target = a * (z - x_0) + (1 - a) * model(x_m, m, s, given, labels)
        target[k:] = (z - x_0)[k:]
    divisor = torch.full_like(t, a).masked_fill_(torch.arange(200) >= k, 1.0)
    square = (model(x_t, t, s, given, labels) - target).square().sum(1) / divisor
    size = (square / divisor).detach()
    weight = (size + 1e-3) ** -power
    _, gradient = loss_and_gradient(model, (weight * square).mean())
    agree(found, (float((weight * size).mean()), gradient), 1e-12)


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("tangent", ["network", "conditional"])
def test_a_gap_of_one_is_flow_matching(tangent, power):
    """At all pairs: exactly where the network does not know s, and with the velocity as target where it does."""
    objective, drawn = IntegralIdentity(gap=1.0, tangent=tangent, power=power), drawn_pairs(k=120)
    model = FlowMap(Lively(ends=False), RectifiedFlow())
    plain = {name: drawn[name] for name in ("x_0", "z", "t", "labels")}
    if not power:
        flow_matching = 2 * FlowMatching().loss(model, **plain)[0]  # over both elements
        agree(
            gap_loss(model, drawn, 1.0, objective), loss_and_gradient(model, flow_matching), 1e-12
        )
    model = FlowMap(Lively(), RectifiedFlow())
    x_t = (
        column(1 - drawn["t"], drawn["x_0"]) * drawn["x_0"]
        + column(drawn["t"], drawn["z"]) * (drawn["z"])
    )
    s = torch.cat([drawn["s"], drawn["t"][120:]])
    error = model(x_t, drawn["t"], s) - (drawn["z"] - drawn["x_0"])
    regression = loss_and_gradient(model, objective.weighted(error))
    agree(gap_loss(model, drawn, 1.0, objective), regression, 1e-12)


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("tangent", ["network", "conditional"])
def test_a_small_gap_is_the_identity(tangent, power):
    """First order in the gap: ten times closer at a tenth of it, down to rounding."""
    model, drawn = FlowMap(Lively(), RectifiedFlow()), drawn_pairs(k=120)
    identity = IntegralIdentity(derivative="jvp", tangent=tangent, power=power)
    exact = loss_and_gradient(model, identity.loss(model, **drawn)[0])
    objective, apart = IntegralIdentity(gap=0.1, tangent=tangent, power=power), []
    for gap in (1e-3, 1e-4, 1e-5):
        found = gap_loss(model, drawn, gap, objective)
        apart.append(float((found[1] - exact[1]).norm() / exact[1].norm()))
        agree(found, exact, 20 * gap)
    assert apart[1] == pytest.approx(apart[0] / 10, rel=0.1)
    assert apart[2] == pytest.approx(apart[1] / 10, rel=0.1)


@pytest.mark.parametrize("tangent", ["network", "conditional"])
@pytest.mark.parametrize("gap", [0.5, 0.03])
def test_with_every_end_at_the_data_a_gap_is_consistency_training(tangent, gap):
    """t a |e / a| is the distance of two jumps to the data, f(x_t, t) and sg f(x_m, m). x_m is that of consistency
    training with the conditional velocity; with the network's, where that is the velocity of the data."""
    drawn = drawn_pairs(at_data=True)
    net = Lively()
    if tangent == "network":
        net, drawn["x_0"] = OfOnePoint(), torch.full_like(drawn["x_0"], MEAN)
    model, t = FlowMap(net, RectifiedFlow()), drawn["t"]
    objective, zero = IntegralIdentity(gap=gap, tangent=tangent), torch.zeros_like(t)

    def end(t):
        x = column(1 - t, drawn["z"]) * drawn["x_0"] + column(t, drawn["z"]) * drawn["z"]
        return x - column(t, x) * model(x, t, zero)

    with torch.no_grad():
        target = end((1 - gap) * t)
    jumps = loss_and_gradient(
        model, ((end(t) - target) / column(t, target)).square().sum(1).mean() / gap
    )
    value, gradient = gap_loss(model, drawn, gap, objective)
    agree((gap * value, gradient), jumps, 1e-9)


def test_schedules_of_the_gap():
    assert [gap_at(0.3, step, 10) for step in (0, 9)] == [0.3, 0.3] and gap_at(0.3, 0, 1) == 0.3
    soflow = [gap_at(("geometric", 1.0, 1e-4), step, 5) for step in range(5)]
    assert soflow == pytest.approx([1, 0.1, 0.01, 1e-3, 1e-4])
    alpha = [gap_at(("sigmoid", 25, 0.005), step, 101) for step in range(101)]
    assert alpha[0] == alpha[28] == 1 and alpha[-1] == alpha[72] == 0.005
    assert alpha[50] == pytest.approx(0.5) and alpha == sorted(alpha, reverse=True)
    assert alpha[40] == pytest.approx(1 / (1 + math.exp(-2.5)))
    assert gap_at(("sigmoid", 1e6, 0.005), 0, 2) == 1  # without overflow
    objective, model = IntegralIdentity(gap=("geometric", 0.5, 0.1)), FlowMap(Lively(), ALL[0])
    for step, gap in ((0, 0.5), (2, 0.1)):
        batch = Batch(torch.randn(10, 2), step=step, steps=3)
        drawn = objective.draw(model, batch, None)
        assert drawn["gap"].tolist() == pytest.approx([gap] * 5) and len(drawn["s"]) == 5
    with pytest.raises(ValueError) as error:
        objective(model, torch.randn(10, 2))
    assert "a training of at least two steps, not 1" in one_line(error)
    with pytest.raises(ValueError) as error:
        config = TrainConfig(steps=1, batch_size=10, device="cpu", progress=False)
        fit(FlowMap(MLP(dim=2), ALL[0]), objective, torch.randn(20, 2), config)
    assert "a training of at least two steps, not 1" in one_line(error)


@pytest.mark.parametrize("gap", [0.02, ("sigmoid", 25, 0.05), ("geometric", 1.0, 0.02)])
def test_a_training_with_a_gap(gap):
    """Its settings survive a manifest, and the loss is finite from the first step to the last."""
    objective = IntegralIdentity(gap=gap, power=0.75, tangent="conditional")
    assert IntegralIdentity(**objective.config()) == objective
    config = TrainConfig(steps=30, batch_size=16, device="cpu", progress=False, log_every=1)
    run = fit(FlowMap(MLP(dim=2, hidden=8), ALL[2]), objective, torch.randn(40, 2), config)
    assert run.history.loss.map(math.isfinite).all() and run.model.learned == "jump"


# ---------------------------------------------------------------- the derivative at the end


@pytest.mark.parametrize("derivative, tolerance", [("jvp", 1e-6), ("difference", 2e-3)])
def test_the_exact_average_velocity_obeys_the_terminal_velocity(derivative, tolerance):
    """u - (t - s) d_s u = v(x_s, s), with the objective's own d_s u; a wrong u does not obey it."""
    x, t, s = triples()
    objective = TerminalVelocity(derivative=derivative)

    def residual(net):
        model = FlowMap(net, RectifiedFlow())
        with torch.no_grad():
            u, rate = objective.end_derivative(model, x, t, s)
            arrival = GaussianNet()(x - (t - s)[:, None] * u, s, s)
            assert float((u - net(x, t, s)).abs().max()) < 1e-5
            return (u - (t - s)[:, None] * rate - arrival)[t - s > 0.01].abs().max()

    exact, wrong = GaussianNet(), GaussianNet()
    assert float(residual(exact)) < tolerance
    with torch.no_grad():
        wrong.tilt.fill_(0.1)
    assert float(residual(wrong)) > 0.03


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_what_terminal_velocity_differentiates(derivative):
    """u and d_s u, and not v: against autograd by the loss written out, with classes, some unknown."""
    model, drawn = FlowMap(Told(anchor=False), RectifiedFlow()), drawn_pairs(k=120)
    labels = drawn["labels"] = torch.arange(200) % 4 - 1
    objective = TerminalVelocity(derivative=derivative, step=1e-4)
    found = loss_and_gradient(model, objective.loss(model, **drawn)[0])
    x_0, z, t = drawn["x_0"], drawn["z"], drawn["t"]
    s = torch.cat([drawn["s"], t[120:]]).requires_grad_()
    x_t = column(1 - t, z) * x_0 + column(t, z) * z
    u = model(x_t, t, s, labels=labels)
    rates = [torch.autograd.grad(u[:, i].sum(), s, create_graph=True)[0] for i in range(2)]
    rate = torch.stack(rates, dim=1)
    with torch.no_grad():
        arrival = model(x_t - column(t - s, z) * u, s, s, labels=labels)
    pairs = (u - column(t - s, z) * rate - arrival)[:120]
    error = torch.cat([pairs, (u - (z - x_0))[120:]])
    agree(
        found,
        loss_and_gradient(model, error.square().sum(1).mean()),
        1e-9 if derivative == "jvp" else 2e-3,
    )


# ---------------------------------------------------------------- what the network is asked


@paths
@pytest.mark.parametrize(
    "equal, start, end", [(0.5, 0.1, 0.1), (0.0, 0.0, 0.0), (0.25, 0.5, 0.25), (1.0, 0.3, 0.3)]
)
def test_times_and_their_shares(path, equal, start, end):
    objective, n = IntegralIdentity(equal_share=equal, start_share=start, end_share=end), 4000
    model = FlowMap(MLP(dim=2), path)
    t, s = objective.times(model, n, torch.Generator().manual_seed(0), "cpu")
    assert t.shape == s.shape == (n,) and bool(((s >= 0) & (s <= t)).all())
    assert float(t.max()) <= path.tau_max * (1 + 1e-6)
    k = n - round(equal * n)
    assert bool((t[k:] == s[k:]).all())
    if k:
        assert float((t[:k] == s[:k]).float().mean()) < 0.001
        # the rest of the density may reach tau_max or 0 by itself, but rarely
        margin = 4 * (0.25 / k) ** 0.5
        assert (
            abs(float((t[:k] >= path.tau_max * (1 - 1e-6)).float().mean()) - start) < margin + 0.02
        )
        assert abs(float((s[:k] == 0).float().mean()) - end) < margin + 0.02
    again = objective.times(model, n, torch.Generator().manual_seed(0), "cpu")
    assert torch.equal(again[0], t) and torch.equal(again[1], s)


@paths
@pytest.mark.parametrize(
    "objective",
    [
        FlowMatching(),
        IntegralIdentity(),
        IntegralIdentity(derivative="jvp"),
        IntegralIdentity(equal_share=1.0),
        IntegralIdentity(equal_share=0.0),
        IntegralIdentity(gap=0.05),
        IntegralIdentity(gap=1.0, tangent="conditional"),
        IntegralAdditivity(),
        TerminalVelocity(derivative="difference"),
        TerminalVelocity(derivative="jvp"),
        ConsistencyTraining(),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "build",
    [lambda: MLP(dim=3, hidden=8, layers=2), lambda: UNet(channels=1, size=8, width=8, blocks=1)],
    ids=["MLP", "UNet"],
)
def test_one_step_of_every_objective(objective, path, build):
    """A finite scalar with gradients for every weight; seeded by the generator alone; only times 0 <= s <= t <= 1, but for
    the difference's one step beyond."""
    central = isinstance(objective, IntegralIdentity) and objective.gap is None
    latest = 1 + (objective.step + 1e-6 if central and objective.derivative != "jvp" else 0)
    at_end = isinstance(objective, TerminalVelocity) and objective.derivative != "jvp"
    earliest = -objective.step if at_end else 0

    class Watch(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.data_shape = net, net.data_shape

        def forward(self, x, t, s):
            if type(t) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(t):
                assert (
                    bool(((s >= earliest) & (s <= t) & (t <= latest)).all())
                    and x.shape[1:] == self.data_shape
                )
            return self.net(x, t, s)

    model = FlowMap(Watch(randomise(build(), scale=0.1)), path)
    losses = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        g = torch.Generator().manual_seed(0)
        x_0 = torch.randn(17, *model.data_shape, generator=g)
        losses.append(objective(model, x_0, g))
    assert losses[0].ndim == 0 and bool(torch.isfinite(losses[0])) and torch.equal(*losses)
    losses[0].backward()
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters()
    )
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_power_weighs_large_errors_down():
    """Each example's share is e / (e + 1e-3)^power: with power 1 nearly one, whatever the error."""
    model = FlowMap(MLP(dim=2), RectifiedFlow())
    losses = {}
    for scale in (1, 100):
        for power in (0.0, 0.5, 1.0):
            g = torch.Generator().manual_seed(0)
            x_0 = scale * torch.randn(2000, 2, generator=g)
            losses[scale, power] = float(
                IntegralIdentity(power=power, velocity="pair")(model, x_0, g).detach()
            )
    for power in (0.0, 0.5, 1.0):
        assert losses[100, power] / losses[1, power] == pytest.approx(
            (100**2 / 2) ** (1 - power), rel=0.2
        )
    assert losses[1, 1.0] < 1


def test_detail_weighs_the_differences_of_neighbours():
    """Errors with known differences: an even one has none, a ramp in one direction has its slope, in both directions."""
    flat, across = torch.full((3, 2, 8, 8), 0.5), torch.arange(8.0).expand(3, 2, 8, 8)
    plain, fine = IntegralIdentity(power=0), IntegralAdditivity(power=0, detail=0.25)
    assert float(fine.weighted(flat)) == float(plain.weighted(flat)) == 2 * 64 * 0.25
    for ramp in (3 * across, 3 * across.mT):
        assert float(fine.weighted(ramp) - plain.weighted(ramp)) == pytest.approx(
            0.25 * 2 * 8 * 7 * 9, rel=1e-6
        )
    tame = IntegralIdentity(detail=0.25, power=1.0).weighted(
        3 * across
    )  # the weight is of the whole error
    assert float(tame) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match="detail is for images"):
        fine.weighted(torch.zeros(3, 2))


def test_a_perceptual_loss_sees_what_the_teacher_sees():
    """By hand: at the ends of the jumps, per unit of time, added to the squares before they are weighted; nothing else
    changes, and where the error is zero neither does this."""
    torch.manual_seed(0)
    nets = [UNet(size=8, width=8, blocks=1).double() for _ in range(2)]
    for net in nets:
        torch.nn.init.normal_(net.out.weight, std=0.1)
    teacher, model = (FlowMap(net, RectifiedFlow()) for net in nets)
    common = dict(teacher=teacher, power=0.5, equal_share=0.25, detail=2.0)
    objective = FlowMapDistillation(**common, perceptual=0.7)
    objective.prepare(model, None)
    g, x_0 = torch.Generator().manual_seed(1), torch.randn(12, 1, 8, 8, dtype=torch.float64)
    drawn = objective.draw(model, Batch(x_0), g) | {
        "z": torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    }
    drawn |= {name: drawn[name].double() for name in "ts"}
    t, s = drawn["t"], drawn["s"]
    k, caught = len(s), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FlowMapDistillation,
            "weighted",
            lambda self, *given: caught.append(given) or given[0].sum(),
        )
        objective.loss(model, **drawn)
    (error, extra), gap = caught[0], (t[:k] - s).clamp(min=0.02)
    assert k == 9 and len(extra) == k and float(gap.min()) > 0.02 - 1e-12
    x_t = (1 - t[:k, None, None, None]) * x_0[:k] + t[:k, None, None, None] * drawn["z"][:k]
    own, span = model(x_t, t[:k], s), (t[:k] - s)[:, None, None, None]
    ends = [x_t - span * own, x_t - span * (own - error[:k])]
    far = (
        torch.stack([teacher.net.features_at(end, s, s) for end in ends])
        .diff(dim=0)[0]
        .square()
        .flatten(1)
        .sum(1)
    )
    assert torch.allclose(extra, 0.7 * far / gap**2, rtol=1e-6) and float(extra.detach().min()) > 0
    assert not objective.perceptual_distance(ends[0], torch.zeros_like(ends[0]), s, None).any()
    plain, loss = FlowMapDistillation(**common), objective.loss(model, **drawn)[0]
    plain.prepare(model, None)
    square = error.square().flatten(1).sum(1) + 2 * sum(
        error.diff(dim=d).square().flatten(1).sum(1) for d in (2, 3)
    )
    square[:k] += extra
    assert float(loss) == pytest.approx(float((square / (square + 1e-3).sqrt()).mean()), rel=1e-9)
    assert float(plain.loss(model, **drawn)[0]) < float(loss)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(
        p.grad is not None for p in model.parameters()
    )


def test_matching_compares_distributions():
    """By hand, from every pair of rows; what a batch has in other order is as near, what has another law is farther."""
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(5, 2, 3, generator=g, dtype=torch.float64),
        torch.randn(5, 2, 3, generator=g, dtype=torch.float64),
    )
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    far = lambda a, b: sum(float((a[i] - b[j]).norm()) for i, j in pairs) / len(pairs)  # noqa: E731
    assert float(paired_energy_distance(x, y)) == pytest.approx(
        2 * far(x, y) - far(x, x) - far(y, y), rel=1e-9
    )
    same = torch.stack(
        [paired_energy_distance(*torch.randn(2, 64, 3, generator=g)) for _ in range(200)]
    )
    assert (
        abs(float(same.mean())) < 4 * float(same.std()) / 200**0.5
        and float(paired_energy_distance(x + 9, y)) > 5
    )

    torch.manual_seed(0)
    nets = [UNet(size=8, width=8, blocks=1).double() for _ in range(2)]
    for net in nets:
        torch.nn.init.normal_(net.out.weight, std=0.1)
    teacher, model = (FlowMap(net, VarianceExploding()) for net in nets)
    common = dict(teacher=teacher, equal_share=0.25)
    objective, plain = (FlowMapDistillation(**common, matching=m) for m in (3.0, 0.0))
    objective.prepare(model, None)
    plain.prepare(model, None)
    x_0 = torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64)
    drawn = objective.draw(model, Batch(x_0), g) | {
        "z": torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    }
    drawn |= {name: drawn[name].double() for name in "ts"}
    loss, zero = objective.loss(model, **drawn)[0], torch.zeros(12, dtype=torch.float64)
    t = (zero + model.path.tau_max) / torch.tensor([1] * 8 + [2] * 4)  # 4, two fifths rounded down
    x_t = (1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * drawn["z"]
    y = x_t - t[:, None, None, None] * model(x_t, t, zero)
    ours, real = teacher.net.features_at(y, zero, zero), teacher.net.features_at(x_0, zero, zero)
    distance = sum(
        share
        * (
            paired_energy_distance(ours[part], real[part])
            + paired_energy_distance(ours[part].mean((2, 3)), real[part].mean((2, 3)))
        )
        for share, part in ((2 / 3, slice(0, 8)), (1 / 3, slice(8, 12)))
    )
    more = (loss - plain.loss(model, **drawn)[0]).item()
    assert more == pytest.approx(3 * distance.item(), rel=1e-9)
    with pytest.raises(ValueError, match="at least five examples, not 4"):
        objective.matching_distance(model, x_0[:4], drawn["z"][:4], None)
    (3.0 * objective.matching_distance(model, x_0, drawn["z"], None)).backward()
    assert all(p.grad is None for p in teacher.parameters()) and any(
        p.grad.any() for p in model.parameters()
    )


def test_hidden_features_are_those_of_a_call():
    net, seen = UNet(size=16, width=8, blocks=2, classes=3), []
    net.middle[-1].register_forward_hook(lambda _module, _given, out: seen.append(out))
    x, t, s, labels = (
        torch.randn(4, 1, 16, 16),
        torch.rand(4),
        torch.zeros(4),
        torch.tensor([0, 1, 2, -1]),
    )
    net(x, t, s, labels=labels)
    assert torch.equal(net.features_at(x, t, s, labels=labels), seen[0]) and seen[0].shape == (
        4,
        16,
        4,
        4,
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"anchor": "store"}, "anchor must be"),
        ({"derivative": "exact"}, "derivative must be"),
        ({"tangent": "both"}, "tangent must be"),
        ({"equal_share": 1.1}, "equal_share must be in [0, 1], got 1.1"),
        ({"start_share": -0.1}, "start_share"),
        ({"end_share": 2}, "end_share"),
        ({"equal_share": math.nan}, "equal_share"),
        ({"detail": -1}, "detail must be at least 0, got -1"),
        ({"detail": math.inf}, "detail"),
        ({"power": math.nan}, "power must be at least 0, got nan"),
        ({"gap": 0}, "gap must be in (0, 1], got 0"),
        ({"gap": 1.5}, "gap must be in (0, 1], got 1.5"),
        ({"gap": -0.1}, "gap must be in"),
        ({"gap": math.nan}, "gap must be in"),
        ({"gap": 2}, "give a number such as 0.02, or None for the derivative"),
        ({"gap": True}, "gap must be a number in (0, 1], ('geometric', first, last)"),
        ({"gap": ()}, "gap must be a number in (0, 1], ('geometric', first, last)"),
        ({"gap": "sigmoid"}, "gap must be a number in (0, 1], ('geometric', first, last)"),
        (
            {"gap": ("linear", 1.0, 0.1)},
            "gap must be a number in (0, 1], ('geometric', first, last)",
        ),
        ({"gap": ("geometric", 1.0)}, "gap must be a number in (0, 1], ('geometric', first, last)"),
        ({"gap": ("geometric", 1.0, 0.0)}, "the last gap must be in (0, 1], got 0.0"),
        ({"gap": ("geometric", 2.0, 0.1)}, "the first gap must be in"),
        ({"gap": ("sigmoid", 25, 0.6)}, "the last gap must be in"),
        ({"gap": ("sigmoid", 0, 0.005)}, "gamma of a sigmoid gap must be"),
        ({"gap": 0.1, "derivative": "jvp"}, "gap=0.1 takes no derivative: leave derivative"),
        ({"gap": 0.1, "step": 5e-3}, "takes no derivative"),
        ({"equal_share": FlowMap(GaussianNet(), RectifiedFlow())}, "got a FlowMap"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError) as error:
        IntegralIdentity(**options)
    assert words in one_line(error)


@pytest.mark.parametrize(
    "net, options, words",
    [
        (MLP(dim=2), {"perceptual": 1.0}, "perceptual needs a teacher whose network has hidden"),
        (MLP(dim=2), {"matching": 1.0}, "matching needs a teacher whose network has hidden"),
        (UNet(size=8, width=8), {"perceptual": -1.0}, "perceptual must be at least 0, got -1"),
        (UNet(size=8, width=8), {"perceptual": math.inf}, "perceptual"),
        (UNet(size=8, width=8), {"matching": math.nan}, "matching must be at least 0, got nan"),
        (MLP(dim=2), {"derivative": "exact"}, "derivative must be"),
        (MLP(dim=2), {"equal_share": 1.1}, "equal_share must be in [0, 1], got 1.1"),
    ],
)
def test_bad_options_with_a_teacher(net, options, words):
    """An MLP has layers called hidden, and no method that gives hidden features."""
    with pytest.raises(ValueError) as error:
        FlowMapDistillation(teacher=FlowMap(net, RectifiedFlow()), **options)
    assert words in one_line(error)


def test_a_teacher_is_left_as_it_is():
    """Neither frozen for good, nor moved, nor put in another mode: training it on afterwards works."""
    torch.manual_seed(0)
    teacher, model = (FlowMap(UNet(size=8, width=8, blocks=1), RectifiedFlow()) for _ in range(2))
    before = {name: w.clone() for name, w in teacher.state_dict().items()}
    objective = FlowMapDistillation(teacher=teacher, perceptual=1.0, matching=1.0)
    x = torch.randn(20, 1, 8, 8)
    config = TrainConfig(steps=2, batch_size=10, device="cpu", progress=False)
    fit(model, objective, x, config)
    assert teacher.training and all(
        w.requires_grad and w.grad is None for w in teacher.parameters()
    )
    assert all(torch.equal(w, before[name]) for name, w in teacher.state_dict().items())
    frozen = objective.frozen_teacher
    assert frozen is not teacher and not frozen.training
    assert not any(w.requires_grad for w in frozen.parameters())
    fit(teacher, FlowMatching(), x, config)
    again = FlowMapDistillation(teacher=teacher)
    again.prepare(model, None)  # a new run takes the teacher as it is then
    assert torch.equal(again.frozen_teacher.net.out.weight, teacher.net.out.weight)
    assert not torch.equal(teacher.net.out.weight, before["net.out.weight"])
    meta = FlowMapDistillation(teacher=teacher)
    meta.prepare(model, None, device=torch.device("meta"))
    assert meta.frozen_teacher.net.out.weight.is_meta and not teacher.net.out.weight.is_meta


def test_a_teacher_without_classes_for_a_model_with_classes():
    torch.manual_seed(0)
    teacher = FlowMap(UNet(size=8, width=8, blocks=1), RectifiedFlow())
    model = FlowMap(UNet(size=8, width=8, blocks=1, classes=2), RectifiedFlow())
    objective = FlowMapDistillation(teacher=teacher, perceptual=1.0, matching=1.0)
    objective.prepare(model, None)
    batch = Batch(torch.randn(10, 1, 8, 8), labels=torch.arange(10) % 2)
    assert bool(torch.isfinite(objective(model, batch, torch.Generator())))


@pytest.mark.parametrize(
    "objective, learned",
    [
        (FlowMatching(), "velocity"),
        (IntegralIdentity(), "jump"),
        (IntegralAdditivity(), "jump"),
        (TerminalVelocity(), "jump"),
        (FlowMapDistillation(teacher=FlowMap(GaussianNet(), RectifiedFlow())), "jump"),
        (ConsistencyTraining(), "jump_to_data"),
        (Distillation(), "jump_to_data"),
        (X0Regression(), "jump_to_data"),
        (X0Regression(anchor="self"), "refinement"),
        (Objective(), None),
    ],
    ids=lambda o: getattr(o, "name", str(o)),
)
def test_what_a_model_learns(objective, learned):
    assert objective.learns == learned


def test_config_names_every_setting():
    objective = IntegralIdentity(power=0.5, derivative="difference")
    assert (
        IntegralIdentity(**objective.config()) == objective and objective.name == "IntegralIdentity"
    )
    assert FlowMatching().config() == {"velocity": "auto"} and FlowMatching().name == "FlowMatching"


@pytest.mark.parametrize("kind", [IntegralAdditivity, TerminalVelocity])
def test_a_pair_does_not_outweigh_the_velocity(kind):
    """A model that agrees with itself has no error at pairs. By that error they would weigh 1000 times as much."""
    objective = kind(power=1.0, equal_share=0.5, **_by_difference(kind))
    error = torch.tensor([[1e-4], [1e-4], [2.0], [3.0]], requires_grad=True)
    velocity_error = torch.tensor([[2.0], [1.0], [2.0], [3.0]])
    objective.weighted(error, judged_by=velocity_error).backward()
    assert error.grad is not None
    by_hand = 2 * error / (velocity_error**2 + 1e-3) / 4
    torch.testing.assert_close(error.grad, by_hand.detach())
    model, seen = FlowMap(MLP(2, hidden=8), RectifiedFlow()), []
    objective = type(
        kind.__name__, (kind,), {"weighted": lambda self, e, **k: seen.append((e, k)) or e.sum()}
    )(velocity="pair", **_by_difference(kind))
    x_0, generator = torch.randn(8, 2), torch.Generator().manual_seed(0)
    given = objective.draw(model, Batch(x_0), generator)
    objective.loss(model, **given)
    (_, named), s = seen[0], torch.cat([given["s"], given["t"][len(given["s"]) :]])
    x_t = on_line(x_0, given["z"], given["t"])
    expected = model(x_t, given["t"], s) - (given["z"] - x_0)
    torch.testing.assert_close(named["judged_by"], expected)


def _by_difference(kind):
    return {"derivative": "difference"} if kind is TerminalVelocity else {}
