"""A step of training never waits for the GPU: told on a CPU by a stand-in for the device, and on CUDA by torch itself.

And it is one graph there, in which nothing is fixed that changes from step to step; and nothing is compiled twice.
"""

import copy
import gc
import warnings
import weakref
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, Generator, OnDevice, TapeGraph, counted

import iflow_lib as ifl
from iflow_lib.data import TensorData
from iflow_lib.objectives import AnchorStore, ConsistencyTraining, X0Regression, derivative
from iflow_lib.objectives.anchor_store import last_of_each
from iflow_lib.objectives.base import in_layout_of
from iflow_lib.training import config as settings_of
from iflow_lib.training import loop, runtime
from iflow_lib.training.checkpoints import RunFolder
from iflow_lib.training.distributed import Processes
from iflow_lib.training.graph import WARM_UP, StepGraph
from iflow_lib.training.loop import Trainer
from iflow_lib.utils import to_device

cuda = pytest.mark.cuda
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# ---------------------------------------------------------------- runs


def flow_map(net, path=None, seed=0):
    torch.manual_seed(seed)
    model = ifl.FlowMap(net(), path or ifl.RectifiedFlow())
    with torch.no_grad():  # the last layer starts at zero: most gradients would be none
        for w in model.parameters():
            w.add_(0.05 * torch.randn(w.shape))
    return model


def mlp(**settings):
    return partial(ifl.MLP, dim=2, hidden=8, layers=2, **settings)


def unet(**settings):
    return partial(ifl.UNet, channels=1, size=8, width=8, blocks=1, **settings)


def points(n=20):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 3
    noise = torch.randn(n, 2, generator=generator)
    return TensorData(torch.randn(n, 2, generator=generator), labels, noise=noise)


def images(n=20):
    generator = torch.Generator().manual_seed(1)
    return TensorData(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 3)


def distil(net, **settings):
    return ifl.FlowMapDistillation(teacher=flow_map(net, seed=5), **settings)


#: Name: (objective, network, data, path).
RUNS = {
    "matching": (ifl.FlowMatching, mlp(), points, None),
    "matching, classes": (ifl.FlowMatching, mlp(classes=3), points, None),
    "matching, images": (ifl.FlowMatching, unet(classes=3), images, None),
    "matching, series": (
        ifl.FlowMatching,
        partial(ifl.Transformer, length=2, width=8, layers=1, heads=2),
        lambda: TensorData(points().x[:, :, None]),
        None,
    ),
    "matching, ve": (ifl.FlowMatching, mlp(), lambda: points().x, ifl.VarianceExploding()),
    "matching, velocity of the batch": (
        partial(ifl.FlowMatching, velocity="batch"),
        mlp(classes=3),
        lambda: TensorData(points().x, points().labels),
        ifl.PoissonFlow(8),
    ),
    "identity, velocity of the batch": (
        partial(ifl.IntegralIdentity, velocity="batch", gap=0.05, tangent="conditional"),
        unet(classes=3),
        images,
        None,
    ),
    "matching, pfgmpp": (ifl.FlowMatching, mlp(), lambda: points().x, ifl.PoissonFlow(8)),
    "matching, vp": (ifl.FlowMatching, mlp(), lambda: points().x, ifl.VariancePreserving()),
    "identity, jvp": (partial(ifl.IntegralIdentity, derivative="jvp"), mlp(), points, None),
    "identity, jvp, images": (
        partial(ifl.IntegralIdentity, derivative="jvp", power=0.5, detail=2.0),
        unet(classes=3),
        images,
        None,
    ),
    "identity, difference": (
        partial(ifl.IntegralIdentity, derivative="difference"),
        mlp(),
        lambda: points().x,
        None,
    ),
    "identity, self": (
        partial(ifl.IntegralIdentity, anchor="self", derivative="jvp"),
        mlp(anchor=True),
        points,
        None,
    ),
    "identity, gap": (
        partial(ifl.IntegralIdentity, gap=("geometric", 1.0, 0.01)),
        mlp(),
        points,
        None,
    ),
    "additivity": (ifl.IntegralAdditivity, mlp(), points, None),
    "terminal velocity, jvp": (
        partial(ifl.TerminalVelocity, derivative="jvp"),
        unet(classes=3),
        images,
        None,
    ),
    "terminal velocity, difference": (
        partial(ifl.TerminalVelocity, derivative="difference"),
        mlp(),
        points,
        None,
    ),
    "distillation of a map": (
        partial(distil, unet(), perceptual=1.0, matching=5.0, derivative="difference"),
        unet(),
        images,
        None,
    ),
    "energy matching": (
        partial(ifl.EnergyMatching, ifl.IntegralIdentity(gap=0.1), space="whitened"),
        mlp(classes=3),
        points,
        None,
    ),
    "energy matching, images": (
        partial(ifl.EnergyMatching, ifl.IntegralAdditivity(), space="random", calls=(1, 2)),
        unet(),
        images,
        None,
    ),
    "consistency": (ConsistencyTraining, mlp(), lambda: points().x, None),
    "distillation of pairs": (ifl.Distillation, mlp(), points, None),
    **{
        f"x0, {anchor}": (
            partial(X0Regression, anchor),
            mlp(anchor=anchor != "none"),
            points,
            None,
        )
        for anchor in ("none", "shared", "per_example", "ground_truth", "self")
    },
    "x0, blend": (partial(X0Regression, "per_example", blend=True), mlp(anchor=True), points, None),
}


