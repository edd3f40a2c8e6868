"""Contenders of experiments/vs_peers.py: this package's objectives and those of three neighbours, all on one network.

Every contender trains our network under our ``fit``: batches, Adam, its schedule, clipping and averages are the same. A neighbour's
loss, with the times and noise that it draws, is its own; an adapter translates the calls of the network. After it each network
gives the average velocity ``u(x, t, s)`` on the line, so that our samplers serve all beside a neighbour's own.

Objectives of the neighbours, with what a step costs in network calls (forward 1, backward 2, forward-mode derivative 1 more):

- rectified-flow-pytorch ``MeanFlow``: the identity of arXiv 2505.13447, its derivative in forward mode. One coin a step decides
  whether the whole batch is velocity regression (3) or the identity (4). Its ``sample`` jumps once; with more steps it is Euler's.
- rectified-flow-pytorch ``SplitMeanFlow``: additivity, arXiv 2507.16884, 3 or 5. As released it trains no jump from noise to data;
  quality_vs_peers.py says why, and what "exchange" and "zero_boundary" change. Its reconstruction loss is left out: exchanged, it
  would reconstruct noise.
- rectified-flow-pytorch ``SoFlow``: solution consistency, arXiv 2512.15657, with a gap that closes over the training; rows of velocity
  regression cost 3, others 4. Told the length of the training.
- rectified-flow-pytorch ``LsdFlow``: Lagrangian self-distillation, arXiv 2505.18825: velocity regression on all rows (3) and the
  derivative at the end of a jump on all rows (7), of which a mask takes one each.
- torchcfm ``ExactOptimalTransportConditionalFlowMatcher``: velocity regression on pairs by optimal transport within the batch (3; the
  assignment is in the seconds alone). It has no sampler: Euler's and Heun's steps, ours.
- flow_matching ``CondOTProbPath``: velocity regression (3), sampled by its ``ODESolver``: "euler" and "midpoint".
"""

import importlib
import importlib.metadata
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

import iflow_lib as ifl
from experiments import common
from experiments.quality_vs_peers import Adapter
from iflow_lib import zoo
from iflow_lib.objectives import Objective, on_line

#: Network calls at which jumps and velocities are measured; and what a search goes by: calls -> weight.
JUMPS, SOLVERS = (1, 2, 4), (1, 2, 4, 8, 16, 32)
JUMP_WEIGHTS, SOLVER_WEIGHTS = {1: 0.6, 2: 0.2, 4: 0.2}, {4: 0.5, 32: 0.5}
#: What every candidate draws, whosever it is: the rate's ends, on a logarithmic scale, and octaves of x and of the times.
RATES, FEATURES, FREQUENCIES = (1e-3, 1e-2), (0, 1, 2, 3, 4), (1, 2, 3, 4)


# ---------------------------------------------------------------- neighbours


class Called(torch.nn.Module):
    """Our model, called in another way: ``call(model, ...)``."""

    def __init__(self, model: ifl.FlowMap, call: Callable):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *args, **kwargs):
        return self.call(self.model, *args, **kwargs)


def velocity_from_noise(model, x, t):
    """Of a clock that runs from noise (0) to data (1): dx/dt at (x, t)."""
    t = t.expand(len(x))
    return -model(x, 1 - t, 1 - t)


class Neighbour(Objective):
    """A neighbour's loss under our ``fit``. Its randomness is torch's, numpy's and Python's global one.

    settings: the neighbour's own arguments. steps: of the training.
    """

    package = "rectified-flow-pytorch"
    module = "rectified_flow_pytorch"
    learns = "jump"
    #: Of whole networks: ways to sample, "own" being the neighbour's.
    samplers: tuple[str, ...] = ("own",)

    def __init__(self, steps: int, **settings):
        self.steps, self.settings = steps, settings

    @classmethod
    def neighbour(cls):
        """The neighbour's class, or ImportError."""
        module = importlib.import_module(cls.module)
        try:
            return getattr(module, cls.__name__)
        except AttributeError:
            raise ImportError(
                f"{cls.package} {version(cls.package)} has no {cls.__name__}"
            ) from None

    def config(self) -> dict:
        return dict(self.settings)

    def call(self, model, x, *times):
        """How the neighbour calls a network."""
        raise NotImplementedError

    def build(self, model: ifl.FlowMap):
        return self.neighbour()(
            Called(model, self.call), data_shape=model.data_shape, **self.settings
        )

    def prepare(self, model, data, *, seed=0, device=None):
        super().prepare(model, data, seed=seed, device=device)
        random.seed(seed)
        np.random.seed(seed)
        self.peer = self.build(model)

    def __call__(self, model, batch, generator=None):
        return self.loss_of(ifl.Batch.of(batch).x_0)

    def loss_of(self, x: torch.Tensor) -> torch.Tensor:
        return self.peer(x)

    def calls_per_step(self) -> float:
        raise NotImplementedError

    def own_sample(self, model: ifl.FlowMap, noise: torch.Tensor, nfe: int) -> torch.Tensor:
        peer, n = self.build(model), len(noise)
        if nfe > 1:  # what its sample does, and the noise gets there too
            return peer.slow_sample(steps=nfe, batch_size=n, noise=noise)
        return peer.sample(batch_size=n, noise=noise, steps=1)


