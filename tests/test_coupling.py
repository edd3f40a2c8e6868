"""Noise paired with data within a batch: the order is the best there is, and nothing else changes."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from exact import one_line, randomise
from fake_cuda import DEVICE, Generator, OnDevice, counted
from test_scale import linux, results, torchrun
from together import train

import iflow_lib as ifl
from iflow_lib.data import TensorData
from iflow_lib.objectives.base import Batch
from iflow_lib.training import coupling
from iflow_lib.training.batches import Batches
from iflow_lib.training.checkpoints import RunFolder
from iflow_lib.training.coupling import Pairing, exact_order, swapped_order
from iflow_lib.training.distributed import Processes
from iflow_lib.training.loop import Trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ORDERS = [exact_order, swapped_order]


def draws(n, *shape, seed=0):
    """Data and noise."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g) * 2 + 1, torch.randn(n, *shape, generator=g)


def cost(x, z, order):
    """Mean of the squared distances."""
    return float((x - z[order]).double().square().flatten(1).sum(1).mean())


def in_order(rows):
    """Rows (n, ...) sorted, to compare them as sets."""
    return sorted(map(tuple, rows.flatten(1).tolist()))


def mlp(classes=0, **settings):
    return randomise(ifl.MLP(dim=2, hidden=16, layers=2, classes=classes, **settings))


def settings(**changes):
    known = {"steps": 12, "batch_size": 32, "device": "cpu", "progress": False, "log_every": 1}
    return ifl.TrainConfig(**known | {"coupling": "ot"} | changes)


# ---------------------------------------------------------------- the order


@pytest.mark.parametrize("find", ORDERS)
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
@pytest.mark.parametrize("n", [1, 2, 33, 256])
def test_it_is_an_order_that_shortens_the_way(find, shape, n):
    x, z = draws(n, *shape)
    order = find(x, z)
    assert order.tolist() != list(range(n)) or n < 3
    assert sorted(order.tolist()) == list(range(n))
    assert cost(x, z, order) <= cost(x, z, torch.arange(n))


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_order_is_the_best_of_all(seed):
    x, z = draws(5, 3, seed=seed)
    every = [cost(x, z, list(order)) for order in itertools.permutations(range(5))]
    assert cost(x, z, exact_order(x, z)) == pytest.approx(min(every), rel=1e-12)
    assert len(set(every)) > 100


@pytest.mark.parametrize("shape", [(2,), (32,), (1, 8, 8)])
def test_it_costs_what_torchcfm_finds(shape):
    theirs = pytest.importorskip("torchcfm.optimal_transport")
    x, z = (a.double() for a in draws(128, *shape))
    plan = torch.from_numpy(theirs.OTPlanSampler("exact").get_map(z, x))
    least = float((plan * torch.cdist(z.flatten(1), x.flatten(1)) ** 2).sum())
    ours = cost(x, z, exact_order(x, z))
    assert ours == pytest.approx(least, rel=1e-6)
    assert cost(x, z, torch.arange(128)) > 1.05 * least


@pytest.mark.parametrize("alpha, sigma", [(0.3, 0.7), (1.0, 80.0)])
def test_the_scales_of_a_path_do_not_matter(alpha, sigma):
    x, z = draws(64, 4)
    assert torch.equal(exact_order(x, z), exact_order(alpha * x + 5, sigma * z))


@pytest.mark.parametrize(
    "n, dim, least", [(64, 2, 0.98), (512, 2, 0.98), (256, 32, 0.88), (256, 784, 0.85)]
)
def test_swaps_gain_nearly_as_much(n, dim, least):
    """Of what the exact order gains over the mean of all orders, on Gaussian data, which are the hardest."""
    x, z = draws(n, dim)
    chance = float(torch.cdist(x.double(), z.double()).square().mean())
    gains = [chance - cost(x, z, find(x, z)) for find in ORDERS]
    assert least < gains[1] / gains[0] <= 1 + 1e-9


def test_swaps_of_examples_that_are_the_same():
    """A batch is drawn with replacement."""
    x, z = draws(60, 2)
    x = x[:15].repeat(4, 1)
    order = swapped_order(x, z)
    assert sorted(order.tolist()) == list(range(60))
    assert cost(x, z, order) < 1.05 * cost(x, z, exact_order(x, z))