def trainer(objective, net, data, path=None, *, processes=None, folder=None, **settings):
    settings = {"steps": 100, "batch_size": 10, "log_every": 50, **settings}
    config = ifl.TrainConfig(device="cpu", progress=False, **settings)
    dataset = ifl.data.as_dataset(data())
    return Trainer(flow_map(net, path), objective(), dataset, config, processes, folder)


@pytest.fixture
def on_device(request):
    """Makes trainers on the stand-in; gives also the list of what waited for it."""
    with counted() as waited:

        def make(*run, **settings):
            made = trainer(*run, processes=Processes(device=DEVICE), **settings)
            made.generator = Generator().manual_seed(0)  # as source_of has it on CUDA
            made.history.every_step = False
            waited.clear()
            return made

        yield make, waited


# ---------------------------------------------------------------- no step waits


@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits_for_the_device(on_device, name):
    make, waited = on_device
    made = make(*RUNS[name])
    for _ in range(3):
        made.one_step()
        assert waited == []
    assert all(isinstance(w, OnDevice) for w in (*made.weights, *made.averaged))


def test_the_stand_in_computes_what_the_cpu_computes(on_device):
    make, _ = on_device
    there = make(*RUNS["identity, jvp"])
    for _ in range(3):
        there.one_step()
    here = trainer(*RUNS["identity, jvp"])
    for _ in range(3):
        here.one_step()
    for a, b in zip(there.averaged, here.averaged):
        assert torch.equal(a.elem, b)


def test_a_row_of_the_history_waits_once(on_device):
    make, waited = on_device
    made = make(*RUNS["matching"], log_every=3)
    counts = []
    for _ in range(7):
        made.one_step()
        counts.append(len(waited))
        waited.clear()
    assert counts == [0, 0, 1, 0, 0, 1, 0]
    assert [row[0] for row in made.history.rows] == [3, 6]
    here = trainer(*RUNS["matching"], log_every=3)
    for _ in range(7):
        here.one_step()
    assert [row[1] for row in made.history.rows] == [row[1] for row in here.history.rows]
    assert made.history.first_loss == here.history.first_loss


