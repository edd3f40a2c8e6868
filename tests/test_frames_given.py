"""Given parts: held to the bit by every sampler, and conditional laws against closed form."""

import math

import pytest
import torch

import iflow_lib as ifl
from iflow_lib.frames import GivenParts, WithGiven, sample_given
from iflow_lib.frames.given import PATTERNS, ROWS
from iflow_lib.objectives.base import Batch

PATHS = [ifl.RectifiedFlow(), ifl.VarianceExploding(), ifl.PoissonFlow(aug_dim=128)]
OWNERS = (0, 0, 1)


def a_model(path=PATHS[0], owners=OWNERS, hidden=16, seed=0):
    torch.manual_seed(seed)
    net = ifl.MLP(dim=len(owners) + max(owners) + 1, hidden=hidden, layers=2, features=0)
    torch.nn.init.normal_(net.out.weight)
    return ifl.FlowMap(WithGiven(net, owners), path)


def drawn_sample(model, n, **options):
    return torch.cat(list(sample_given(model, n, **options)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("method, nfe", [("map", 1), ("map", 3), ("euler", 4), ("heun", 5)])
def test_given_parts_come_back_to_the_bit(path, method, nfe):
    model = a_model(path)
    values = torch.randn(50, 3)
    flags = torch.rand(50, 2).round()
    x = drawn_sample(model, 50, nfe=nfe, method=method, values=values, flags=flags)
    fixed = flags[:, OWNERS] == 1
    assert torch.equal(x[:, :3][fixed], values[fixed])
    assert torch.equal(x[:, 3:], flags)
    assert not torch.isclose(x[:, :3][~fixed], values[~fixed]).any()  # the rest is made


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_target_is_zero_on_given_parts_and_unchanged_elsewhere(path):
    model = a_model(path)
    objective = GivenParts(ifl.FlowMatching(), free=0.3)
    x = torch.cat([torch.randn(400, 3), torch.zeros(400, 2)], 1)
    drawn = objective.draw(model, Batch(x), torch.Generator().manual_seed(0))
    x_0, z = drawn["x_0"], drawn["z"]
    flags = x_0[:, 3:]
    fixed = model.net.fixed(flags)
    assert torch.equal(z[fixed], x_0[fixed]) and torch.equal(x_0[:, :3], x[:, :3])
    assert (z[~fixed] != x_0[~fixed]).all()
    assert 0.3 < (flags.sum(1) == 0).float().mean() < 0.75  # free rows, and some at a low rate
    assert 0.25 < flags.mean() < 0.45  # (1 - 0.3) / 2
    u = model(x_0, torch.ones(400), torch.zeros(400))
    assert (u[fixed] == 0).all() and (u[~fixed] != 0).all()


def gaussian(n, seed=0):
    """Correlated pairs of unit variance; correlation 0.8."""
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    return torch.stack([a, 0.8 * a + 0.6 * b], 1)


@pytest.mark.parametrize(
    "base, coupling",
    [
        (ifl.IntegralIdentity(), "independent"),
        (ifl.IntegralIdentity(), "ot"),
        (ifl.EnergyMatching(ifl.IntegralIdentity(), weight=3.0), "independent"),
    ],
    ids=["identity", "pairing", "energy"],
)
def test_a_conditional_law_in_closed_form(base, coupling):
    data = torch.cat([gaussian(4096), torch.zeros(4096, 2)], 1)
    model = a_model(owners=(0, 1), hidden=48)
    torch.nn.init.zeros_(model.net.net.out.weight)
    config = ifl.TrainConfig(
        steps=700,
        batch_size=128,
        lr=8e-3,
        ema=0.99,
        progress=False,
        device="cpu",
        coupling=coupling,
    )
    model = ifl.fit(model, GivenParts(base), data, config).model
    values, flags = torch.tensor([[1.5, 0.0]]), torch.tensor([[1.0, 0.0]])
    made = drawn_sample(model, 3000, nfe=1, seed=1, values=values, flags=flags)[:, 1]
    assert abs(made.mean() - 1.2) < 0.12  # E[b | a = 1.5] = 0.8 * 1.5
    assert abs(made.std() - 0.6) < 0.12  # a network that ignores a would give about 1
    free = drawn_sample(model, 3000, nfe=1, seed=1)[:, :2]
    assert (free.mean(0).abs() < 0.12).all()
    assert (torch.cov(free.T) - torch.tensor([[1, 0.8], [0.8, 1]])).abs().max() < 0.17


def test_more_samples_only_add_to_the_end():
    model = a_model()
    few, many = drawn_sample(model, 7, nfe=2, seed=3), drawn_sample(model, ROWS + 5, nfe=2, seed=3)
    assert torch.equal(few, many[:7]) and len(many) == ROWS + 5
    assert not torch.equal(few, drawn_sample(model, 7, nfe=2, seed=4))
    flags = torch.tensor([[1.0, 0.0]])
    one = drawn_sample(model, 7, nfe=1, seed=3, values=torch.ones(1, 3), flags=flags)
    each = drawn_sample(model, 7, seed=3, values=torch.ones(7, 3), flags=flags.expand(7, 2))
    assert torch.equal(one, each)


def test_without_flags_it_is_the_plain_sample():
    torch.manual_seed(0)
    net = ifl.MLP(dim=2, hidden=8)
    torch.nn.init.normal_(net.out.weight)
    model = ifl.FlowMap(net, PATHS[0])
    assert torch.equal(
        drawn_sample(model, ROWS, nfe=2, seed=5),
        ifl.sample(model, ROWS, 2, seed=5, batch_size=ROWS).x,
    )


@pytest.mark.parametrize("coupling", ["independent", "ot"])
def test_noise_of_a_row_with_given_parts_is_not_paired_with_its_data(coupling):
    model, x = a_model(owners=(0, 1)), torch.cat([3 * gaussian(1024), torch.zeros(1024, 2)], 1)
    pair = ifl.training.coupling.Pairing(x) if coupling == "ot" else None
    drawn = GivenParts(free=0.5).draw(model, Batch(x, pair=pair), torch.Generator().manual_seed(0))
    x_0, z = drawn["x_0"], drawn["z"]
    free = x_0[:, 2:].sum(1) == 0
    partly = (x_0[:, 2] == 1) & (x_0[:, 3] == 0)

    def correlation(rows):
        return float(torch.corrcoef(torch.stack([x_0[rows, 1], z[rows, 1]]))[0, 1])

    assert abs(correlation(partly)) < 0.3
    assert (correlation(free) > 0.8) if pair else (abs(correlation(free)) < 0.3)


def test_patterns_of_windows():
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(600, 6, 3)
    past = GivenParts(patterns=("past",), free=0).choose(like, generator)
    known = past.sum((1, 2)) / 3
    assert set(known.tolist()) == {1, 2, 3, 4, 5}  # never the whole window
    assert (past[:, :-1].int() >= past[:, 1:].int()).all() and past[:, 0].all()
    columns = GivenParts(patterns=("columns",), free=0).choose(like, generator)
    assert (columns == columns[:, :1]).all() and 0.4 < columns.float().mean() < 0.6
    mixed = GivenParts(patterns=("past", "any"), free=0.4, always=(2,)).choose(like, generator)
    assert mixed[..., 2].all()
    assert 0.3 < (mixed[..., :2].flatten(1).sum(1) == 0).float().mean() < 0.5
    assert set(PATTERNS) == {"any", "columns", "past"}


def test_a_window_model_forecasts_from_its_past():
    torch.manual_seed(0)
    net = ifl.Transformer(length=4, channels=2, width=8, layers=1, heads=2)
    model = ifl.FlowMap(WithGiven(net, (0,)), PATHS[0])
    data = torch.cat([torch.randn(64, 4, 1), torch.zeros(64, 4, 1)], 2)
    objective = GivenParts(patterns=("past", "any"))
    config = ifl.TrainConfig(steps=5, batch_size=16, progress=False, device="cpu")
    run = ifl.fit(model, objective, data, config)
    assert run.manifest["objective"]["base"]["name"] == "IntegralIdentity"
    values, flags = torch.randn(3, 4, 1), torch.tensor([1.0, 1, 0, 0]).reshape(1, 4, 1)
    x = drawn_sample(run.model, 3, values=values, flags=flags)
    assert torch.equal(x[:, :2, 0], values[:, :2, 0]) and tuple(x.shape) == (3, 4, 2)


def test_saved_and_loaded(tmp_path):
    model = a_model()
    model.save_pretrained(tmp_path)
    loaded = ifl.FlowMap.from_pretrained(tmp_path)
    assert loaded.net.owners == OWNERS and loaded.data_shape == (5,)
    flags = torch.tensor([[0.0, 1.0]])
    options = dict(nfe=2, values=torch.ones(1, 3), flags=flags)
    assert torch.equal(drawn_sample(model, 9, **options), drawn_sample(loaded, 9, **options))


def test_derivatives_go_through():
    model = a_model()
    x = torch.cat([torch.randn(6, 3), torch.rand(6, 2).round()], 1)
    t, s = torch.full((6,), 0.7), torch.full((6,), 0.2)
    along = torch.where(model.net.fixed(x[:, 3:]), torch.zeros_like(x), torch.randn_like(x))
    _, rate = torch.func.jvp(lambda x, t: model(x, t, s), (x, t), (along, torch.ones(6)))
    step = 1e-3
    ahead, behind = (model(x + sign * step * along, t + sign * step, s) for sign in (1, -1))
    assert torch.allclose(
        rate, (ahead - behind) / (2 * step), atol=2e-2 * rate.detach().abs().max().item()
    )
    objective = GivenParts(ifl.IntegralIdentity(derivative="jvp"))
    assert math.isfinite(float(objective(model, x)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WithGiven(ifl.MLP(dim=4), OWNERS), "3 values and 2 flags"),
        (lambda: WithGiven(ifl.MLP(dim=5), (0, 0, 2)), "every flag"),
        (lambda: WithGiven(ifl.MLP(dim=5), ()), "every flag"),
        (lambda: GivenParts(ifl.MLP(dim=2)), "base must be an objective"),
        (lambda: GivenParts(free=1.5), "free must be in"),
        (lambda: GivenParts(patterns=("future",)), "patterns must be some of"),
        (lambda: GivenParts(patterns=()), "patterns must be some of"),
        (lambda: GivenParts(always=(-1,)), "a flag in always"),
        (lambda: trained(GivenParts(), ifl.FlowMap(ifl.MLP(dim=5), PATHS[0])), "WithGiven"),
        (lambda: trained(GivenParts(always=(2,))), "flags below 2"),
        (lambda: trained(GivenParts(patterns=("past",))), "windows of two times"),
        (lambda: trained(GivenParts(ifl.FlowMatching(velocity="batch"))), "velocity"),
        (lambda: drawn_sample(a_model(), 3, values=torch.zeros(2, 3)), "values must have shape"),
        (lambda: drawn_sample(a_model(), 3, flags=torch.zeros(3, 3)), "flags must have shape"),
        (
            lambda: drawn_sample(
                a_model(), 3, values=torch.full((1, 3), math.nan), flags=torch.ones(1, 2)
            ),
            "must be finite",
        ),
        (
            lambda: drawn_sample(ifl.FlowMap(ifl.MLP(dim=5), PATHS[0]), 3, flags=torch.zeros(1, 2)),
            "without given parts",
        ),
        (lambda: ifl.sample(a_model(), 3, start=torch.zeros(2, 5)), "start must be a tensor"),
        (lambda: ifl.sample(a_model(), 3, start=[1.0]), "start must be a tensor"),
        (lambda: ifl.sample(a_model(), 1, start=torch.full((1, 5), math.nan)), "start has NaN"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def trained(objective, model=None):
    config = ifl.TrainConfig(steps=2, batch_size=8, progress=False, device="cpu")
    return ifl.fit(model or a_model(), objective, torch.zeros(8, 5), config)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_sample_starts_where_it_is_told(path):
    model = a_model(path)
    noise = next(ifl.sampling.initial_noise(model, 5, seed=2))
    told = ifl.sample(model, 5, 3, seed=9, start=noise).x
    assert torch.equal(told, ifl.sample(model, 5, 3, seed=2).x)
