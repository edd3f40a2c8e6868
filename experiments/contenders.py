"""What experiments/speed.py and experiments/gpu.py time, and how: a step of ``fit`` and of the neighbours' loops, in turns."""

import functools
import math
import random
import time

import torch

import iflow_lib as ifl
from iflow_lib.training.loop import Trainer

PEERS = ("torchcfm", "flow_matching", "rectified-flow-pytorch", "rectified-flow-pytorch MeanFlow")
CHORES = " + clipping and EMA"


# ------------------------------------------------------------------ contenders: callables that do one training step
@functools.lru_cache(maxsize=2)
def make_data(shape, n: int = 10_000) -> torch.Tensor:
    """Random numbers, made once and shared: do not change them in place."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def lively(net: torch.nn.Module) -> torch.nn.Module:
    """The network with small random numbers where its weights start at zero: zeros hide mistakes and are faster to multiply."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in net.parameters():
            if not bool(weight.any()):
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return net


def trainer_of(
    model: ifl.FlowMap, objective: ifl.Objective, batch_size: int, device: str, **settings
) -> Trainer:
    """What ``fit`` makes of its arguments, before the first step of a long run. Distillation gets pairs."""
    known = {"steps": 1_000_000, "batch_size": batch_size, "device": device, "progress": False}
    x = make_data(model.data_shape)
    pairs = isinstance(objective, ifl.Distillation)
    points = ifl.data.TensorData(x, noise=x.flip(0) if pairs else None)
    return Trainer(model, objective, points, ifl.TrainConfig(**known | settings))


def steps_of(
    model: ifl.FlowMap, objective: ifl.Objective, batch_size: int, device: str, **settings
):
    """A function that does the next step of a training."""
    return trainer_of(model, objective, batch_size, device, **settings).one_step


def peer_step(name: str, model: ifl.FlowMap, batch: int, device: str):
    """A function that does the next step of a neighbour's training loop, as its examples have it.

    name: one of PEERS, perhaps with CHORES. Raises ImportError where it is not installed.
    """
    chores, name = name.endswith(CHORES), name.removesuffix(CHORES)
    model = model.to(device)
    net, x = model.net, make_data(model.data_shape).to(device)
    if name == "torchcfm":
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

        matcher = ConditionalFlowMatcher(sigma=0.0)

        def loss_of(x_1):
            t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
            return torch.mean((net(x_t, t, t) - u_t) ** 2)
    elif name == "flow_matching":
        from flow_matching.path import AffineProbPath
        from flow_matching.path.scheduler import CondOTScheduler

        path = AffineProbPath(scheduler=CondOTScheduler())

        def loss_of(x_1):
            t = torch.rand(len(x_1), device=x_1.device)
            drawn = path.sample(t=t, x_0=torch.randn_like(x_1), x_1=x_1)
            return torch.pow(net(drawn.x_t, drawn.t, drawn.t) - drawn.dx_t, 2).mean()
    else:
        import rectified_flow_pytorch as rfp

        class Adapter(torch.nn.Module):
            """Our network under the calls ``model(x, times=t)`` and ``model(x, t, t - s)``."""

            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x, times, delta=None):
                times = times.reshape(-1)
                return self.net(x, times, times if delta is None else times - delta)

        whole = rfp.MeanFlow if name.endswith("MeanFlow") else rfp.RectifiedFlow
        loss_of = whole(Adapter(), data_shape=model.data_shape).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    average = [p.detach().clone() for p in net.parameters()]

    def step():
        data = x[torch.randint(len(x), (batch,), device=device)]
        optimizer.zero_grad()
        loss = loss_of(data)
        loss.backward()
        if chores:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if chores:  # as torchcfm's image examples have it, parameter by parameter
            for mean, p in zip(average, net.parameters()):
                mean.copy_(mean * 0.999 + p.detach() * (1 - 0.999))

    return step


# ------------------------------------------------------------------ timing
def seconds(function, times: int, device: str) -> float:
    """Mean seconds of a call; a GPU has done all its work before and after."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        function()
    if on_gpu:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / times


def middle(values) -> tuple[float, float, float]:
    """The median of some numbers, and the ends of its 95 % interval, from order statistics."""
    values = sorted(values)
    n, tail = len(values), 0
    chance = 0.5**n  # that so few of n values, or fewer, are below the true median
    while chance < 0.025:
        tail += 1
        chance += math.comb(n, tail) * 0.5**n
    return values[n // 2], values[max(0, tail - 1)], values[min(n - 1, n - tail)]


def in_turns(contenders: dict, base: str, times: dict | int, repetitions: int, device: str) -> dict:
    """Time calls in turns, each repetition in a new random order.

    times: calls in one repetition, for all or by name.

    Returns {name: {seconds, ratio, low, high, repetitions}}: the median of its seconds, the median of its time divided by
    that of ``base`` in the same repetition, and the ends of that median's 95 % interval.
    """
    found = {name: [] for name in contenders}
    for repetition in range(repetitions):
        order = list(contenders)
        random.Random(repetition).shuffle(order)
        for name in order:
            found[name].append(
                seconds(contenders[name], times if isinstance(times, int) else times[name], device)
            )
    out = {}
    for name, values in found.items():
        ratio, low, high = middle(a / b for a, b in zip(values, found[base]))
        known = {"ratio": ratio, "low": low, "high": high, "repetitions": repetitions}
        out[name] = {"seconds": sorted(values)[repetitions // 2], **known}
    return out
