"""The published settings: what they would cost, and the command that runs them.

``python -m experiments.published cost``: counts operations and bytes of each setting without running it, and turns them into
time with what experiments/speed.py measured (results/reference/bench/speed.csv). Writes cost.csv and .manifest.json into
--out. Two rates: "cpu", reached in a step of FlowMatching on the small U-Net; and "assumed", a share of a GPU's
published ceiling, which nobody has measured with this package.

``torchrun --standalone --nproc_per_node 8 -m experiments.published train cifar10 --data ARCHIVE --folder RUN``:
trains it; started again, it continues. CIFAR-10 is its binary archive, checked by md5. ImageNet-64 is a float32 array
(N, 3, 64, 64) with values from -1 to 1 in a .npy file of your own making; it is mapped, not loaded.

CIFAR-10: unconditional, the steps, batch, learning rate, times and share of unequal pairs of MeanFlow (arXiv 2505.13447).
ImageNet-64: the steps and the batch of consistency training (arXiv 2310.14189). The available sources do not say those of
arXiv 2504.20179. The networks are this package's U-Net at about the published sizes, not the published networks.
"""

import argparse
import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import iflow_lib as ifl
from experiments.common import BENCH, NETWORKS, calls_per_step
from experiments.store import write_table

#: bfloat16 operations a second of one NVIDIA H200, dense, as published by its maker; and the share of it assumed here
CEILING, SHARE = 989e12, 0.3
#: Of both: the exact derivative, with the network's own velocity along the trajectory.
COMMON = {
    "gap": None, "tangent": "network", "velocity": "pair", "start_share": 0.1, "end_share": 0.1,
}  # fmt: skip
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
SETTINGS = {
    "cifar10": dict(
        examples=50_000,
        net=dict(channels=3, size=32, width=320, blocks=3),
        objective=dict(COMMON, time_density=(-2.0, 2.0), equal_share=0.25, power=0.75),
        config=dict(steps=800_000, batch_size=1024, lr=6e-4, warmup=10_000, ema=0.9999),
    ),
    "imagenet64": dict(
        examples=1_281_167,
        net=dict(channels=3, size=64, width=448, blocks=10),
        objective=dict(COMMON, time_density=(-0.4, 1.0), equal_share=0.5, power=0.5),
        config=dict(steps=800_000, batch_size=4096, lr=1e-4, warmup=10_000, ema=0.9999),
    ),
}