class MeanFlow(Neighbour):
    samplers = ("own", "map")

    def call(self, model, x, t, delta):
        return model(x, t, t - delta)

    def calls_per_step(self) -> float:
        return 4 - self.settings.get("prob_default_flow_obj", 0.5)


class SplitMeanFlow(Neighbour):
    """exchange, zero_boundary: see quality_vs_peers.py."""

    def __init__(self, steps, exchange=False, zero_boundary=False, **settings):
        super().__init__(steps, **settings)
        self.exchange, self.zero_boundary = exchange, zero_boundary
        # its several steps start at time 0, where the exchanged one has its data
        self.samplers = ("map", "euler") if exchange else ("own",)

    def config(self):
        return {"exchange": self.exchange, "zero_boundary": self.zero_boundary, **self.settings}

    def build(self, model):
        network = Adapter(model, self.zero_boundary)
        return self.neighbour()(network, data_shape=model.data_shape, **self.settings)

    def loss_of(self, x):
        return self.peer(torch.randn_like(x), noise=x) if self.exchange else self.peer(x)

    def calls_per_step(self):
        return 5 - 2 * self.settings.get("prob_default_flow_obj", 0.5)


class SoFlow(Neighbour):
    module = "rectified_flow_pytorch.soflow"

    def build(self, model):
        network = Called(model, self.call)
        settings = {"r_total_steps": self.steps, **self.settings}
        return self.neighbour()(network, data_shape=model.data_shape, **settings)

    def call(self, model, x, t, s):
        return model(x, t, s)

    def calls_per_step(self):
        return 4 - self.settings.get("lambda_flow_matching", 0.75)


class LsdFlow(Neighbour):
    def call(self, model, x, s, t):
        return -model(x, 1 - s, 1 - t)

    def calls_per_step(self):
        return 10


class ExactOptimalTransportConditionalFlowMatcher(Neighbour):
    package = "torchcfm"
    module = "torchcfm.conditional_flow_matching"
    learns = "velocity"
    samplers = ("euler", "heun")

    def __init__(self, steps, times="uniform", **settings):
        super().__init__(steps, **settings)
        self.times = times

    def config(self):
        return {"times": self.times, **self.settings}

    def build(self, model):
        return self.neighbour()(**self.settings)

    def prepare(self, model, data, *, seed=0, device=None):
        super().prepare(model, data, seed=seed, device=device)
        self.network = model

    def loss_of(self, x):
        given = times_of_caller(self.times, len(x))
        t, x_t, u_t = self.peer.sample_location_and_conditional_flow(
            torch.randn_like(x), x, t=given
        )
        return torch.mean((velocity_from_noise(self.network, x_t, t) - u_t) ** 2)

    def calls_per_step(self):
        return 3


class CondOTProbPath(Neighbour):
    package = "flow_matching"
    module = "flow_matching.path"
    learns = "velocity"
    samplers = ("own", "midpoint")

    def __init__(self, steps, times="uniform"):
        super().__init__(steps, times=times)

    def build(self, model):
        return self.neighbour()()

    def prepare(self, model, data, *, seed=0, device=None):
        super().prepare(model, data, seed=seed, device=device)
        self.network = model

    def loss_of(self, x):
        t = times_of_caller(self.settings["times"], len(x))
        drawn = self.peer.sample(t=t, x_0=torch.randn_like(x), x_1=x)
        velocity = velocity_from_noise(self.network, drawn.x_t, drawn.t)
        return torch.pow(velocity - drawn.dx_t, 2).mean()

    def calls_per_step(self):
        return 3

    def own_sample(self, model, noise, nfe, method="euler"):
        from flow_matching.solver import ODESolver

        steps = nfe // 2 if method == "midpoint" else nfe
        grid = torch.linspace(0, 1, steps + 1)
        solver = ODESolver(velocity_model=Called(model, velocity_from_noise))
        return solver.sample(x_init=noise, step_size=None, method=method, time_grid=grid)


def times_of_caller(law: str, n: int) -> torch.Tensor:
    """Times that a neighbour leaves to its caller, (n,)."""
    return torch.rand(n) if law == "uniform" else torch.randn(n).sigmoid()


# ---------------------------------------------------------------- who takes part


