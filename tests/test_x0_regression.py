"""The anchor store and the published recipe in each of its readings."""

import numpy as np
import pytest
import torch
from exact import one_line, randomise

from iflow_lib.data import TensorData
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP
from iflow_lib.objectives import ANCHORS, AnchorStore, Batch, X0Regression
from iflow_lib.paths import RectifiedFlow
from iflow_lib.training import TrainConfig, fit

# ---------------------------------------------------------------- the store


def test_starts_gaussian_and_seeded():
    store = AnchorStore(5000, (3, 2), seed=1)
    x = store.read(torch.arange(5000))
    assert x.shape == (5000, 3, 2) and x.dtype == torch.float32 and len(store) == 5000
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    again, other = (AnchorStore(5000, (3, 2), seed=s).read(torch.arange(9)) for s in (1, 2))
    assert torch.equal(again, x[:9]) and not torch.equal(other, x[:9])
    generator = np.random.default_rng(
        1
    )  # block by block: the numbers that earlier versions began with
    blocks = [
        generator.standard_normal((min(1024, 5000 - start), 3, 2), dtype=np.float32)
        for start in range(0, 5000, 1024)
    ]
    assert np.array_equal(np.concatenate(blocks), x.numpy())


def test_update_and_read():
    store = AnchorStore(50, (2,))
    before, index = store.read(torch.arange(50)), torch.tensor([4, 40, 7])
    new = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    store.update(index, new)
    assert torch.equal(store.read(index), new)
    others = torch.tensor([i for i in range(50) if i not in (4, 40, 7)])
    assert torch.equal(store.read(others), before[others])
    new.fill_(9.0)  # the store has copies
    store.read(index).fill_(9.0)
    assert store.read(index).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_of_an_index_that_comes_twice_the_last_stays():
    store = AnchorStore(50, (2,))
    store.update(torch.tensor([1, 1]), torch.tensor([[1.0, 1], [2, 2]]))
    assert store.read(torch.tensor([1])).tolist() == [[2, 2]]


@pytest.mark.parametrize(
    "index, estimate, kind, words",
    [
        ([50], [[0.0, 0]], IndexError, "out of bounds"),
        ([0], [[0.0, 0, 0]], ValueError, "shape (1, 2)"),
        ([0, 1], [[0.0, 0]], ValueError, "shape (2, 2)"),
    ],
)
def test_what_is_refused_leaves_the_store_untouched(index, estimate, kind, words):
    store = AnchorStore(50, (2,))
    before = store.read(torch.arange(50))
    with pytest.raises(kind) as error:
        store.update(torch.tensor(index), torch.tensor(estimate))
    assert words in one_line(error)
    assert torch.equal(store.read(torch.arange(50)), before)


# ---------------------------------------------------------------- the recipe


def model(anchored, seed=0):
    torch.manual_seed(seed)
    return FlowMap(
        randomise(MLP(dim=2, hidden=16, layers=2, anchor=anchored), scale=0.2), RectifiedFlow()
    )


def data(n=50):
    return (
        torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 3
    )  # far from every estimate and anchor


@pytest.mark.parametrize("rule", ["per_example", "ground_truth"])
def test_the_target_is_stored_only_if_the_rule_says_so(rule):
    objective, net, x_0 = X0Regression(anchor=rule), model(True), data()
    objective.prepare(net, TensorData(data(50)))
    index = torch.arange(10)
    before = objective.store.read(torch.arange(50))
    objective(net, Batch(x_0[:10], index=index), torch.Generator().manual_seed(1))
    after = objective.store.read(torch.arange(50))
    assert torch.equal(after[10:], before[10:]) and not torch.equal(after[:10], before[:10])
    if rule == "ground_truth":
        assert torch.equal(after[:10], x_0[:10])
    else:  # the network's own output, which is nowhere near the data
        assert float((after[:10] - x_0[:10]).norm(dim=1).min()) > 0.5


