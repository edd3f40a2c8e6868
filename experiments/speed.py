"""How fast is a step, a sample, a compiler? ``python -m experiments.speed``

Everything is timed in one process, in turns: each repetition runs every contender for a few steps, in a new random order,
and a contender's ratio is the median over repetitions of its time divided by that of ``FlowMatching`` as ``fit`` trains it,
uncompiled, in the same repetition; ``low`` and ``high`` are the median's 95 % interval (from order statistics). ``seconds``
are the median's and mean something only on a machine that does nothing else. Parts:

- training: one gradient step, with the drawing of its batch, of each objective, and of the neighbours: the loops that
  torchcfm 1.0 and flow_matching 1.0 show in their examples, and rectified-flow-pytorch's RectifiedFlow and MeanFlow under
  Adam. Same network, batch and float32, same data in memory. ``fit`` always clips gradients and averages weights; the
  loops do neither as shown, so there is a row of ours without clipping, and each of theirs with both ("+ clipping and
  EMA"). Compiled rows also have ``first_step_seconds``, compiling included (no cache is used).
- memory: peak memory of a process that trains 20 steps, beyond what it holds with the data and both copies of the model.
- sampling: ``sample`` with 1, 2, 4 jumps and 50 Euler steps, 256 samples at once and 1, compiled and not; ratios to one
  jump, not compiled.
- threads: a training step of MLPs with 2 threads, ratio to 1.

Writes speed.csv and speed.manifest.json into --out (results/reference/bench). --parts measures some of it again and leaves
the rest of the table as it is.
"""

import argparse
import functools
import os
import platform
import subprocess
import sys
import time

# Or compiling would seem free the second time.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pandas as pd
import torch

import iflow_lib as ifl
from experiments.common import NETWORKS, ROOT, choices, command_line, plane_network
from experiments.contenders import CHORES, PEERS, in_turns, peer_step, seconds, steps_of
from experiments.store import read_manifest, write_table
from iflow_lib.training.runtime import hardware, limited_threads

PARTS = ("training", "memory", "sampling", "threads")
OBJECTIVES = {
    "FlowMatching": ifl.FlowMatching,
    "IntegralIdentity": ifl.IntegralIdentity,
    "IntegralIdentity, jvp": functools.partial(ifl.IntegralIdentity, derivative="jvp"),
    "IntegralIdentity, self": functools.partial(ifl.IntegralIdentity, anchor="self"),
    "IntegralAdditivity": ifl.IntegralAdditivity,
    "ConsistencyTraining": ifl.ConsistencyTraining,
    "X0Regression": ifl.X0Regression,
    "X0Regression, per_example": functools.partial(ifl.X0Regression, "per_example"),
}
COMPILED = ("FlowMatching", "IntegralIdentity", "IntegralIdentity, jvp", "IntegralAdditivity")


# ------------------------------------------------------------------ contenders: callables that do one training step
def make_model(network: str, anchored: bool = False) -> ifl.FlowMap:
    torch.manual_seed(0)
    return ifl.FlowMap(NETWORKS[network][0](anchor=anchored), ifl.RectifiedFlow())


def ours(network: str, objective: str, device: str, *, compile=False, clip: float | None = 1.0):
    """``fit``'s own step."""
    objective = OBJECTIVES[objective]()
    model = make_model(network, getattr(objective, "anchor", None) not in (None, "none"))
    return steps_of(model, objective, NETWORKS[network][1], device, compile=compile, clip=clip)


def peer(network: str, name: str, device: str):
    """One step of a neighbour's training loop, as its examples have it."""
    return peer_step(name, make_model(network), NETWORKS[network][1], device)


# ------------------------------------------------------------------ what is timed
def training(network: str, arguments) -> list[dict]:
    device, batch = arguments.device, NETWORKS[network][1]
    steps, first = {}, {}
    for name in arguments.objectives:
        steps[name] = ours(network, name, device)
    steps["FlowMatching, no clipping"] = ours(network, "FlowMatching", device, clip=None)
    for name in arguments.peers:
        steps[name] = peer(network, name, device)
        steps[name + CHORES] = peer(network, name + CHORES, device)
    for name in arguments.compile:
        steps[f"{name}, compiled"] = ours(network, name, device, compile=True)
        if device == "cuda":
            steps[f"{name}, graphs"] = ours(network, name, device, compile="graphs")
    params = sum(p.numel() for p in make_model(network).parameters())
    with limited_threads(0, params * batch):
        for name, step in steps.items():
            first[name] = seconds(step, 1, device)
            seconds(step, 5, device)
            print(
                f"{network}: {name} is ready, its first step took {first[name]:.1f} s", flush=True
            )
        found = in_turns(steps, "FlowMatching", NETWORKS[network][2], arguments.repetitions, device)
    return [
        {
            "part": "training",
            "network": network,
            "params": params,
            "batch": batch,
            "contender": name,
            **row,
            "per_second": 1 / row["seconds"],
            "first_step_seconds": first[name] if name.endswith(("compiled", "graphs")) else None,
        }
        for name, row in found.items()
    ]