def counted(net) -> tuple[float, float]:
    """Floating-point operations of one forward pass and bytes kept for its backward pass, for one example, by
    running it without data."""
    x, t, kept = torch.zeros(1, *net.data_shape, device="meta"), torch.zeros(1, device="meta"), {}
    weights = {id(p.untyped_storage()) for p in net.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = net(x, t, t)
    assert held.shape == x.shape
    return float(counter.get_total_flops()), float(sum(kept.values()))


def cpu_rate(file: Path) -> float:
    """Operations a second in a training step, from the table of experiments/speed.py."""
    table = pd.read_csv(file)
    step = table[
        (table.part == "training") & (table.network == "UNet") & (table.contender == "FlowMatching")
    ].iloc[0]
    with torch.device("meta"):
        flops, _ = counted(NETWORKS["UNet"][0]())
    return flops * calls_per_step(ifl.FlowMatching()) * step.batch / step.seconds


def cost(arguments) -> None:
    rows, rates = [], {"cpu": cpu_rate(arguments.speed), "assumed": SHARE * CEILING}
    for name, setting in SETTINGS.items():
        with torch.device("meta"):
            net = ifl.UNet(**setting["net"])
        flops, kept = counted(net)
        params, config = sum(p.numel() for p in net.parameters()), setting["config"]
        numbers = setting["examples"] * int(np.prod(net.data_shape))
        for objective in (ifl.FlowMatching(), ifl.IntegralIdentity(**setting["objective"])):
            calls = calls_per_step(objective)
            total = flops * calls * config["batch_size"] * config["steps"]
            rows.append(
                {
                    "setting": name,
                    "objective": objective.name,
                    "params": params,
                    "steps": config["steps"],
                    "batch": config["batch_size"],
                    "flops_per_call": flops,
                    "calls_per_step": calls,
                    "flops": total,
                    "cpu_hours": total / rates["cpu"] / 3600,
                    "gpu_hours_assumed": total / rates["assumed"] / 3600,
                    # weights, gradients, two moments, average: five float32 numbers for each weight
                    "weights_bytes": 20 * params,
                    "kept_bytes_per_example": kept,
                    "data_bytes": 4 * numbers,
                    "anchor_bytes_float32": 4 * numbers,
                    "anchor_bytes_float16": 2 * numbers,
                }
            )
    about = {"operations_per_second": rates, "ceiling": CEILING, "share": SHARE}
    table = write_table(arguments.out, "cost", rows, **about, settings=SETTINGS)
    print(table.T.to_string())


def cifar10(archive, checksum: str = CIFAR_MD5) -> ifl.data.TensorData:
    """The 50,000 training images from ``cifar-10-binary.tar.gz``, (B, 3, 32, 32) from -1 to 1, with labels.

    Raises FileNotFoundError without the file and ValueError for another one.
    """
    archive = Path(archive)
    if not archive.is_file():
        raise FileNotFoundError(
            f"{archive} does not exist: --data must name cifar-10-binary.tar.gz, the binary version "
            "from the CIFAR page of the University of Toronto"
        )
    with open(archive, "rb") as file:
        found = (
            hashlib.file_digest(file, "md5").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.md5(file.read()).hexdigest()
        )
    if found != checksum:
        raise ValueError(
            f"{archive} is not cifar-10-binary.tar.gz: its md5 is {found}, expected {checksum}"
        )
    with tarfile.open(archive) as tar:  # read in memory: nothing is unpacked to disk
        parts = [
            tar.extractfile(member).read()
            for member in sorted(tar.getmembers(), key=lambda m: m.name)
            if Path(member.name).name.startswith("data_batch")
        ]
    records = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).reshape(
        -1, 1 + 3 * 32 * 32
    )
    images = records[:, 1:].reshape(-1, 3, 32, 32).float() / 127.5 - 1
    return ifl.data.TensorData(images, labels=records[:, 0].long(), name="cifar10")


def train(arguments) -> None:
    setting = SETTINGS[arguments.setting]
    if arguments.setting == "cifar10":
        data = cifar10(arguments.data)
    else:
        data = np.load(arguments.data, mmap_mode="c")
    config = dict(
        setting["config"],
        **{k: v for k, v in {"steps": arguments.steps, "batch_size": arguments.batch}.items() if v},
    )
    torch.manual_seed(arguments.seed)
    model = ifl.FlowMap(
        ifl.UNet(**{**setting["net"], **({"width": arguments.width} if arguments.width else {})}),
        ifl.RectifiedFlow(),
    )
    config = ifl.TrainConfig(
        **config,
        seed=arguments.seed,
        device=arguments.device,
        out_dir=arguments.folder,
        precision="bfloat16" if arguments.device != "cpu" else "float32",
        checkpoint_minutes=30,
    )
    run = ifl.fit(model, ifl.IntegralIdentity(**setting["objective"]), data, config, resume="auto")
    run.model.save_pretrained(Path(arguments.folder) / "model", manifest=run.manifest)


def main(arguments=None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = options.add_subparsers(dest="command", required=True)
    first = commands.add_parser("cost")
    first.add_argument("--out", type=Path, default=BENCH, help="folder of the table")
    first.add_argument(
        "--speed", type=Path, default=BENCH / "speed.csv", help="table of experiments/speed.py"
    )
    second = commands.add_parser("train")
    second.add_argument("setting", choices=SETTINGS)
    second.add_argument(
        "--data", required=True, help="cifar-10-binary.tar.gz, or the .npy file of ImageNet-64"
    )
    second.add_argument("--folder", required=True, help="folder of the run")
    second.add_argument("--device", default="auto")
    for name in ("seed", "steps", "batch", "width"):
        second.add_argument(
            f"--{name}",
            type=int,
            default=0,
            help="default 0" + ": the setting's" * (name != "seed"),
        )
    arguments = options.parse_args(arguments)
    {"cost": cost, "train": train}[arguments.command](arguments)


if __name__ == "__main__":
    main()
