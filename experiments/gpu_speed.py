"""The parts speed and sampling of experiments/gpu.py: steps and images a second, beside what the card can do."""

import functools
import gc
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import iflow_lib as ifl
from experiments.contenders import (
    PEERS,
    in_turns,
    lively,
    make_data,
    middle,
    peer_step,
    seconds,
    trainer_of,
)
from experiments.gpu_checks import arithmetic, graphs_so_far, needs_compiler, no_fallback
from experiments.gpu_table import Budget, Cell, Results, Skip
from iflow_lib import zoo
from iflow_lib.sampling import initial_noise
from iflow_lib.utils import GRAPHS


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        networks: name -> how it is made, examples a step.
        modes: How steps and samples are run; other modes are skipped.
        side: Rows and columns of the matrices whose product is timed.
        copied: Numbers of float32 that are copied.
        blocks: Blocks that a median is taken of, of steps and of calls of ``sample``.
        block_seconds: Seconds of a block.
        batches: Samples at once.
        need: What the seconds that a cell needs are multiplied by.
    """

    networks: dict[str, tuple[Callable[[], torch.nn.Module], int]]
    modes: tuple[str, ...]
    side: int
    copied: int
    blocks: tuple[int, int]
    block_seconds: float
    batches: tuple[int, ...]
    need: float


def networks_of(batch: int, unet: dict, transformer: dict) -> dict:
    """``Size.networks``: a U-Net for colour images and a Transformer, of these settings."""
    return {
        "UNet": (lambda: ifl.UNet(channels=3, **unet), batch),
        "Transformer": (lambda: ifl.Transformer(**transformer), batch),
    }


#: 28 and 30 million weights; the sequences are images of 32x32x3 in pieces of 4x4.
FULL = Size(
    networks=networks_of(
        batch=256,
        unet={"size": 32, "width": 224, "blocks": 3},
        transformer={"length": 64, "channels": 48, "width": 512, "layers": 7, "heads": 8},
    ),
    modes=("eager", "compiled", "graphs", "replay", "replay, compiled"),
    side=8192,
    copied=1 << 28,
    blocks=(11, 5),
    block_seconds=0.2,
    batches=(1024, 1, 64),
    need=1.0,
)
#: Without compiling, which takes longer than all the rest.
SMALL = Size(
    networks=networks_of(
        batch=8,
        unet={"size": 8, "width": 8, "blocks": 1},
        transformer={"length": 4, "channels": 2, "width": 8, "layers": 1, "heads": 2},
    ),
    modes=("eager", "replay"),
    side=64,
    copied=1 << 12,
    blocks=(3, 3),
    block_seconds=0.0,
    batches=(16, 1, 4),
    need=0.01,
)
NFES = (1, 2, 4, 50)
#: The table of a card grows from call to call, so a name stands for what it did in the first: the defaults before the search.
_identity = functools.partial(ifl.IntegralIdentity, tangent="network", **zoo.PAIRS)
_TAUGHT = {name: value for name, value in zoo.PAIRS.items() if name != "velocity"}
#: name -> objective, made for a maker of models
OBJECTIVES: dict[str, Callable] = {
    "FlowMatching": lambda make: ifl.FlowMatching(velocity="pair"),
    "IntegralIdentity, jvp": lambda make: _identity(derivative="jvp"),
    "IntegralIdentity, difference": lambda make: _identity(derivative="difference"),
    "IntegralAdditivity": lambda make: ifl.IntegralAdditivity(**zoo.PAIRS),
    "FlowMapDistillation": lambda make: ifl.FlowMapDistillation(
        teacher=make(), derivative="jvp", **_TAUGHT
    ),
    "ConsistencyTraining": lambda make: ifl.ConsistencyTraining(velocity="pair"),
}
#: What is timed, the telling ones first: time may run out. "peers" stands for the neighbours' loops.
ORDER: list[tuple[str, str, str, str]] = [
    ("UNet", "FlowMatching", "float32", "eager"),
    ("UNet", "FlowMatching", "bfloat16", "compiled"),
    ("UNet", "IntegralIdentity, jvp", "bfloat16", "compiled"),
    ("UNet", "FlowMatching", "bfloat16", "replay, compiled"),
    ("UNet", "peers", "default", "as it ships"),
    ("UNet", "FlowMatching", "bfloat16", "graphs"),
    ("UNet", "FlowMatching", "tf32", "eager"),
    ("UNet", "FlowMatching", "bfloat16", "eager"),
    *(("UNet", name, "float32", "eager") for name in list(OBJECTIVES)[1:]),
    ("UNet", "FlowMatching", "float32", "replay"),
    ("UNet", "FlowMatching", "bfloat16", "replay"),
    ("Transformer", "FlowMatching", "float32", "eager"),
    ("Transformer", "FlowMatching", "bfloat16", "compiled"),
    ("Transformer", "IntegralIdentity, jvp", "bfloat16", "compiled"),
    ("Transformer", "FlowMatching", "bfloat16", "replay, compiled"),
    ("UNet", "IntegralIdentity, jvp", "bfloat16", "graphs"),
    *(("UNet", name, "bfloat16", "compiled") for name in list(OBJECTIVES)[2:]),
    *(("UNet", name, "bfloat16", "eager") for name in list(OBJECTIVES)[1:]),
    ("UNet", "FlowMatching", "float32", "compiled"),
    ("UNet", "FlowMatching", "tf32", "compiled"),
    *(
        ("Transformer", name, precision, mode)
        for precision, mode in (
            ("float32", "eager"),
            ("bfloat16", "eager"),
            ("bfloat16", "compiled"),
            ("bfloat16", "graphs"),
        )
        for name in OBJECTIVES
    ),
    *(("UNet", name, "bfloat16", "graphs") for name in OBJECTIVES),
]
#: Seconds that a cell takes at most, by its mode. Compiling takes the most of them.
NEED = {"eager": 8, "compiled": 45, "graphs": 45, "replay": 8, "replay, compiled": 30}
PEER_NEED = 12


# ------------------------------------------------------------------ what is measured with
def model_of(size: Size, network: str) -> ifl.FlowMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = size.networks[network][0]()
    return ifl.FlowMap(lively(net), ifl.RectifiedFlow())


def forget(device: torch.device) -> None:
    """Leave nothing of one measurement to the next: no network, no compiled code, no memory."""
    fit_step.cache_clear()
    clean(device)


def clean(device: torch.device) -> None:
    """The same, but for the step that neighbours are compared with."""
    if "torch._inductor.compile_fx" in sys.modules:  # otherwise nothing was compiled
        torch.compiler.reset()
    if device.type == "cuda":
        gc.collect()  # a network and its trainer refer to each other
        torch._C._cuda_clearCublasWorkspaces()  # each stream of a graph has its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_row(device: torch.device) -> list[dict]:
    """A row on the memory that was taken from the card since ``forget``."""
    if device.type != "cuda":
        return []
    peak = torch.cuda.max_memory_reserved(device) / 1e6
    return [{"metric": "peak_memory", "value": peak, "unit": "MB"}]


def timed(
    step: Callable, blocks: int, block_seconds: float, device: torch.device, settled: bool = False
) -> tuple:
    """Seconds of the first call; and the median of blocks of calls, with its 95 % interval.

    settled: whether the calls before have compiled and recorded what there is.
    """
    first, one = seconds(step, 1, device), seconds(step, 1, device)
    if block_seconds and not settled:  # a graph is recorded in the first steps
        one = seconds(step, 3, device)
    if block_seconds and one < block_seconds:
        one = seconds(step, max(1, round(block_seconds / one)), device)
    times = max(1, math.ceil(block_seconds / one))
    return first, middle([seconds(step, times, device) for _ in range(blocks)])


def per_second(median: float, low: float, high: float, count: float = 1.0) -> dict:
    """Turn seconds into so many a second."""
    return {"value": count / median, "low": count / high, "high": count / low}


class Shares:
    """What a measured rate is of what the card can do.

    results: where the ceilings are, which are measured first.
    """

    def __init__(self, results: Results):
        self.results = results

    def of(self, precision: str, flops: float, bytes_moved: float = 0.0) -> dict:
        """The larger share, of products or of copying, and of which it is.

        flops, bytes_moved: a second.
        """
        kind = {"default": "tf32"}.get(precision, precision)
        shares = {}
        matmul = self.results.find(part="speed", objective="matmul", precision=kind)
        copy = self.results.find(part="speed", objective="copy")
        if matmul:
            shares[f"products in {kind}"] = flops / (matmul * 1e12)
        if copy and bytes_moved:
            shares["copying"] = bytes_moved / (copy * 1e9)
        if not shares:
            return {}
        ceiling = max(shares, key=shares.__getitem__)
        return {"share_of_ceiling": shares[ceiling], "ceiling": ceiling}


# ------------------------------------------------------------------ ceilings
def ceiling_cells(size: Size, device: torch.device) -> list[Cell]:
    def product(precision: str) -> list[dict]:
        forget(device)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(size.side, size.side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with arithmetic(precision):
            _, found = timed(
                lambda: torch.matmul(a, b, out=out), size.blocks[0], size.block_seconds, device
            )
        rate = per_second(*found, count=2 * size.side**3 / 1e12)
        row = {"objective": "matmul", "precision": precision, "batch": size.side}
        return [
            row | rate | {"metric": "products", "unit": "TFLOP/s", "repetitions": size.blocks[0]}
        ]

    def copy() -> list[dict]:
        forget(device)
        a = torch.randn(size.copied, device=device)
        b = torch.empty_like(a)
        _, found = timed(lambda: b.copy_(a), size.blocks[0], size.block_seconds, device)
        rate = per_second(*found, count=8 * size.copied / 1e9)  # read and written
        row = {"objective": "copy", "metric": "copying", "unit": "GB/s"}
        return [row | rate | {"repetitions": size.blocks[0]}]

    cells = [
        Cell(f"speed/ceiling/products/{p}", 5 * size.need, lambda _, p=p: product(p))
        for p in ("float32", "tf32", "bfloat16")
    ]
    return [*cells, Cell("speed/ceiling/copying", 5 * size.need, lambda _: copy())]


# ------------------------------------------------------------------ training
@functools.lru_cache(maxsize=16)
def step_flops(size_name: str, network: str, objective: str, device: torch.device) -> float:
    """Operations of a training step for one example, counted in a step of sixteen."""
    size, n = SIZES[size_name], 16
    make = functools.partial(model_of, size, network)
    trainer = trainer_of(make(), OBJECTIVES[objective](make), n, device, compile=False)
    with FlopCounterMode(display=False) as counter:
        trainer.one_step()
    return counter.get_total_flops() / n


@functools.lru_cache(maxsize=1)
def fit_step(size_name: str, network: str, device: torch.device, mode: str) -> Callable:
    """A step of ``fit`` that neighbours are compared with, kept from one neighbour to the next."""
    clean(device)
    size = SIZES[size_name]
    settings = {"precision": "bfloat16", "compile": mode == "compiled"}
    batch = size.networks[network][1]
    return trainer_of(
        model_of(size, network), ifl.FlowMatching(), batch, device, **settings
    ).one_step


def replayed_step(
    model: ifl.FlowMap, batch: int, device: torch.device, precision: str, compiled: bool
) -> Callable:
    """Forward pass, backward pass and optimizer on numbers that stay, in one CUDA graph; on a CPU without a graph.

    What ``fit`` does beside it: draw a batch, times and noise, clip, average, keep the loss.
    """
    layout = torch.channels_last if len(model.data_shape) == 3 else torch.contiguous_format
    model = model.to(device).to(memory_format=layout).train()
    x = make_data(model.data_shape, batch).to(device).contiguous(memory_format=layout)
    objective, on_gpu = ifl.FlowMatching(), device.type == "cuda"
    drawn = objective.draw(model, ifl.Batch(x), None)
    loss_of = functools.partial(objective.loss, model)
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True, capturable=on_gpu
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with _cast(device, precision):
            loss, _ = loss_of(**drawn)
        loss.backward()
        optimizer.step()

    if not on_gpu:
        return step
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):  # as torch's notes on CUDA graphs say
        for _ in range(3):
            step()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return functools.partial(_replay, graph, step)


def _cast(device: torch.device, precision: str):
    if precision != "bfloat16":
        return nullcontext()
    # a graph must not keep casts of weights of another replay
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _replay(graph: torch.cuda.CUDAGraph, kept: Callable) -> None:
    """kept: the step, which holds all that the graph works on: it must stay where it is."""
    graph.replay()


def training_cell(
    size_name: str,
    device: torch.device,
    shares: Shares,
    network: str,
    objective: str,
    precision: str,
    mode: str,
) -> Cell:
    size = SIZES[size_name]
    batch = size.networks[network][1]

    def measure(_: Budget) -> list[dict]:
        if mode not in size.modes:
            raise Skip("the small form does not compile")
        compiles = mode not in ("eager", "replay")
        if compiles:
            needs_compiler(device)
        forget(device)
        flops = step_flops(size_name, network, objective, device)
        forget(device)
        pieces = graphs_so_far()[1] if compiles else 0
        make = functools.partial(model_of, size, network)
        model = make()
        with arithmetic(precision), no_fallback():
            if mode.startswith("replay"):
                step = replayed_step(model, batch, device, precision, mode.endswith("compiled"))
            else:
                settings = {
                    "precision": "bfloat16" if precision == "bfloat16" else "float32",
                    "compile": {"eager": False, "compiled": True, "graphs": "graphs"}[mode],
                }
                goal = OBJECTIVES[objective](make)
                step = trainer_of(model, goal, batch, device, **settings).one_step
            first, found = timed(step, size.blocks[0], size.block_seconds, device)
        if compiles and graphs_so_far()[1] > pieces:
            raise RuntimeError("it was compiled in pieces, the rest was eager: no measurement")
        row = {
            "network": network,
            "params": model.parameter_count,
            "objective": objective,
            "precision": precision,
            "mode": mode,
            "batch": batch,
        }
        rate = per_second(*found)
        rows = [
            rate
            | {"metric": "steps_per_second", "unit": "1/s", "repetitions": size.blocks[0]}
            | shares.of(precision, flops * batch * rate["value"]),
            *peak_row(device),
            {"metric": "first_step", "value": first, "unit": "s"},
            {"metric": "operations_per_step", "value": flops * batch / 1e12, "unit": "TFLOP"},
        ]
        return [row | one for one in rows]

    run = f"speed/{network}/{objective}/{precision}/{mode}"
    return Cell(run, NEED[mode] * size.need, measure)


def peer_cell(
    size_name: str, device: torch.device, shares: Shares, network: str, name: str
) -> Cell:
    """A neighbour's loop as it ships, with torch's own settings, and ``fit`` in bfloat16, compiled, in turns."""
    size = SIZES[size_name]
    batch = size.networks[network][1]

    def measure(_: Budget) -> list[dict]:
        mode = "compiled" if "compiled" in size.modes else "eager"
        model = model_of(size, network)
        try:
            theirs = peer_step(name, model, batch, device)
        except ImportError:
            raise Skip(f"{name.split()[0]} is not installed") from None
        steps = {"fit": fit_step(size_name, network, device, mode), name: theirs}
        with no_fallback():
            for step in steps.values():
                seconds(step, 3, device)
            one = {who: seconds(step, 1, device) for who, step in steps.items()}
            times = {who: max(1, math.ceil(size.block_seconds / took)) for who, took in one.items()}
            found = in_turns(steps, "fit", times, size.blocks[0], device)[name]
        rate, flops = 1 / found["seconds"], math.nan
        if not name.endswith("MeanFlow"):
            flops = step_flops(size_name, network, "FlowMatching", device) * batch * rate
        row = {
            "network": network,
            "params": model.parameter_count,
            "objective": name,
            "precision": "default",
            "mode": "as it ships",
            "batch": batch,
            "repetitions": size.blocks[0],
        }
        share = {} if math.isnan(flops) else shares.of("default", flops)
        ratio = {"value": found["ratio"], "low": found["low"], "high": found["high"]}
        note = f"fit in bfloat16, {mode}, in turns"
        return [
            row | {"metric": "steps_per_second", "value": rate, "unit": "1/s"} | share,
            row | {"metric": "fit_over_peer", **ratio, "note": note},
        ]

    need = (PEER_NEED if name != PEERS[0] else PEER_NEED + NEED["compiled"]) * size.need
    return Cell(f"speed/{network}/{name}/as it ships", need, measure)


def speed_cells(size_name: str, device: torch.device, results: Results) -> list[Cell]:
    """Ceilings first, which everything else is a share of."""
    size, shares = SIZES[size_name], Shares(results)
    cells = ceiling_cells(size, device)
    for network, objective, precision, mode in dict.fromkeys(ORDER):
        given = (size_name, device, shares, network)
        if objective == "peers":
            cells += [peer_cell(*given, name) for name in PEERS]
        else:
            cells.append(training_cell(*given, objective, precision, mode))
    return cells


# ------------------------------------------------------------------ sampling
def sampling_cell(
    size_name: str, device: torch.device, shares: Shares, mode: str, batch: int
) -> Cell:
    """``sample`` from the drawing of the noise to samples on the CPU; TF32, and the layout that ``fit`` leaves."""
    size = SIZES[size_name]

    def measure(_: Budget) -> list[dict]:
        if mode not in size.modes:
            raise Skip("the small form does not compile")
        if mode != "eager":
            needs_compiler(device)
        forget(device)
        model = model_of(size, "UNet").to(device).to(memory_format=torch.channels_last).eval()
        x, t = torch.zeros(1, *model.data_shape, device=device), torch.ones(1, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x, t, t)
        flops, weights = counter.get_total_flops(), 4 * model.parameter_count
        if mode != "eager":
            model.compile(dynamic=False, **(GRAPHS if mode == "graphs" else {}))
        row = {
            "network": "UNet",
            "params": model.parameter_count,
            "precision": "tf32",
            "mode": mode,
            "batch": batch,
        }
        rows = []
        for nfe in NFES:
            method = "euler" if nfe == 50 else "map"
            call = functools.partial(ifl.sample, model, batch, nfe, method, batch_size=batch)
            with arithmetic("tf32"), no_fallback():
                half, settled = size.block_seconds / 2, nfe > 1
                first, found = timed(call, size.blocks[1], half, device, settled)
            rate = per_second(*found, count=batch)
            calls = nfe * rate["value"]
            at = row | {"nfe": nfe, "method": method, "repetitions": size.blocks[1]}
            latency = dict(zip(("value", "low", "high"), found))
            rows += [
                at | {"metric": "latency", "unit": "s"} | latency,
                at
                | {"metric": "images_per_second", "unit": "1/s"}
                | rate
                | shares.of("tf32", flops * calls, weights * calls / batch),
            ]
            if nfe == 1:
                rows.append(row | {"metric": "first_call", "value": first, "unit": "s"})

        def noise() -> None:
            torch.cat(list(initial_noise(model, batch)))

        _, (drawn, low, high) = timed(noise, size.blocks[1], 0.0, device)
        known = {"metric": "noise", "value": drawn, "low": low, "high": high, "unit": "s"}
        return [*rows, row | known | {"note": "its drawing is part of the latency"}]

    need = {"eager": 6, "compiled": 20, "graphs": 20}[mode] + 12 * (batch == max(size.batches))
    need *= size.need
    return Cell(f"sampling/UNet/{mode}/batch {batch}", need, measure)


def sampling_cells(size_name: str, device: torch.device, results: Results) -> list[Cell]:
    size, shares = SIZES[size_name], Shares(results)
    large, *small = size.batches
    order = [("eager", batch) for batch in size.batches]
    order += [("graphs", small[0]), ("compiled", large), ("graphs", large)]
    order += [(mode, batch) for mode in ("compiled", "graphs") for batch in size.batches]
    return [
        sampling_cell(size_name, device, shares, mode, batch)
        for mode, batch in dict.fromkeys(order)
    ]


SIZES = {"full": FULL, "small": SMALL}