def test_a_checkpoint_waits_for_its_tensors_and_no_more(on_device, tmp_path):
    make, waited = on_device
    with RunFolder(tmp_path) as folder:
        made = make(*RUNS["x0, per_example"], folder=folder)
        made.one_step()
        assert waited == []
        made.save()
        tensors = folder.load().tensors
    # whether the loss is finite, and the weights; to the device and back, for other processes, the random state
    on_host = {"generator"}
    assert len(waited) == 2 + 1 + len(tensors.keys() - on_host)
    assert "objective.estimates" in tensors and "optimizer.0.step" in tensors


def test_samples_wait_once_a_batch_however_many_calls(on_device):
    _, waited = on_device
    model, counts = flow_map(mlp()), []
    for nfe in (1, 2, 8):
        waited.clear()
        ifl.sample(model, 8, nfe, "map", batch_size=4, device="cpu:0")
        counts.append(len(waited) - len(list(model.parameters())))
    assert counts == [4, 4, 4]  # two batches; from a CPU to CUDA the noise is no wait: it is pinned


def waiting(what):
    """An objective whose loss, or draw, does something with a tensor of the device."""

    @dataclass(frozen=True)
    class Waiting(ifl.FlowMatching):
        def loss(self, model, x_0, z, t, labels):
            what(t)
            return super().loss(model, x_0, z, t, labels)

    return Waiting


@pytest.mark.parametrize(
    "what",
    [
        lambda t: t[0].item(),
        lambda t: float(t.sum()),
        lambda t: bool((t > 0.5).any()),
        lambda t: "late" if t[0] > 0.5 else "early",
        lambda t: t.tolist(),
        lambda t: t.detach().numpy(),
        lambda t: (t > 0.5).nonzero(),
        lambda t: t[t > 0.5],
        lambda t: t.clone().__setitem__(t > 0.5, t[0]),
        lambda t: t.masked_select(t > 0.5),
        lambda t: t.unique(),
        lambda t: torch.equal(t, t + 1),
        lambda t: t.repeat_interleave(torch.ones_like(t).long()),
        lambda t: t.cpu(),
        lambda t: t.to("cpu"),
        lambda t: torch.rand(len(t)).to(t),
        lambda t: torch.tensor([1.0, 2.0], device=t.device),
        lambda t: t.new_tensor([1.0]),
        lambda t: t[torch.tensor([0, 1])],
        lambda t: torch.zeros(len(t)).copy_(t),
        lambda t: torch.where(t > 0.5, t, torch.tensor(0.0)),
    ],
)
def test_the_stand_in_sees_what_waits(on_device, what):
    make, waited = on_device
    made = make(waiting(what), mlp(), lambda: points().x)
    made.one_step()
    assert len(waited) == 1


def test_the_stand_in_does_not_mistake_what_does_not_wait(on_device):
    def fine(t):
        t[2:].clone().masked_fill_(t[2:] > 0.5, 1.0)
        torch.where(t > 0.5, t, 0.0)
        t[t.argsort()[:3]].max()
        t.new_full((3,), 2.0)
        torch.zeros(3, device=t.device).copy_(t[:3])
        return t * torch.tensor(2.0)  # a number of the host that a kernel is given

    make, waited = on_device
    make(waiting(fine), mlp(), lambda: points().x).one_step()
    assert waited == []
    with pytest.raises(AssertionError, match="mixes tensors of the device and of the host"):
        make(waiting(lambda t: t + torch.zeros(len(t))), mlp(), points).one_step()


def test_random_numbers_are_drawn_where_a_gpu_computes():
    assert runtime.source_of(torch.device("cuda", 1)) == torch.device("cuda", 1)
    for other in ("cpu", "mps"):  # mps cannot draw all the noise laws
        assert runtime.source_of(torch.device(other)) == torch.device("cpu")
    assert trainer(*RUNS["matching"]).generator.device.type == "cpu"


# ---------------------------------------------------------------- what was changed so that none does