def test_the_stored_estimate_is_the_anchor_of_the_next_step():
    objective, net = X0Regression(anchor="per_example"), model(True)
    objective.prepare(net, TensorData(data(50)))
    seen = []
    net.net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["anchor"]), with_kwargs=True
    )
    for _ in range(2):
        objective(net, Batch(data()[:5], index=torch.arange(5)), torch.Generator().manual_seed(1))
        stored = objective.store.read(torch.arange(5))
    objective(net, Batch(data()[:5], index=torch.arange(5)), torch.Generator().manual_seed(2))
    assert torch.equal(seen[2], stored) and not torch.equal(seen[1], seen[0])


def test_shared_anchor_is_carried_between_unrelated_examples():
    objective, net, seen = X0Regression(anchor="shared"), model(True), []
    objective.prepare(net, TensorData(data(50)))
    net.net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["anchor"]), with_kwargs=True
    )
    net.net.register_forward_hook(
        lambda module, args, out: seen.append(args[0] - args[1][:, None] * out.detach())
    )
    objective(net, data()[:5], torch.Generator().manual_seed(1))
    objective(net, data()[20:25], torch.Generator().manual_seed(2))
    assert torch.equal(seen[2], seen[1])  # the second step's anchor is the first one's output


def test_self_anchor_is_the_same_steps_estimate():
    objective, net, calls = X0Regression(anchor="self"), model(True), []
    objective.prepare(net, TensorData(data()))
    net.net.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((kwargs["anchor"], args, out)),
        with_kwargs=True,
    )
    loss = objective(net, data()[:5], torch.Generator().manual_seed(1))
    (_, args, out), (anchor, _, _) = calls
    assert (
        torch.equal(anchor, args[0] - args[1][:, None] * out)
        and not anchor.requires_grad
        and loss.requires_grad
    )


@pytest.mark.parametrize("distance", ["mse", "l1", "pseudo_huber"])
def test_distances_and_blend(distance):
    objective = X0Regression(anchor="self", distance=distance, c=0.5, blend=True)
    f, x_0, a = torch.tensor([[1.0, 2]]), torch.tensor([[0.0, 0]]), torch.tensor([[1.0, 1]])
    by_hand = {
        "mse": (2.5, 0.5),
        "l1": (1.5, 0.5),
        "pseudo_huber": ((1.25**0.5 + 4.25**0.5) / 2 - 0.5, (0.5 + 1.25**0.5) / 2 - 0.5),
    }[distance]
    assert float(objective.mean_distance(f, x_0)) == pytest.approx(by_hand[0])
    assert float(objective.mean_distance(f, a)) == pytest.approx(by_hand[1])
    plain = X0Regression(anchor="self", distance=distance, c=0.5)
    first, both, late = (
        float(o(model(True), Batch(data(), epoch=e), torch.Generator().manual_seed(1)))
        for o, e in ((plain, 0), (objective, 0), (objective, 3))
    )
    assert first == both != late  # w = 1 in epoch 0


@pytest.mark.parametrize("rule", ANCHORS)
def test_fit_trains_every_rule(rule):
    run = fit(
        model(rule != "none"),
        X0Regression(anchor=rule),
        data(),
        TrainConfig(steps=30, batch_size=16, progress=False, device="cpu", log_every=10),
    )
    assert (
        run.history.loss.iloc[-1] < run.history.loss.iloc[0]
        and run.manifest["objective"]["anchor"] == rule
    )


def test_without_an_anchor_one_step_is_the_mean_of_the_data():
    g = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(4000, 1, generator=g) < 0.5, -1.0, 1.0) + 0.1 * torch.randn(
        4000, 2, generator=g
    )
    torch.manual_seed(0)
    run = fit(
        FlowMap(MLP(dim=2, hidden=32, layers=2), RectifiedFlow()),
        X0Regression(),
        x,
        TrainConfig(steps=600, batch_size=256, lr=3e-3, progress=False, device="cpu"),
    )
    z = torch.randn(500, 2, generator=g)
    with torch.no_grad():
        end = run.model.jump(x=z, t=torch.ones(500), s=torch.zeros(500))
    assert float(end.std(dim=0).max()) < 0.2 and float((end.mean(0) - x.mean(0)).abs().max()) < 0.15