@dataclass(frozen=True)
class Contender:
    """What is compared.

    make: the objective's class. space: axes of the search, each a choice of arguments; the first entries of all, with ``first``, are the
    first candidate. later: arguments of all but that one. weights: of the score. why: what stands in its way, by how it is made, where it is behind.
    """

    make: type[Objective]
    space: tuple[tuple[dict, ...], ...]
    why: str
    first: dict = field(default_factory=dict)
    later: dict = field(default_factory=dict)
    samplers: tuple[str, ...] = ("map",)
    solver: bool = False

    @property
    def package(self) -> str:
        return getattr(self.make, "package", "iflow_lib")

    @property
    def ours(self) -> bool:
        return not issubclass(self.make, Neighbour)

    @property
    def nfes(self) -> tuple[int, ...]:
        return SOLVERS if self.solver else JUMPS

    @property
    def weights(self) -> dict[int, float]:
        return SOLVER_WEIGHTS if self.solver else JUMP_WEIGHTS

    def absent(self) -> str:
        """Why it cannot take part, "" if it can."""
        if issubclass(self.make, Neighbour):
            try:
                self.make.neighbour()
            except ImportError as error:
                known = version(self.package)
                return str(error) if known else f"{self.package} is not installed"
        return ""

    def objective(self, own: dict, steps: int) -> Objective:
        """own: arguments, as JSON has them. Without "coupling", which is ``TrainConfig``'s."""
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in own.items() if k != "coupling"}
        return self.make(steps, **own) if issubclass(self.make, Neighbour) else self.make(**own)

    def candidates(self, number: int) -> list[dict]:
        """Settings to be tried: ``shared_settings``, and "own" arguments, each value of an axis about equally often."""
        draws, owns = random.Random(self.make.__name__), [dict(self.first) for _ in range(number)]
        for axis in self.space:
            owns[0] |= axis[0]
            for own, given in zip(owns[1:], spread_out(axis, number - 1, draws)):
                own |= self.later | given
        return [shared | {"own": own} for shared, own in zip(shared_settings(number), owns)]


def spread_out(values, number: int, draws: random.Random) -> list:
    """So many of some values, each about equally often, shuffled."""
    found = (list(values) * number)[:number]
    draws.shuffle(found)
    return found


def shared_settings(number: int) -> list[dict]:
    """A rate and octaves for each candidate, whosever it is: the library's defaults, then random ones, log-uniform in equal parts."""
    draws, n, net = random.Random(0), number - 1, ifl.MLP(2).config()
    found = [{"lr": ifl.MLP(2).lr} | {k: net[k] for k in ("features", "frequencies")}]
    low, high = map(math.log, RATES)
    parts = spread_out(range(n), n, draws)
    features, frequencies = (spread_out(values, n, draws) for values in (FEATURES, FREQUENCIES))
    for part, *octaves in zip(parts, features, frequencies):
        lr = math.exp(low + (part + draws.random()) / n * (high - low))
        found.append({"lr": float(f"{lr:.3g}"), "features": octaves[0], "frequencies": octaves[1]})
    return found


def choice(name: str, *values) -> tuple[dict, ...]:
    """An axis: one argument, by default not given."""
    return ({}, *({name: value} for value in values))