def test_the_last_of_each_as_numpy_has_it():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        index = torch.randint(30, (40,), generator=generator)
        values = torch.randn(40, 2, generator=generator)
        expected = np.zeros((30, 2), dtype=np.float32)
        expected[index.numpy()] = values.numpy()
        last = last_of_each(index)
        assert torch.equal(index[last], index)
        assert np.array_equal(expected[index.numpy()], values[last].numpy())
        store = AnchorStore(30, (2,))
        store.estimates.zero_()
        store.update(index, values)
        assert np.array_equal(store.estimates.numpy(), expected)


def test_a_failed_step_leaves_the_shared_anchor():
    objective, model = X0Regression("shared"), flow_map(mlp(anchor=True))
    objective.prepare(model, points())
    objective(model, points().x[:5], torch.Generator().manual_seed(0))
    before = objective.state()["running"].clone()
    with torch.no_grad():
        model.net.out.bias.fill_(float("nan"))
    assert not torch.isfinite(objective(model, points().x[:5], torch.Generator()))
    assert torch.equal(objective.state()["running"], before)


def test_noise_can_lie_as_the_data_do():
    """On CUDA: kernels that read one tensor by channel and another by row are slow."""
    z = torch.randn(2, 3, 4, 4)
    x_0 = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    moved = in_layout_of(x_0, z)
    assert torch.equal(moved, z) and moved.stride() == x_0.stride() != z.stride()
    assert in_layout_of(z, z) is z and in_layout_of(z[0], z[0]).stride() == z[0].stride()


def test_more_processes_than_examples_are_refused():
    config = ifl.TrainConfig(steps=1, batch_size=3, device="cpu")
    with pytest.raises(ValueError, match="2 examples are too few for 3 processes"):
        loop.Batches(TensorData(torch.randn(2, 2)), flow_map(mlp()), config, Processes(0, 3))