@pytest.mark.parametrize("find", ORDERS)
def test_noise_stays_within_a_class(find):
    x, z = draws(50, 2)
    labels = torch.arange(50) % 4
    labels[7] = 9  # alone
    order = find(x, z, labels)
    assert sorted(order.tolist()) == list(range(50)) and order[7] == 7
    assert torch.equal(labels[order], labels)
    for label in range(4):
        rows = (labels == label).nonzero()[:, 0]
        best = cost(x[rows], z[rows], exact_order(x[rows], z[rows]))
        assert cost(x[rows], z, order[rows]) < (1.0001 if find is exact_order else 1.2) * best


# ---------------------------------------------------------------- the batches of a run


def drawn(objective, how, path=None, classes=0, data=None, **changes):
    """What an objective draws of the first batch: the batch, and its arguments of the loss."""
    x, _ = draws(80, 2)
    data = TensorData(x, torch.arange(80) % 3) if data is None else data
    torch.manual_seed(0)
    model = ifl.FlowMap(
        mlp(classes, anchor=getattr(objective, "anchor", None) not in (None, "none")),
        path or ifl.PoissonFlow(3),
    )
    objective.prepare(model, data)
    batches = Batches(data, model, settings(coupling=how, **changes), Processes())
    g = torch.Generator().manual_seed(5)
    batch = batches.draw(0, g)
    return batch, objective.draw(model, batch, g), data


def objectives():
    torch.manual_seed(3)
    teacher = ifl.FlowMap(mlp(), ifl.PoissonFlow(3))
    return {
        "FlowMatching": ifl.FlowMatching(),
        "IntegralIdentity": ifl.IntegralIdentity(),
        "IntegralIdentity, self": ifl.IntegralIdentity(anchor="self"),
        "IntegralIdentity, gap": ifl.IntegralIdentity(gap=0.05),
        "IntegralAdditivity": ifl.IntegralAdditivity(),
        "TerminalVelocity": ifl.TerminalVelocity(),
        "ConsistencyTraining": ifl.ConsistencyTraining(),
        "FlowMapDistillation": ifl.FlowMapDistillation(teacher=teacher),
        "EnergyMatching": ifl.EnergyMatching(calls=(1, 2)),
        "X0Regression": ifl.X0Regression(),
        "X0Regression, per_example": ifl.X0Regression("per_example"),
    }


OBJECTIVES = objectives()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_draws_the_same_in_another_order(name):
    (plain, one, _), (_, other, _) = (drawn(OBJECTIVES[name], how) for how in ("independent", "ot"))
    assert "velocity" not in other  # of the batch: only for noise that is drawn independently
    for key in one.keys() - {"z", "velocity"}:
        assert (one[key] is None and other[key] is None) or torch.equal(one[key], other[key]), key
    assert not torch.equal(one["z"], other["z"]) and in_order(one["z"]) == in_order(other["z"])
    best = one["z"][exact_order(plain.x_0, one["z"])]
    assert torch.equal(other["z"], best)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name):
    objective = OBJECTIVES[name]
    anchored = getattr(objective, "anchor", None) not in (None, "none")
    losses = {}
    for how in ("independent", "ot"):
        torch.manual_seed(0)
        model = ifl.FlowMap(mlp(anchor=anchored), ifl.PoissonFlow(3))
        run = ifl.fit(model, objective, draws(80, 2)[0], settings(coupling=how))
        losses[how] = run.history.loss
        assert run.manifest["config"]["coupling"] == how
    assert np.isfinite(losses["ot"]).all() and not losses["ot"].equals(losses["independent"])


def test_the_radii_of_heavy_tails_are_kept():
    _, one, _ = drawn(ifl.FlowMatching(), "independent", ifl.PoissonFlow(1))
    _, other, _ = drawn(ifl.FlowMatching(), "ot", ifl.PoissonFlow(1))
    radii = [a["z"].norm(dim=1).sort().values for a in (one, other)]
    assert torch.equal(*radii) and radii[0][-1] > 10 * radii[0].median()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_classes_are_those_of_the_data_before_any_is_withheld(dropout):
    found = [
        drawn(ifl.FlowMatching(), how, classes=3, label_dropout=dropout)
        for how in ("independent", "ot")
    ]
    (batch, one, data), (_, other, _) = found
    assert torch.equal(one["labels"], other["labels"])
    assert bool((one["labels"] == -1).any()) == (dropout > 0)
    labels = data.labels[batch.index]
    for label in range(3):
        a, b = (d["z"][labels == label] for d in (one, other))
        assert in_order(a) == in_order(b) and not torch.equal(a, b)