_TIMES = choice("time_density", (-0.4, 1.0), "uniform")
_ENDS = ({}, {"start_share": 0.3, "end_share": 0.3})
_EQUAL = choice("equal_share", 0.25, 0.75)
_PAIRING = choice("coupling", "ot")
_VELOCITY = "a velocity method: needs many calls"
CONTENDERS = {
    "IntegralIdentity": Contender(
        ifl.IntegralIdentity,
        (
            choice("gap", 0.05, None), _EQUAL, choice("time_density", (0.0, 1.6), "uniform"),
            ({}, {"start_share": 0.1, "end_share": 0.1}), choice("power", 0.5), _PAIRING,
        ),
        "its target holds what the network says at the other end of the gap, and errs by the order of the gap",
    ),
    "IntegralAdditivity": Contender(
        ifl.IntegralAdditivity,
        (_EQUAL, _TIMES, _ENDS),
        "a jump is only as right as its halves: short ones are learned first",
    ),
    "TerminalVelocity": Contender(
        ifl.TerminalVelocity,
        (_EQUAL, _TIMES, _ENDS),
        "its derivative has a gradient: a step is dear, so it has fewer of them",
    ),
    "ConsistencyTraining": Contender(
        ifl.ConsistencyTraining,
        (
            choice("mean", -0.4), choice("std", 1.2), choice("q", 4.0), choice("stages", 4),
            choice("start_share", 0.3),
        ),
        "it learns jumps to the data alone: each further call starts from fresh noise, and adds its own error",
        samplers=("map", "renoise"),
    ),
    "FlowMatching": Contender(
        ifl.FlowMatching,
        (choice("velocity", "pair"), _PAIRING),
        _VELOCITY,
        samplers=("euler", "heun"),
        solver=True,
    ),
    "MeanFlow": Contender(
        MeanFlow,
        (
            ({}, {"adaptive_loss_weight_p": 1.0}, {"use_adaptive_loss_weight": False}),
            (
                {}, {"use_logit_normal_sampler": False},
                {"logit_normal_mean": 0.0, "logit_normal_std": 1.6},
            ),
            choice("prob_default_flow_obj", 0.25, 0.75),
        ),
        "no pair of times is at the ends of the one jump, and a coin for the whole batch makes its steps uneven",
    ),
    "SplitMeanFlow": Contender(
        SplitMeanFlow,
        (choice("prob_default_flow_obj", 0.25, 0.75),),
        "as released it trains no jump from noise to data; turned round, no pair of times is at the ends of the one jump",
        later={"exchange": True, "zero_boundary": True},
    ),
    "SoFlow": Contender(
        SoFlow,
        (
            choice("adaptive_loss_weight_p", 0.0, 1.0),
            ({}, {"use_logit_normal_sampler": False}),
            choice("r_init", 0.3), choice("r_end", 0.02), choice("lambda_flow_matching", 0.25, 0.5),
        ),
        "its times stay a hundredth away from noise and data unless they are uniform, and no pair of times is at the ends of a jump",
    ),
    "LSD": Contender(
        LsdFlow,
        (choice("diag_prob", 0.5, 0.9), choice("eps", 1e-2, 1e-4)),
        "it computes both losses on all rows and masks one of them: a step costs the most, so it has the fewest",
    ),
    "OT-CFM": Contender(
        ExactOptimalTransportConditionalFlowMatcher,
        (choice("sigma", 0.02, 0.05), choice("times", "logit-normal")),
        "a velocity method: pairs by optimal transport make trajectories straighter, not straight, so it needs more calls",
        solver=True,
    ),
    "flow_matching": Contender(
        CondOTProbPath, (choice("times", "logit-normal"),), _VELOCITY, solver=True
    ),
}  # fmt: skip


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Of the neighbours; None where one is not installed."""
    packages = dict.fromkeys(c.package for c in CONTENDERS.values() if not c.ours)
    return {package: version(package) for package in packages}


def calls_per_step(objective: Objective) -> float:
    """Network calls for each example in a step."""
    own = isinstance(objective, Neighbour)
    return objective.calls_per_step() if own else common.calls_per_step(objective)


# ---------------------------------------------------------------- sampling


def ways(contender: Contender, objective: Objective, nfes) -> list[tuple[str, int]]:
    """How a trained network is sampled: (sampler, network calls)."""
    samplers = getattr(objective, "samplers", contender.samplers)
    return [(sampler, nfe) for nfe in nfes for sampler in samplers if can(sampler, nfe, contender)]


def can(sampler: str, nfe: int, contender: Contender) -> bool:
    if contender.make is ifl.ConsistencyTraining:
        return (sampler == "map") == (nfe == 1)  # it knows jumps to the data alone
    if sampler == "heun":
        return nfe % 2 == 0 and nfe > 2  # n - 1 calls, see ``sample``; one call is Euler's
    if sampler == "midpoint":
        return nfe % 2 == 0
    # at one call the neighbour's own is the jump
    return not (sampler == "map" and nfe == 1 and contender.make is MeanFlow)


@torch.no_grad()
def sample(
    objective: Objective, model: ifl.FlowMap, sampler: str, nfe: int, n: int, seed: int
) -> torch.Tensor:
    """Samples (n, 2). The noise of a seed is the same for all. Heun's last step is Euler's: of an even nfe it leaves one."""
    if sampler == "heun":
        nfe -= 1
    if sampler in ("map", "euler", "heun"):
        return zoo.timed_sample(model, n, nfe, sampler, seed)[0].x
    noise = torch.cat(list(ifl.sampling.initial_noise(model, n, seed)))
    if sampler == "renoise":
        return renoised(model, noise, nfe, torch.Generator().manual_seed(seed + 10**6))
    further = {"method": "midpoint"} if sampler == "midpoint" else {}
    return objective.own_sample(model, noise, nfe, **further)


def renoised(model, x, nfe: int, generator: torch.Generator) -> torch.Tensor:
    """Jumps to the data, with fresh noise between them, at equal parts of the line (arXiv 2303.01469, algorithm 1)."""
    for t in torch.linspace(model.path.tau_max, 0, nfe + 1)[:-1].tolist():
        times = torch.full((len(x),), t)
        if t < model.path.tau_max:
            x = on_line(x, torch.randn(x.shape, generator=generator), times)
        x = x - t * model(x, times, torch.zeros_like(times))
    return x