# ---------------------------------------------------------------- one graph


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs on this CPU: the list of those that were made. Nothing is compiled, and rates are of float32, as in a graph."""
    made = []

    def new(device):
        made.append(TapeGraph())
        return made[-1]

    rate = settings_of.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda c, step: float(np.float32(rate(c, step))))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(loop, "cuda_graph", new)
    return made


def trained(*run, steps=12, **settings):
    made = trainer(*run, steps=steps, log_every=4, warmup=3, ema=0.9, **settings)
    made.run()
    return made


def same(a, b):
    assert [row[:2] for row in a.history.rows] == [row[:2] for row in b.history.rows]
    assert all(torch.equal(*pair) for pair in zip(a.weights, b.weights))
    assert all(torch.equal(*pair) for pair in zip(a.averaged, b.averaged))
    states = a.objective.state(), b.objective.state()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize("name", RUNS)
def test_a_graph_makes_the_steps_that_are_made_without(graphs, name):
    replayed = trained(*RUNS[name], compile="graphs")
    assert graphs[0].log == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * (12 - WARM_UP)
    same(replayed, trained(*RUNS[name], compile=False))
    assert len(graphs) == 1


def test_a_run_with_a_graph_is_forgotten_at_its_end(graphs):
    """With its memory on the device: the collector of cycles may come much later."""
    made = trained(*RUNS["matching"], compile="graphs")
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["rate", "share"])
def test_a_number_of_python_would_stay_as_it_was(graphs, monkeypatch, what):
    """So the stand-in does see what a graph would keep."""

    def fixed(self):
        set_rates(self)
        if what == "rate":
            self.optimizer.param_groups[0]["lr"] = float(self.rate)
        else:
            self.share = float(self.share)

    plain, set_rates = trained(*RUNS["matching"], compile=False), Trainer._set_rates
    monkeypatch.setattr(Trainer, "_set_rates", fixed)
    broken = trained(*RUNS["matching"], compile="graphs")
    moved = "weights" if what == "rate" else "averaged"
    assert not all(map(torch.equal, getattr(plain, moved), getattr(broken, moved)))


@dataclass(frozen=True)
class Uneven(ifl.FlowMatching):
    """Every third step has fewer rows. What its loss returns beside the loss is kept."""

    def draw(self, model, batch, generator):
        drawn = super().draw(model, batch, generator)
        return {k: v[:7] if k != "labels" and batch.step % 3 == 2 else v for k, v in drawn.items()}

    def loss(self, model, x_0, z, t, labels):
        return super().loss(model, x_0, z, t, labels)[0], 2 * t

    def update_state(self, batch, drawn, loss, estimate):
        SEEN.append((loss, estimate))


SEEN = []


def test_a_step_of_another_shape_is_made_without(graphs):
    SEEN.clear()
    run = (Uneven, mlp(), lambda: points().x)
    replayed = trained(*run, compile="graphs")
    # steps 2, 5, 8 and 11 are the small ones
    assert graphs[0].log == ["warm up"] * WARM_UP + ["capture", *["replay"] * (8 - WARM_UP)]
    same(replayed, trained(*run, compile=False))
    # what each step gave is its own, and is not written over by the next ones
    assert all(torch.equal(*pair) for i in range(12) for pair in zip(SEEN[i], SEEN[12 + i]))


def test_where_recording_fails_training_goes_on_and_says_so(graphs, monkeypatch):
    def fails(self, function):
        self.log.append("capture")
        function()  # as far as it goes: CUDA would record it only
        raise RuntimeError("CUDA error: operation not permitted\nand a long story")

    monkeypatch.setattr(TapeGraph, "capture", fails)
    lost = []
    step = StepGraph._step
    monkeypatch.setattr(
        StepGraph,
        "_step",
        lambda self, whole: step(self, whole) if self.calls <= WARM_UP else lost.append(1),
    )
    with pytest.warns(RuntimeWarning, match="going on without a CUDA graph of the step") as said:
        without = trained(*RUNS["identity, difference"], compile="graphs")
    ours = [str(w.message) for w in said if "CUDA graph" in str(w.message)]
    assert len(ours) == 1 and "\n" not in ours[0] and "operation not permitted" in ours[0]
    assert graphs[0].log == ["warm up"] * WARM_UP + ["capture"] and len(lost) == 1
    same(without, trained(*RUNS["identity, difference"], compile=False))


def test_what_is_not_recorded_yet_is_no_warning(recwarn):
    """Adam warns of steps that are not recorded, and the first ones are not."""
    graph = StepGraph(TapeGraph())

    def step(drawn):
        warnings.warn(
            "This instance was constructed with capturable=True or some of all the param_groups came "
            "with capturable=True, but step() is running without CUDA graph capture.",
            UserWarning,
            stacklevel=2,
        )
        return drawn["x"].sum(), None

    assert float(graph(step, {"x": torch.ones(3)})[0]) == 3 and not recwarn.list


def test_in_bfloat16_a_call_without_gradient_takes_no_gradient_from_the_next():
    """Autocast's cache does in torch of 2025 and before (its issue 112583): it kept the weights that were cast for the first call."""
    net = torch.nn.Linear(2, 2)
    with runtime.autocast(torch.device("cpu"), "bfloat16"):
        assert not torch.is_autocast_cache_enabled()
        with torch.no_grad():
            net(torch.ones(1, 2))
        net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None and net.bias.grad is not None


@dataclass(frozen=True)
class WithANumber(ifl.FlowMatching):
    def draw(self, model, batch, generator):
        return {**super().draw(model, batch, generator), "factor": 1.0 + batch.step}

    def loss(self, model, x_0, z, t, labels, factor):
        loss, _ = super().loss(model, x_0, z, t, labels)
        return factor * loss, None


def test_what_is_drawn_must_be_tensors_to_be_recorded(graphs):
    run = (WithANumber, mlp(), lambda: points().x)
    with pytest.warns(RuntimeWarning, match="could not be recorded: AttributeError"):
        without = trained(*run, compile="graphs")
    assert graphs[0].log == []
    same(without, trained(*run, compile=False))