def test_an_example_that_is_alone_in_its_class_keeps_its_noise():
    """So does every example of a batch in which each class is there once. Neither stops a run."""
    x, _ = draws(33, 2)
    for labels in (torch.arange(33) // 32, torch.arange(33)):
        data = TensorData(x, labels)
        (batch, one, _), (_, other, _) = (
            drawn(ifl.FlowMatching(), how, classes=33, data=data, label_dropout=0.5)
            for how in ("independent", "ot")
        )
        shown = labels[batch.index]
        alone = (shown[:, None] == shown).sum(1) == 1
        assert alone.any()
        assert torch.equal(one["z"][alone], other["z"][alone])
        model = ifl.FlowMap(mlp(classes=33), ifl.RectifiedFlow())
        assert np.isfinite(ifl.fit(model, ifl.FlowMatching(), data, settings()).history.loss).all()


def test_labels_of_a_network_without_classes_do_not_part_the_batch():
    batch, one, data = drawn(ifl.FlowMatching(), "ot")
    _, other, _ = drawn(ifl.FlowMatching(), "ot", data=TensorData(data.x))
    assert torch.equal(one["z"], other["z"])


@pytest.mark.parametrize("find", ORDERS)
def test_the_noise_of_a_class_keeps_its_law(find):
    """Paired over the whole batch, the noise of a class would lie where its data lie."""
    means = {"within": [], "over all": []}
    for seed in range(40):
        x, z = draws(64, 2, seed=seed)
        labels = torch.arange(64) % 2
        x[labels == 0] += 5
        means["within"].append(z[find(x, z, labels)][labels == 0].mean(0))
        means["over all"].append(z[find(x, z)][labels == 0].mean(0))
    within, over = (torch.stack(means[k]).mean(0).abs().max() for k in means)
    assert within < 4 / (40 * 32) ** 0.5 < 0.3 < over


def test_images_in_channels_last_order():
    data = TensorData(draws(20, 3, 8, 8)[0])
    torch.manual_seed(0)
    net = ifl.UNet(channels=3, size=8, width=8, blocks=1)
    model = ifl.FlowMap(net, ifl.RectifiedFlow())
    found = []
    for channels_last in (True, False):
        config = settings(batch_size=16, channels_last=channels_last)
        g = torch.Generator().manual_seed(0)
        batch = Batches(data, model, config, Processes()).draw(0, g)
        found.append(batch.draw_noise(model, g))
    assert torch.equal(*found)


def test_data_in_a_file(tmp_path):
    x = draws(80, 2)[0].numpy()
    np.save(tmp_path / "x.npy", x)
    losses = []
    for data in (x, np.load(tmp_path / "x.npy", mmap_mode="c")):
        torch.manual_seed(0)
        model = ifl.FlowMap(mlp(), ifl.RectifiedFlow())
        losses.append(ifl.fit(model, ifl.FlowMatching(), data, settings()).history.loss)
    assert losses[0].equals(losses[1])


# ---------------------------------------------------------------- stopped and continued, and shared


def run(folder, resume=None, **changes):
    torch.manual_seed(0)
    model = ifl.FlowMap(mlp(classes=3), ifl.PoissonFlow(8))
    data = TensorData(draws(80, 2)[0], torch.arange(80) % 3)
    config = settings(out_dir=folder, checkpoint_every=4, keep=9, **changes)
    return ifl.fit(model, ifl.IntegralIdentity(), data, config, resume=resume)


def test_a_run_that_is_continued_is_the_undisturbed_one(tmp_path):
    whole = run(tmp_path / "whole")
    again = run(tmp_path / "again", resume=tmp_path / "whole" / "checkpoints" / "step-00000004")
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.history.loss.equals(whole.history.loss)


def test_the_coupling_is_part_of_a_run_and_earlier_versions_had_none(tmp_path):
    whole = run(tmp_path / "whole", coupling="independent")
    with pytest.raises(ValueError) as error:
        run(tmp_path / "whole", resume="auto")
    words = "its config is {'coupling': 'independent'}, here it is {'coupling': 'ot'}"
    assert words in one_line(error)
    with RunFolder(tmp_path / "old") as folder:
        early = tmp_path / "whole" / "checkpoints" / "step-00000004"
        tensors, info, _ = RunFolder(tmp_path / "whole").load(early)
        del info["identity"]["config"]["coupling"]
        folder.save(4, tensors, info)
    shutil.copytree(tmp_path / "old", tmp_path / "paired")
    again = run(tmp_path / "old", resume="auto", coupling="independent")
    assert again.history.loss.equals(whole.history.loss)
    with pytest.raises(ValueError) as error:
        run(tmp_path / "paired", resume="auto")
    assert words in one_line(error)


@linux
@pytest.mark.long
def test_two_processes_give_the_run_of_one(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    two.mkdir()
    train(alone, coupling="ot")
    torchrun(two, "30", "coupling")
    train(tmp_path / "plain")
    for name in ("IntegralIdentity", "X0Regression"):
        (one, a), (both, b), (plain, _) = (
            results(f, name) for f in (alone, two, tmp_path / "plain")
        )
        assert (both.loss / one.loss - 1).abs().max() < 1e-4
        assert all((a[k] - b[k]).abs().max() < 1e-3 for k in a if k.startswith("model."))
        assert (plain.loss / one.loss - 1).abs().max() > 1e-2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, words",
    [
        ({"coupling": "OT"}, "coupling must be one of 'independent', 'ot', got 'OT'"),
        ({"coupling": None}, "coupling must be one of"),
        ({"coupling": True}, "coupling must be one of"),
        ({"batch_size": 1}, "batch_size 1 leaves no choice"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError) as error:
        settings(**options)
    assert words in one_line(error)


def test_data_with_noise_of_their_own_are_refused():
    x, z = draws(40, 2)
    model = ifl.FlowMap(mlp(), ifl.RectifiedFlow())
    for objective in (ifl.FlowMatching(), ifl.Distillation()):
        with pytest.raises(ValueError) as error:
            ifl.fit(model, objective, TensorData(x, noise=z), settings())
        assert "these data bring their own" in one_line(error) and "data.x" in str(error.value)
    with pytest.raises(ValueError, match="Distillation needs coupled noise"):
        ifl.fit(model, ifl.Distillation(), x, settings())


class Own(ifl.FlowMatching):
    """An objective that draws its noise itself."""

    def draw(self, model, batch, generator):
        z = torch.randn(batch.x_0.shape, generator=generator)
        return super().draw(model, Batch(batch.x_0, noise=z), generator)


class OwnCall(Own):
    def __call__(self, model, batch, generator=None):
        return super().__call__(model, batch, generator)


@pytest.mark.parametrize("objective", [Own, OwnCall])
def test_an_objective_that_draws_its_own_noise_is_refused(objective):
    model = ifl.FlowMap(mlp(), ifl.RectifiedFlow())
    before = [w.clone() for w in model.parameters()]
    with pytest.raises(ValueError) as error:
        ifl.fit(model, objective(), draws(40, 2)[0], settings())
    assert f"{objective.__name__} draws its own noise" in one_line(error)
    assert "batch.draw_noise(model, generator)" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    ifl.fit(model, objective(), draws(40, 2)[0], settings(coupling="independent"))


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("classes", [0, 3])
def test_on_a_device_no_step_waits(monkeypatch, classes):
    """As on CUDA, with a stand-in for it."""
    monkeypatch.setattr(coupling, "exact_order", swapped_order)
    x = draws(80, 2)[0]

    def steps(processes, generator):
        torch.manual_seed(0)
        model = ifl.FlowMap(mlp(classes), ifl.RectifiedFlow())
        data = TensorData(x, torch.arange(80) % 3)
        config = settings(log_every=50, steps=100)
        made = Trainer(model, ifl.IntegralIdentity(derivative="jvp"), data, config, processes)
        made.generator = generator.manual_seed(0)
        made.history.every_step = False
        return made

    with counted() as waited:
        there = steps(Processes(device=DEVICE), Generator())
        waited.clear()
        for _ in range(3):
            there.one_step()
            assert waited == []
        assert all(isinstance(w, OnDevice) for w in there.weights)
    here = steps(Processes(), torch.Generator())
    for _ in range(3):
        here.one_step()
    assert all(torch.equal(a.elem, b) for a, b in zip(there.weights, here.weights))


@pytest.mark.cuda
@needs_cuda
def test_pairing_on_a_gpu_waits_for_nothing():
    x, z = draws(256, 32)
    labels = torch.arange(256) % 3
    on_gpu = [a.cuda() for a in (x, z, labels)]
    Pairing(on_gpu[0], on_gpu[2])(on_gpu[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        paired = [Pairing(on_gpu[0], known)(on_gpu[1]) for known in (None, on_gpu[2])]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    chance = float(torch.cdist(x.double(), z.double()).square().mean())
    for out, known in zip(paired, (None, labels)):
        assert in_order(out.cpu()) == in_order(z)
        gains = [
            chance - cost(x, a, torch.arange(256)) for a in (out.cpu(), z[exact_order(x, z, known)])
        ]
        assert 0.85 < gains[0] / gains[1] < 1 + 1e-6