def child(network: str, name: str, device: str) -> None:
    """Prints the MB by which 20 steps raise the peak."""
    step = ours(network, name, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
    else:
        before = memory_of_process("VmRSS")
    for _ in range(20):
        step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else memory_of_process("VmHWM")
    print(f"\n{(after - before) / 1e6:.3f}")


def memory_of_process(field: str) -> int:
    """Bytes, as Linux counts them."""
    with open("/proc/self/status") as file:
        return int(file.read().split(f"{field}:")[1].split()[0]) * 1024


def memory(network: str, arguments) -> list[dict]:
    if arguments.device == "cpu" and not os.path.exists("/proc/self/status"):
        print("memory is measured on Linux or on CUDA")
        return []
    rows = []
    for name in arguments.objectives:
        command = [sys.executable, "-m", "experiments.speed", "--child", network, name]
        command += ["--device", arguments.device]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(
            {
                "part": "memory",
                "network": network,
                "batch": NETWORKS[network][1],
                "contender": name,
                "megabytes": float(done.stdout.split()[-1]),
            }
        )
        print(f"{network}: {name} needs {rows[-1]['megabytes']:.0f} MB", flush=True)
    return rows


def sampling(network: str, arguments) -> list[dict]:
    device, rows = arguments.device, []
    plain, fast = make_model(network).to(device).eval(), make_model(network).to(device).eval()
    fast.compile()
    for batch in (256, 1):
        calls = {
            (nfe, kind): functools.partial(
                ifl.sample, model, batch, nfe, "euler" if nfe == 50 else "map", batch_size=batch
            )
            for nfe in (1, 2, 4, 50)
            for kind, model in (("eager", plain), ("compiled", fast))
            if kind == "eager" or arguments.compile
        }
        with limited_threads(0, plain.parameter_count * batch):
            for (_, kind), call in calls.items():
                first = seconds(call, 1, device)
                if kind == "compiled":
                    print(f"{network}: batch {batch}, first call {first:.1f} s", flush=True)
            found = in_turns(
                calls,
                (1, "eager"),
                {key: max(1, 8 // key[0]) for key in calls},
                max(3, arguments.repetitions // 3),
                device,
            )
        rows += [
            {
                "part": "sampling",
                "network": network,
                "params": plain.parameter_count,
                "batch": batch,
                "nfe": nfe,
                "contender": kind,
                **row,
                "per_second": batch / row["seconds"],
            }
            for (nfe, kind), row in found.items()
        ]
    return rows


def threads(network: str, arguments) -> list[dict]:
    """Which is faster, by the multiplications of a forward pass?"""
    if network != "MLP" or arguments.device != "cpu":
        return []
    rows, before = [], torch.get_num_threads()
    sizes = [(hidden, 512) for hidden in (32, 64, 96, 128, 220, 256, 512)]
    for hidden, batch in sizes:
        model = ifl.FlowMap(plane_network(hidden=hidden), ifl.RectifiedFlow())
        step = steps_of(model, ifl.FlowMatching(), batch, "cpu")

        def with_threads(number: int, step=step):
            torch.set_num_threads(number)
            for _ in range(10):
                step()

        calls = {n: functools.partial(with_threads, n) for n in (1, 2) if n <= before}
        for call in calls.values():
            call()
        found = in_turns(calls, 1, 1, arguments.repetitions, "cpu")
        rows += [
            {
                "part": "threads",
                "network": "MLP",
                "params": model.parameter_count,
                "batch": batch,
                "contender": f"{n} threads",
                **row,
                "seconds": row["seconds"] / 10,
            }
            for n, row in found.items()
            if n > 1
        ]
    torch.set_num_threads(before)
    return rows


# ------------------------------------------------------------------ table
def main(arguments=None) -> None:
    options = command_line(__doc__, runs=False, repetitions=51)
    choices(options, "--parts", PARTS)
    choices(options, "--networks", NETWORKS)
    choices(options, "--objectives", OBJECTIVES)
    options.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options.add_argument(
        "--compile", nargs="*", default=COMPILED, choices=COMPILED, help="what to compile as well"
    )
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = options.parse_args(arguments)
    if arguments.child:
        return child(*arguments.child, arguments.device)
    if "FlowMatching" not in arguments.objectives:
        options.error("--objectives needs FlowMatching, to which all is compared")
    file, rows, measured = arguments.out / "speed.csv", [], {}
    device = torch.device(arguments.device)
    measure = {"training": training, "memory": memory, "sampling": sampling, "threads": threads}
    for part in arguments.parts:
        for network in arguments.networks:
            rows += measure[part](network, arguments)
            measured[f"{part} {network}"] = {
                "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "hardware": hardware(device),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "command": sys.argv[1:],
            }
    table = pd.DataFrame(rows).assign(device=hardware(device).split(",")[0])
    if file.is_file():
        earlier = pd.read_csv(file)
        again = [(p, n) for p in arguments.parts for n in arguments.networks]
        kept = earlier[[pair not in again for pair in zip(earlier.part, earlier.network)]]
        table = pd.concat([kept, table], ignore_index=True)
        measured = read_manifest(file)["measured"] | measured
    table = table.sort_values("part", key=lambda parts: parts.map(PARTS.index), kind="stable")
    columns = [
        "part",
        "network",
        "params",
        "batch",
        "contender",
        "nfe",
        "ratio",
        "low",
        "high",
        "repetitions",
        "seconds",
        "per_second",
        "first_step_seconds",
        "megabytes",
        "device",
    ]
    rows = table.reindex(columns=columns).to_dict("records")
    table = write_table(arguments.out, "speed", rows, measured=measured)
    print(table[table.part.isin(arguments.parts)].round(3).to_string())


if __name__ == "__main__":
    main()