class Changing(ifl.FlowMatching):
    """No frozen dataclass itself: its loss may read what changes."""


@dataclass
class Open(ifl.Objective):
    pass


def test_only_an_objective_that_cannot_change_is_recorded(graphs):
    assert ifl.FlowMatching().captures() and Uneven().captures() and X0Regression().captures()
    assert not Changing().captures() and not Open().captures()
    assert trained(Changing, mlp(), points, compile="graphs").graph is None and graphs == []

    class Own(ifl.FlowMatching):
        def __call__(self, model, batch, generator=None):
            return super().__call__(model, batch, generator)

        def captures(self):
            return True

    assert trained(Own, mlp(), points, compile="graphs").graph is None and graphs == []
    for setting in (True, False, "auto"):
        assert trained(*RUNS["matching"], compile=setting).graph is None


def test_several_processes_and_a_cpu_have_no_graph_of_the_step(graphs, monkeypatch):
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda loss, **_: loss)
    made = trainer(*RUNS["matching"], compile="graphs", processes=Processes(0, 2))
    assert made.graph is None and graphs == []
    monkeypatch.undo()
    assert trainer(*RUNS["matching"], compile="graphs").graph is None


@pytest.mark.parametrize("name", ["identity, difference", "x0, per_example", "x0, shared"])
@pytest.mark.parametrize("stop", [2, 8])
def test_a_run_with_a_graph_goes_on_to_the_bit(graphs, tmp_path, name, stop):
    """Stopped before it is recorded, and after. The optimizer counts its steps on the device."""
    settings = {"compile": "graphs", "steps": 12, "log_every": 4, "warmup": 3}
    with RunFolder(tmp_path) as folder:
        first = trainer(*RUNS[name], folder=folder, **settings)
        for _ in range(stop):
            first.one_step()
        first.save()
        rest = trainer(*RUNS[name], folder=folder, **settings)
        rest.resume(None)
        rest.run()
    whole = trainer(*RUNS[name], **settings)
    whole.run()
    same(rest, whole)
    count = rest.optimizer.state[rest.weights[0]]["step"]
    assert count == 12 and rest.optimizer.param_groups[0]["capturable"]
    assert rest.optimizer.param_groups[0]["lr"] is rest.rate


# ---------------------------------------------------------------- nothing is compiled twice


@pytest.fixture
def compiled_once(monkeypatch):
    """torch.compile without a compiler, which raises where it would compile again."""
    torch._dynamo.reset()
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile(f, backend="eager", **_plain(options))
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def _plain(options):
    return {k: v for k, v in options.items() if k != "mode"}  # of another backend


@pytest.mark.filterwarnings("error:going on without torch.compile")
@pytest.mark.parametrize("name", [n for n in RUNS if "images" not in n])
def test_a_loss_is_compiled_once(compiled_once, name):
    """In one piece. The rate, the epoch, the stage, the anchor change; nothing that it is compiled for does."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    made = trainer(*RUNS[name], steps=6, log_every=2, compile=True)
    made.run()
    assert made.loss.call.compiled is not None and made.step == 6
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.filterwarnings("error:going on without torch.compile")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["matching, series", "matching, images"])
def test_forward_mode_is_compiled_in_one_piece(compiled_once, name, precision):
    """Norms as torch has them could not be traced in it, and all that calls them would stay eager, without a word."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    _, net, data, _ = RUNS[name]
    identity = partial(ifl.IntegralIdentity, derivative="jvp")
    made = trainer(identity, net, data, steps=2, compile=True, precision=precision)
    made.one_step()
    assert made.loss.call.compiled is not None
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    plain = trainer(identity, net, data, steps=2, compile=False)
    plain.one_step()
    mine, right = (float(run.history._losses[0]) for run in (made, plain))
    assert abs(mine / right - 1) < (1e-4 if precision == "float32" else 0.05)


