"""The anchor store and the published recipe in each of its readings."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from exact import one_line, randomise

from iflow_lib.data import TensorData
from iflow_lib.model import FlowMap
from iflow_lib.networks import MLP
from iflow_lib.objectives import Batch
from iflow_lib.objectives.x0_regression import ANCHORS, AnchorStore, X0Regression
from iflow_lib.paths import RectifiedFlow
from iflow_lib.training import TrainConfig, fit


@pytest.fixture
def store(tmp_path):
    return AnchorStore.create(tmp_path / "store", 50, (2,), seed=3)


# ---------------------------------------------------------------- the store


def test_starts_gaussian_and_seeded(tmp_path):
    store = AnchorStore.create(tmp_path / "a", 5000, (3, 2), seed=1)
    x = store.read(torch.arange(5000))
    assert x.shape == (5000, 3, 2) and x.dtype == torch.float32 and len(store) == 5000
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    again, other = (
        AnchorStore.create(tmp_path / str(s), 5000, (3, 2), seed=s).read(torch.arange(9))
        for s in (1, 2)
    )
    assert torch.equal(again, x[:9]) and not torch.equal(other, x[:9])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_update_and_read(tmp_path, dtype):
    store = AnchorStore.create(tmp_path, 50, (2,), dtype=dtype)
    before, index, new = (
        store.read(torch.arange(50)),
        torch.tensor([4, 40, 7]),
        torch.tensor([[1.0, 2], [3, 4], [5, 6]]),
    )
    store.update(index, new)
    assert torch.equal(store.read(index), new)
    others = torch.tensor([i for i in range(50) if i not in (4, 40, 7)])
    assert torch.equal(store.read(others), before[others])
    reopened = AnchorStore(tmp_path)  # it is on the disk, not in this object
    assert torch.equal(reopened.read(index), new) and isinstance(reopened.rows, np.memmap)


def test_of_an_index_that_comes_twice_the_last_stays(store):
    store.update(torch.tensor([1, 1]), torch.tensor([[1.0, 1], [2, 2]]))
    assert store.read(torch.tensor([1])).tolist() == [[2, 2]]


@pytest.mark.parametrize(
    "index, estimate, kind, words",
    [
        ([50], [[0.0, 0]], IndexError, "[0, 50)"),
        ([-1], [[0.0, 0]], IndexError, "got -1"),
        ([0.0], [[0.0, 0]], ValueError, "whole numbers"),
        ([[0]], [[0.0, 0]], ValueError, "shape (B,)"),
        ([0], [[0.0, 0, 0]], ValueError, "shape (1, 2)"),
        ([0, 1], [[0.0, 0]], ValueError, "shape (2, 2)"),
        ([0], [[0, 0]], ValueError, "floats"),
        ([0, 1], [[0.0, 0], [float("nan"), 0]], ValueError, "NaN"),
    ],
)
def test_what_is_refused_leaves_the_store_untouched(store, index, estimate, kind, words):
    before = (store.folder / "anchors.npy").read_bytes()
    with pytest.raises(kind) as error:
        store.update(torch.tensor(index), torch.tensor(estimate))
    assert words in one_line(error)
    store.rows.flush()
    assert (store.folder / "anchors.npy").read_bytes() == before


def test_another_data_set_is_refused(tmp_path):
    store = AnchorStore.create(tmp_path, 50, (2,), data="abc")
    store.check(50, (2,), data="abc", dtype="float32", rule="per_example")
    for arguments, options, words in [
        ((49, (2,)), {}, "50 examples"),
        ((50, (3,)), {}, "shape (2,)"),
        ((50, (2,)), {"data": "abd"}, "another data set"),
        ((50, (2,)), {"dtype": "float16"}, "has dtype float32, not float16"),
        ((50, (2,)), {"rule": "ground_truth"}, "has rule per_example, not ground_truth"),
    ]:
        with pytest.raises(ValueError) as error:
            store.check(*arguments, **options)
        assert words in one_line(error)


def test_damaged_and_missing_stores(tmp_path, store):
    with pytest.raises(FileNotFoundError, match="no anchor store"):
        AnchorStore(tmp_path / "nowhere")
    info = json.loads((store.folder / "anchors.json").read_text())
    for change in ({"examples": 49}, {"shape": [3]}, {"dtype": "float16"}):
        (store.folder / "anchors.json").write_text(json.dumps(info | change))
        with pytest.raises(ValueError, match="damaged"):
            AnchorStore(store.folder)
    (store.folder / "anchors.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        AnchorStore(store.folder)
    for arguments, words in [
        ((0, (2,)), "at least one"),
        ((5, (2,), "int8"), "float32 or float16"),
    ]:
        with pytest.raises(ValueError, match=words):
            AnchorStore.create(
                tmp_path / "b",
                *arguments[:2],
                **({"dtype": arguments[2]} if len(arguments) > 2 else {}),
            )


def _write(folder, worker):
    store = AnchorStore(folder)
    rows = torch.arange(worker, 400, 4)
    for value in range(20):
        store.update(rows, torch.full((len(rows), 64), float(worker * 100 + value)))


def test_several_workers(tmp_path):
    AnchorStore.create(tmp_path, 400, (64,))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path, i)) for i in range(4)]
    [w.start() for w in workers]
    [w.join(120) for w in workers]
    assert [w.exitcode for w in workers] == [0] * 4
    rows = AnchorStore(tmp_path).read(torch.arange(400))
    assert torch.equal(rows, (torch.arange(400) % 4 * 100.0 + 19)[:, None].expand(400, 64))


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
def test_the_target_is_stored_only_if_the_rule_says_so(rule, tmp_path):
    objective, net, x_0 = X0Regression(anchor=rule), model(True), data()
    objective.prepare(net, TensorData(data(50)), folder=tmp_path)
    index = torch.arange(10)
    before = objective.store.read(torch.arange(50))
    objective(net, Batch(x_0[:10], index=index), torch.Generator().manual_seed(1))
    after = objective.store.read(torch.arange(50))
    assert torch.equal(after[10:], before[10:]) and not torch.equal(after[:10], before[:10])
    if rule == "ground_truth":
        assert torch.equal(after[:10], x_0[:10])
    else:  # the network's own output, which is nowhere near the data
        assert float((after[:10] - x_0[:10]).norm(dim=1).min()) > 0.5


def test_the_stored_estimate_is_the_anchor_of_the_next_step(tmp_path):
    objective, net = X0Regression(anchor="per_example"), model(True)
    objective.prepare(net, TensorData(data(50)), folder=tmp_path)
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
    assert float(objective._distance(f, x_0)) == pytest.approx(by_hand[0])
    assert float(objective._distance(f, a)) == pytest.approx(by_hand[1])
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


def test_bad_input(tmp_path):
    for make, words in [
        (lambda: X0Regression(anchor="best"), "unknown anchor 'best'"),
        (lambda: X0Regression(distance="l3"), "unknown distance"),
        (lambda: X0Regression(store_dtype="int8"), "unknown store_dtype"),
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


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(examples=49), "49 examples"),
        (dict(dtype="float16"), "dtype float16"),
        (dict(data="0" * 64), "another data set"),
        (dict(rule="ground_truth"), "rule ground_truth"),
    ],
)
def test_fit_refuses_a_store_of_other_data_and_leaves_it_untouched(tmp_path, options, words):
    objective = X0Regression(anchor="per_example")
    objective.store = AnchorStore.create(
        tmp_path, **{"examples": len(data()), "shape": (2,)} | options
    )
    before = (tmp_path / "anchors.npy").read_bytes()
    with pytest.raises(ValueError, match=words):
        fit(model(True), objective, data(), once)
    objective.store.rows.flush()
    assert (tmp_path / "anchors.npy").read_bytes() == before


def test_fit_keeps_a_given_store_and_renews_its_own(tmp_path):
    objective = X0Regression(anchor="per_example")
    objective.store = store = AnchorStore.create(
        tmp_path, len(data()), (2,), data=TensorData(data()).sha256
    )
    before = store.read(torch.arange(len(data())))
    fit(model(True), objective, data(), once)
    assert objective.store is store and not torch.equal(
        store.read(torch.arange(len(data()))), before
    )
    objective = X0Regression(anchor="per_example")
    fit(model(True), objective, data(), once)
    first = objective.store
    fit(model(True), objective, data()[:20], once)  # a second run starts afresh, whatever its data
    assert objective.store is not first and len(objective.store) == 20


def test_a_failed_run_leaves_the_store_untouched(tmp_path):
    net, objective = model(True), X0Regression(anchor="per_example")
    objective.prepare(net, TensorData(data(50)), folder=tmp_path)
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