def test_bad_input():
    for make, words in [
        (lambda: X0Regression(anchor="best"), "anchor must be one of"),
        (lambda: X0Regression(distance="l3"), "distance must be one of"),
        (lambda: X0Regression(start_share=2), "start_share must be in [0, 1], got 2"),
        (lambda: X0Regression(blend=True), "needs one"),
        (lambda: X0Regression().prepare(model(True), TensorData(data(5))), "anchor=False"),
        (
            lambda: X0Regression(anchor="self").prepare(model(False), TensorData(data(5))),
            "anchor=True",
        ),
        (
            lambda: X0Regression(anchor="per_example")(model(True), data()),
            "one estimate for each example",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            make()
        assert words in one_line(error)


once = TrainConfig(steps=1, device="cpu", progress=False)


def test_a_second_fit_starts_afresh():
    """The first run's estimates are no start for the second, whether or not it writes files."""
    objective = X0Regression(anchor="per_example")
    first = fit(model(True), objective, data(), TrainConfig(steps=20, device="cpu", progress=False))
    store, trained = objective.store, objective.store.read(torch.arange(len(data())))
    objective.prepare(model(True), TensorData(data()))
    fresh = objective.store.read(torch.arange(len(data())))
    assert torch.equal(
        fresh, AnchorStore(len(data()), (2,), seed=0).read(torch.arange(len(data())))
    )
    second = fit(
        model(True), objective, data(), TrainConfig(steps=20, device="cpu", progress=False)
    )
    assert objective.store is not store and not torch.equal(fresh, trained)
    assert first.history.loss.equals(second.history.loss)
    fit(model(True), objective, data()[:20], once)
    assert len(objective.store) == 20


def test_a_second_fit_with_files_starts_afresh_too(tmp_path):
    objective, runs = X0Regression(anchor="per_example"), []
    for name in ("first", "second"):
        config = TrainConfig(steps=20, device="cpu", progress=False, out_dir=str(tmp_path / name))
        runs.append(fit(model(True), objective, data(), config))
    assert runs[0].history.loss.equals(runs[1].history.loss)


@pytest.mark.parametrize("rule", ["per_example", "ground_truth", "shared"])
def test_a_checkpoint_holds_the_estimates(rule):
    objective, other = X0Regression(anchor=rule), X0Regression(anchor=rule)
    for o in (objective, other):
        o.prepare(model(True), TensorData(data()))
    objective(
        model(True), Batch(data()[:5], index=torch.arange(5)), torch.Generator().manual_seed(1)
    )
    kept = {name: value.clone() for name, value in objective.state().items()}
    other.load_state(kept)
    assert kept and all(torch.equal(other.state()[name], value) for name, value in kept.items())
    if rule != "shared":
        with pytest.raises(ValueError, match="estimates must have shape"):
            other.load_state({"estimates": kept["estimates"][:9]})


def test_settings_of_old_manifests_are_known():
    """Manifests of earlier versions also have store_dtype, which is gone with the files."""
    assert set(X0Regression().config()) == {
        "anchor", "distance", "c", "blend", "time_density", "start_share"
    }  # fmt: skip


def test_a_failed_run_leaves_the_store_untouched():
    net, objective = model(True), X0Regression(anchor="per_example")
    objective.prepare(net, TensorData(data(50)))
    before = objective.store.read(torch.arange(50))
    with torch.no_grad():
        net.net.out.bias.fill_(float("nan"))
    assert not torch.isfinite(
        objective(net, Batch(data()[:5], index=torch.arange(5)), torch.Generator())
    )
    assert torch.equal(objective.store.read(torch.arange(50)), before)
    with pytest.raises(
        FloatingPointError, match="not finite by step 1"
    ):  # at once, not at the next line of the history
        fit(
            net,
            X0Regression(anchor="per_example"),
            data(50),
            TrainConfig(steps=40, device="cpu", progress=False),
        )
