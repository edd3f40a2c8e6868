"""Numbers that no change of the code may move unnoticed, and what makes them.

They say what the code gave when they were written, not what is right: first steps of training with every objective,
samples of the models that come with the checkout, examples of the data sets. ``test_pins`` compares them with a tolerance;

    python tests/pins.py --check    compares to the last digit: for the machine that wrote them
    python tests/pins.py            writes pins.json anew, and says what moved: only for a change that is meant
"""

import json
import math
import os
import platform
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

# all that the pins know of the library: adapt these lines, and no others, where something gets another name
import iflow_lib
from iflow_lib import (
    MLP,
    ConsistencyTraining,
    FlowMap,
    FlowMapDistillation,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    PoissonFlow,
    RectifiedFlow,
    TrainConfig,
    Transformer,
    UNet,
    VarianceExploding,
    VariancePreserving,
    X0Regression,
    fit,
    reflow,
    sample,
)
from iflow_lib import Distillation as PairDistillation
from iflow_lib.data import TensorData, load

# the numbers were made with settings that are no longer the defaults
TIMES = {
    "equal_share": 0.5,
    "start_share": 0.1,
    "end_share": 0.1,
    "time_density": (0.0, 1.6),
    "power": 0.0,
}
FlowMatching = partial(FlowMatching, velocity="pair")
ConsistencyTraining = partial(ConsistencyTraining, velocity="pair")
IntegralAdditivity = partial(IntegralAdditivity, velocity="pair", **TIMES)
IntegralIdentity = partial(IntegralIdentity, velocity="pair", gap=None, tangent="network", **TIMES)
MLP = partial(MLP, hidden=256, features=0, frequencies=4)
TrainConfig = partial(TrainConfig, lr=1e-3)


def distil(teacher, **settings):
    """Learn the flow map of a trained velocity."""
    return FlowMapDistillation(teacher=teacher, **{**TIMES, **settings})


CHECKPOINTS = (
    Path(iflow_lib.__file__).resolve().parents[1] / "results" / "reference" / "checkpoints"
)
FILE = Path(__file__).with_name("pins.json")
DATA = (
    "eight_gaussians",
    "checkerboard",
    "two_moons",
    "spiral",
    "pinwheel",
    "digits",
    "fashion_mnist",
    "emoji",
)
PATHS = {
    "rectified": RectifiedFlow(),
    "ve": VarianceExploding(),
    "pfgmpp": PoissonFlow(8),
    "vp": VariancePreserving(),
}


