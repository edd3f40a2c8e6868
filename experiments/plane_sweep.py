"""A training in the plane for ``iflow sweep``: ``iflow sweep experiments/sweep.toml``

``train`` trains and measures one model. Its arguments are what a sweep file can vary, and their defaults those of the
committed results in the plane.
"""

import threading

import iflow_lib as ifl
from experiments.common import finished
from iflow_lib import data as data_sets
from iflow_lib import zoo
from iflow_lib.training.compile import Threads

PATHS = {"RectifiedFlow": "rectified", "VarianceExploding": "ve", "PoissonFlow": "pfgmpp"}
SEEDING = threading.Lock()  # torch has one global seed, and a worker may have several threads


def kinds() -> dict[tuple[str, str], str]:
    """(objective, anchor) -> its kind in ``zoo.KINDS``."""
    made = {kind: make() for kind, make in zoo.KINDS.items()}
    return {(o.name, getattr(o, "anchor", None) or "none"): kind for kind, o in made.items()}


def train(
    dataset: str = "eight_gaussians",
    path: str = "rectified",
    objective: str = "IntegralIdentity",
    anchor: str = "none",
    seed: int = 0,
    steps: int = zoo.PLANE_STEPS,
    batch_size: int = 512,
    lr: float = 2e-3,
    hidden: int = 128,
    layers: int = 4,
    draws: int = 5,
    nfes=(1, 2, 4, 8),
    device: str = "cpu",
) -> list[dict]:
    """Train a model in the plane and measure it: tidy rows.

    path: rectified, ve or pfgmpp (aug_dim 8), or the name of its class. anchor: of IntegralIdentity none or self, of
    X0Regression none, shared, per_example, ground_truth or self. draws: comparisons with fresh data behind each distance.
    nfes: numbers of network calls, see ``System.methods``.

    Raises ValueError with one line for a value out of range and for settings that make no sense together.
    """
    known, kind = kinds(), kinds().get((objective, anchor))
    objectives = dict.fromkeys(name for name, _ in known)
    if dataset not in data_sets.PLANE:
        raise ValueError(
            f"unknown dataset {dataset!r}: expected one of {', '.join(data_sets.PLANE)}"
        )
    if PATHS.get(path, path) not in zoo.PATH_NAMES:
        raise ValueError(f"unknown path {path!r}: expected one of {', '.join(zoo.PATH_NAMES)}")
    if objective not in objectives:
        raise ValueError(
            f"unknown objective {objective!r}: expected one of {', '.join(objectives)}"
        )
    if kind is None:
        anchors = ", ".join(a for name, a in known if name == objective)
        raise ValueError(f"{objective} has no anchor {anchor!r}: it has {anchors}")
    counts = {"steps": steps, "hidden": hidden, "layers": layers, "draws": draws}
    for name, value in (*counts.items(), *(("nfes", nfe) for nfe in nfes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    system = zoo.System(PATHS.get(path, path), kind, dataset)
    if not nfes or not system.methods(nfes):
        raise ValueError(f"{objective} is not sampled with nfes = {list(nfes)}")
    config = ifl.TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, seed=seed, device=device, progress=False
    )
    with Threads(1, 1):  # the same bits whatever the worker has, and no worker in another's way
        with SEEDING:
            model = system.model(seed, hidden=hidden, layers=layers)
        run = finished(ifl.fit(model, system.objective(), data_sets.load(dataset), config))
        return zoo.evaluate(run.model, system, run.manifest, nfes=nfes, draws=draws)