@pytest.mark.filterwarnings("error:going on without torch.compile")
def test_compiling_again_would_be_seen(compiled_once):
    made = trainer(WithANumber, mlp(), lambda: points().x, steps=6, compile=True)
    with pytest.raises(RuntimeWarning, match="RecompileError"):
        made.run()


@pytest.mark.filterwarnings("error:going on without torch.compile")
@pytest.mark.parametrize(
    "net, settings",
    [
        (mlp(), {"nfe": 4}),
        (mlp(), {"nfe": 3, "method": "euler", "trajectory": True}),
        (mlp(classes=3), {"nfe": 4, "labels": torch.arange(20) % 3, "guidance": 2.0}),
        (mlp(anchor=True), {"nfe": 2, "method": "anchor"}),
        (mlp(anchor=True), {"nfe": 3, "method": "map"}),
    ],
    ids=["map", "euler", "guided", "anchor", "anchored map"],
)
def test_samples_of_a_compiled_model_are_compiled_once(compiled_once, net, settings):
    """At whatever times, and for a last batch that is not full, which changes no sample."""
    model = flow_map(net)
    settings = {"batch_size": 8, "seed": 3, **settings}
    expected = ifl.sample(model, 20, **settings)
    fast = copy.deepcopy(model)
    fast.compile()
    assert fast.compiled and not model.compiled and not copy.deepcopy(fast).compiled
    found = ifl.sample(fast, 20, **settings)
    assert found.x.shape == (20, 2) and found.nfe == expected.nfe
    torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-6)
    if expected.trajectory is not None:
        torch.testing.assert_close(found.trajectory, expected.trajectory, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.times, expected.times)
    assert fast._compiled_call_impl.compiled is not None  # it did not give up
    if "labels" not in settings:
        with pytest.raises(RuntimeWarning, match="RecompileError"):  # so that would have been seen
            ifl.sample(fast, 7, **settings)


def test_only_batches_that_follow_a_full_one_are_filled_up():
    sizes = []

    class Sizes(ifl.MLP):
        def forward(self, x, t, s):
            sizes.append(len(x))
            return super().forward(x, t, s)

    model = flow_map(partial(Sizes, dim=2, hidden=8, layers=1))
    model.net._compiled_call_impl = model.net._call_impl  # as if it was compiled
    for n, method in ((3, "map"), (8, "map"), (19, "map"), (19, "rk45")):
        sizes.clear()
        assert len(ifl.sample(model, n, 1, method, batch_size=8).x) == n
        assert set(sizes) == ({8, 3} if method == "rk45" else {min(n, 8)})
    model.net._compiled_call_impl = None
    sizes.clear()
    ifl.sample(model, 19, 1, batch_size=8)
    assert sizes == [8, 8, 3]


# ---------------------------------------------------------------- TF32


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", [(False, True), (True, False)])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_what_was_asked_for_and_afterwards_what_it_was(before, precision):
    own = flags()
    try:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        with pytest.raises(KeyError):
            with runtime.float32_products(torch.device("cuda"), precision):
                assert flags() == ((precision == "tf32",) * 2)
                raise KeyError
        assert flags() == before
        with runtime.float32_products(torch.device("cpu"), "float32"):
            assert flags() == before
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = own


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="an older torch")
def test_torch_settings_that_cannot_be_put_back_are_left():
    """Its older and newer names for TF32 do not go together: where both are used, reading one fails."""
    own = flags()
    try:
        torch.backends.cudnn.conv.fp32_precision = "none" if own[1] else "tf32"
        with pytest.warns(RuntimeWarning, match="fp32_precision was set"):
            with runtime.float32_products(torch.device("cuda"), "tf32"):
                kept = torch.backends.cudnn.conv.fp32_precision
        assert kept == torch.backends.cudnn.conv.fp32_precision != ("tf32" if own[1] else "none")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = own
    assert flags() == own