def wake(net, seed):
    """Noise on the weights that start at zero. With them the networks begin at an output of zero, without derivatives:
    most terms of most losses would then be nothing, or the same, and their pins would hold nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in net.parameters():
            if not w.any():
                w.copy_(0.05 * torch.randn(w.shape, generator=generator))
    return net


def made(net, path, seed):
    torch.manual_seed(seed)
    return FlowMap(wake(net(), seed), path)


def sums(model):
    """Of the positive weights and of the negative ones: added, their sum; subtracted, their absolute sum. (The sum itself
    is what little is left of both: weights whose gradients are mere rounding would show in its fifth digit.)"""
    weights = torch.cat([w.detach().double().flatten() for w in model.parameters()])
    return [weights.clamp(min=0).sum(), weights.clamp(max=0).sum()]


# ---------------------------------------------------------------- training


def train(objective, net, path, data, seed, batch, **settings):
    """Losses of the first steps, ``sums`` of the averaged weights, and the norm of the first gradient before it is clipped.
    objective: from a function that makes a teacher; batch: its size; settings: of ``TrainConfig``."""
    model, squares = made(net, path, seed), {}

    def note(w):
        squares.setdefault(id(w), float(w.grad.double().square().sum()))

    for w in model.parameters():
        w.register_post_accumulate_grad_hook(note)
    settings = {"steps": 5, "log_every": 1, **settings}
    config = TrainConfig(batch_size=batch, seed=seed, device="cpu", progress=False, **settings)
    run = fit(model, objective(lambda: made(net, path, 100 + seed)), data(), config)
    return [*run.history.loss, *sums(run.model), math.sqrt(sum(squares.values()))]


def mlp(**settings):
    return partial(MLP, dim=2, hidden=32, layers=2, **settings)


def unet(size, **settings):
    """Of width 16: with 8, a group of ``GroupNorm`` would be one channel, the biases before it would have gradients of mere
    rounding, which Adam makes as large as all others, and the sum of the weights would depend on the processor."""
    return partial(UNet, channels=1, size=size, width=16, blocks=1, **settings)


def gaussians(n=1000):
    return load("eight_gaussians", n)


def digits():
    return load("digits", 256)


def noise_images():
    return TensorData(2 * torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 1)


def pairs(seed):
    return reflow(made(mlp(), RectifiedFlow(), 200 + seed), 256, nfe=4, seed=seed)


#: A difference over the default step of 1e-3 multiplies rounding by 500: too much for losses that are small or long sums.
COARSE = {"derivative": "difference", "step": 0.01}

#: On points: objective from a maker of teachers, settings of the network, and how many points to draw, if not 1000: few,
#: where examples must come twice to make a difference (kept anchors; blend, which does nothing in the first epoch).
ON_POINTS = {
    "matching": (lambda _: FlowMatching(), {}),
    "identity": (lambda _: IntegralIdentity(), {}),
    "identity-difference": (lambda _: IntegralIdentity(derivative="difference", step=1e-3), {}),
    "identity-wide": (lambda _: IntegralIdentity(derivative="difference", step=0.2), {}),
    "identity-jvp": (lambda _: IntegralIdentity(derivative="jvp"), {}),
    "identity-conditional": (lambda _: IntegralIdentity(tangent="conditional"), {}),
    "identity-self": (lambda _: IntegralIdentity(anchor="self", **COARSE), {"anchor": True}),
    "identity-power": (lambda _: IntegralIdentity(power=0.5), {}),
    "identity-shares": (
        lambda _: IntegralIdentity(
            equal_share=0.25, start_share=0.3, end_share=0.2, time_density="uniform"
        ),
        {},
    ),
    "distil": (lambda teacher: distil(teacher(), **COARSE), {}),
    "distil-jvp": (lambda teacher: distil(teacher(), derivative="jvp", power=0.5), {}),
    "additivity": (lambda _: IntegralAdditivity(), {}),
    "consistency": (lambda _: ConsistencyTraining(), {}),
    "consistency-late": (lambda _: ConsistencyTraining(mean=4.0, start_share=0.0), {}),
    "x0-none": (lambda _: X0Regression(), {}),
    "x0-shared": (lambda _: X0Regression("shared"), {"anchor": True}),
    "x0-per_example": (lambda _: X0Regression("per_example"), {"anchor": True}, 100),
    "x0-ground_truth": (lambda _: X0Regression("ground_truth"), {"anchor": True}, 100),
    "x0-self": (lambda _: X0Regression("self"), {"anchor": True}),
    "x0-blend": (lambda _: X0Regression("per_example", blend=True), {"anchor": True}, 100),
    "x0-l1": (lambda _: X0Regression(distance="l1"), {}),
    "x0-pseudo_huber": (lambda _: X0Regression(distance="pseudo_huber", c=0.1), {}),
}

#: On the pairs of ``reflow``: objective.
ON_PAIRS = {
    "distil": lambda _: PairDistillation(),
    "matching": lambda _: FlowMatching(),
    "identity": lambda _: IntegralIdentity(**COARSE),
}

RECIPE = {
    "equal_share": 0.25,
    "start_share": 0.15,
    "end_share": 0.15,
    "time_density": (0.0, 1.0),
    "power": 0.5,
    "detail": 15.0,
    "derivative": "difference",
    "step": 0.005,
}

#: On images: objective, network, data, settings of ``fit``.
ON_IMAGES = {
    "matching": (lambda _: FlowMatching(), unet(8), digits, {}),
    "matching-28": (lambda _: FlowMatching(), unet(28), noise_images, {}),
    "matching-classes": (
        lambda _: FlowMatching(),
        unet(8, classes=10),
        digits,
        {"label_dropout": 0.3},
    ),
    "identity": (lambda _: IntegralIdentity(**COARSE), unet(8), digits, {}),
    "identity-jvp": (lambda _: IntegralIdentity(derivative="jvp"), unet(8), digits, {}),
    "identity-conditional": (
        lambda _: IntegralIdentity(tangent="conditional", **COARSE),
        unet(8),
        digits,
        {},
    ),
    "identity-self": (
        lambda _: IntegralIdentity(anchor="self", **COARSE),
        unet(8, anchor=True),
        digits,
        {},
    ),
    "identity-detail": (
        lambda _: IntegralIdentity(power=0.5, detail=15, **COARSE),
        unet(8),
        digits,
        {},
    ),
    "identity-detail-28": (
        lambda _: IntegralIdentity(power=0.5, detail=15, **COARSE),
        unet(28),
        noise_images,
        {},
    ),
    "identity-classes": (
        lambda _: IntegralIdentity(**COARSE),
        unet(8, classes=10),
        digits,
        {"label_dropout": 0.3},
    ),
    "distil": (lambda teacher: distil(teacher(), **COARSE), unet(8), digits, {}),
    "distil-perceptual": (
        lambda teacher: distil(teacher(), **COARSE, perceptual=1.0),
        unet(8),
        digits,
        {},
    ),
    "distil-matching": (
        lambda teacher: distil(teacher(), **COARSE, matching=50.0),
        unet(8),
        digits,
        {},
    ),
    "distil-recipe": (
        lambda teacher: distil(teacher(), **RECIPE, perceptual=1.0, matching=50.0),
        unet(8),
        digits,
        {},
    ),
    "distil-recipe-28": (
        lambda teacher: distil(teacher(), **RECIPE, perceptual=1.0, matching=50.0),
        unet(28),
        noise_images,
        {},
    ),
    "distil-recipe-classes": (
        lambda teacher: distil(teacher(), **RECIPE, perceptual=1.0, matching=50.0),
        unet(8, classes=10),
        digits,
        {"label_dropout": 0.3},
    ),
    "additivity": (lambda _: IntegralAdditivity(power=0.5, detail=15), unet(8), digits, {}),
    "consistency": (lambda _: ConsistencyTraining(), unet(8), digits, {}),
    "x0-per_example": (
        lambda _: X0Regression("per_example", distance="pseudo_huber"),
        unet(8, anchor=True),
        digits,
        {},
    ),
}


def training_cases():
    for name, (objective, settings, *n) in ON_POINTS.items():
        for path, seeds in (("rectified", 3), ("ve", 3), ("pfgmpp", 3), ("vp", 1)):
            for seed in range(seeds):
                yield (
                    f"train/points/{name}/{path}/{seed}",
                    partial(
                        train,
                        objective,
                        mlp(**settings),
                        PATHS[path],
                        partial(gaussians, *n),
                        seed,
                        64,
                    ),
                )
    for name, objective in ON_PAIRS.items():
        for seed in range(3):
            yield (
                f"train/pairs/{name}/{seed}",
                partial(train, objective, mlp(), RectifiedFlow(), partial(pairs, seed), seed, 64),
            )
    for name, (objective, net, data, settings) in ON_IMAGES.items():
        yield (
            f"train/images/{name}",
            partial(train, objective, net, RectifiedFlow(), data, 0, 16, **settings),
        )
    # long enough to warm up; rows of the history are means of several steps
    yield (
        "train/settings",
        partial(
            train,
            lambda _: FlowMatching(),
            mlp(classes=8),
            RectifiedFlow(),
            gaussians,
            0,
            64,
            steps=40,
            log_every=8,
            lr=1e-2,
            ema=0.9,
            clip=0.1,
            warmup=3,
            label_dropout=0.2,
        ),
    )


# ---------------------------------------------------------------- networks, samples, data


def first_weights(net):
    torch.manual_seed(0)
    return sums(net())


def drawn(model, n, nfe, method, seed, **settings):
    """Mean, standard deviation and first values of samples, and the network calls they took."""
    out = sample(model(), n, nfe, method, seed, **settings)
    return [out.x.double().mean(), out.x.double().std(), *out.x.flatten()[:8], out.nfe]


def trained(folder):
    return FlowMap.from_pretrained(folder)


def sampling_cases():
    for folder in sorted(p for p in CHECKPOINTS.iterdir() if p.is_dir()):
        network = json.loads((folder / "config.json").read_text(encoding="utf-8"))["network"]
        for method, nfe in (
            ("map", 1),
            ("map", 2),
            ("euler", 4),
            ("heun", 5),
            *[("anchor", 2)] * network["anchor"],
        ):
            yield (
                f"sample/{folder.name}/{method}-{nfe}",
                partial(drawn, partial(trained, folder), 4, nfe, method, 3),
            )
    for name, path in PATHS.items():
        plain, told = partial(made, mlp(), path, 1), partial(made, mlp(classes=3), path, 1)
        anchored = partial(made, mlp(anchor=True), path, 1)
        labels, times = (
            torch.tensor([0, 1, 2, -1, 0]),
            torch.tensor([1, 0.4, 0.1, 0], dtype=torch.float64) * path.t_max,
        )
        yield (
            f"sample/{name}/guided",
            partial(drawn, told, 5, 4, "euler", 0, labels=labels, guidance=2.0, batch_size=3),
        )
        yield f"sample/{name}/times", partial(drawn, plain, 5, 5, "heun", 0, times=times)
        yield f"sample/{name}/rk45", partial(drawn, plain, 5, 1, "rk45", 0)
        yield f"sample/{name}/anchored", partial(drawn, anchored, 5, 3, "map", 0)


def examples(name, split, seed):
    """The first values of three examples; of images these are background, so also their mean, deviation, some values from
    all over, and the labels."""
    data = load(name, 3, split, seed)
    x = data.x.flatten()
    labels = [] if data.labels is None else data.labels.tolist()
    return [*x[:6], x.double().mean(), x.double().std(), *x[:: max(1, len(x) // 13)][:13], *labels]


def cases():
    """Name: function without arguments that returns its numbers."""
    found = dict(training_cases())
    for name, net in (
        ("mlp", partial(MLP, dim=2)),
        ("unet", UNet),
        ("transformer", partial(Transformer, length=24)),
        ("unet-classes", partial(UNet, channels=3, size=32, width=16, anchor=True, classes=10)),
    ):
        found[f"weights/{name}"] = partial(first_weights, net)
    found |= dict(sampling_cases())
    return found | {
        f"data/{name}/{split}/{seed}": partial(examples, name, split, seed)
        for name in DATA
        for split in ("train", "test")
        for seed in (0, 1)
    }


# ---------------------------------------------------------------- making them


@contextmanager
def steady():
    """One thread, no runner, and the generator of torch left as it was."""
    threads, run = torch.get_num_threads(), os.environ.pop("IFLOW_RUN", None)
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        if run is not None:
            os.environ["IFLOW_RUN"] = run


def numbers(case):
    """What a case gives, as floats of nine digits, which is all that float32 has."""
    with steady():
        return [float(f"{float(value):.9g}") for value in case()]


def recorded():
    return json.loads(FILE.read_text(encoding="utf-8"))["numbers"]


def main():
    before, check = recorded() if FILE.is_file() else {}, sys.argv[1:] == ["--check"]
    found = {name: numbers(case) for name, case in cases().items()}
    assert all(math.isfinite(value) for values in found.values() for value in values)
    moved = [
        name for name in sorted(before.keys() | found.keys()) if before.get(name) != found.get(name)
    ]
    for name in moved if before else ():
        print(f"{name}\n  was {before.get(name)}\n  is  {found.get(name)}")
    if check:
        sys.exit(f"{len(moved)} of {len(before)} moved" if moved else 0)
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()
    )
    FILE.write_text(
        f'{{"made with": {json.dumps(about)}, "numbers": {{\n{rows}\n}}}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