def test_tf32_elsewhere_is_float32_and_says_so():
    def fit(**settings):
        config = ifl.TrainConfig(
            steps=3, batch_size=8, device="cpu", progress=False, log_every=1, **settings
        )
        return ifl.fit(flow_map(mlp()), ifl.FlowMatching(), points().x, config)

    with pytest.warns(RuntimeWarning, match='precision="tf32" is of CUDA') as said:
        run = fit(precision="tf32")
    assert len(said) == 1 and said[0].filename == __file__
    assert run.history.loss.equals(fit().history.loss)
    assert run.manifest["config"]["precision"] == "tf32"


def test_a_difference_in_tf32_is_warned_of(monkeypatch):
    monkeypatch.setattr(derivative, "uses_tf32", lambda device: True)
    model = flow_map(mlp())
    with pytest.warns(RuntimeWarning, match="mostly rounding"):
        ifl.IntegralIdentity(derivative="difference").prepare(model, points())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ifl.IntegralIdentity(derivative="jvp").prepare(model, points())


# ---------------------------------------------------------------- on CUDA


def on_cuda(name, **settings):
    """A trainer on the GPU."""
    objective, net, data, path = RUNS[name]
    return trainer(
        objective, net, data, path, processes=Processes(device=torch.device("cuda", 0)), **settings
    )


def flat(weights):
    return torch.cat([w.detach().cpu().flatten() for w in weights])


@cuda
@needs_cuda
@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits_for_a_gpu(name):
    made = on_cuda(name)
    for _ in range(2):
        made.one_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            made.one_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.generator.device.type == "cuda"
    assert all(bool(torch.isfinite(w).all()) for w in made.averaged)


@cuda
@needs_cuda
@pytest.mark.parametrize("name", RUNS)
def test_a_graph_on_a_gpu_makes_the_steps_that_are_made_without(name, monkeypatch):
    """The loss is not compiled here: its rounding would be another one."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    replayed, plain = (
        trained(*RUNS[name], compile=how, processes=Processes(device=torch.device("cuda", 0)))
        for how in ("graphs", False)
    )
    assert replayed.graph.recorded and not replayed.graph.refused
    losses = [[row[1] for row in made.history.rows] for made in (replayed, plain)]
    assert np.allclose(*losses, rtol=1e-2)
    if "images" in name or "map" in name:
        return  # biases before a norm have gradients of mere rounding, which Adam makes large
    start = flow_map(*RUNS[name][1::2])  # the network, on the path
    far = flat(plain.weights) - flat(start.parameters())
    assert float((flat(replayed.weights) - flat(plain.weights)).norm() / far.norm()) < 0.02


@cuda
@needs_cuda
def test_a_compiled_step_is_recorded_on_a_gpu():
    made = on_cuda("identity, jvp", compile="graphs", steps=20)
    made.run()
    assert made.graph.recorded and made.loss.call.compiled is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.step = 0
        for _ in range(3):
            made.one_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@needs_cuda
def test_the_last_estimate_of_an_example_stays_on_a_gpu():
    index = torch.randint(30, (400,), generator=torch.Generator().manual_seed(0))
    values = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    stores = AnchorStore(30, (2,)), AnchorStore(30, (2,), device="cuda")
    stores[0].update(index, values)
    stores[1].update(index.cuda(), values.cuda())
    assert torch.equal(stores[0].estimates, stores[1].estimates.cpu())


@cuda
@needs_cuda
def test_what_goes_to_a_gpu_is_pinned():
    x = torch.randn(1000, 3)
    there = to_device(x, torch.device("cuda", 0), torch.float64)
    assert there.device.type == "cuda" and torch.equal(there.cpu(), x.double())
    torch.cuda.set_sync_debug_mode("error")
    try:
        to_device(x, torch.device("cuda", 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
