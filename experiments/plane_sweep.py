"""A training in the plane for ``iflow sweep``: ``iflow sweep experiments/sweep.toml``

``train`` trains and measures one model. Its arguments are what a sweep file can vary, and their defaults those of the
committed results in the plane.
"""

from typing import Literal

import iflow_lib as ifl
from experiments.common import finished
from iflow_lib import data as data_sets
from iflow_lib import zoo

CLASSES = {"RectifiedFlow": "rectified", "VarianceExploding": "ve", "PoissonFlow": "pfgmpp"}
DataSet = Literal["eight_gaussians", "checkerboard", "two_moons", "spiral", "pinwheel"]
PathName = Literal["rectified", "ve", "pfgmpp", "RectifiedFlow", "VarianceExploding", "PoissonFlow"]
ObjectiveName = Literal[
    "IntegralIdentity", "IntegralAdditivity", "FlowMatching", "ConsistencyTraining", "X0Regression"
]
Anchor = Literal["none", "self", "shared", "per_example", "ground_truth"]


def kinds() -> dict[tuple[str, str], str]:
    """(objective, anchor) -> its kind in ``zoo.KINDS``."""
    made = {kind: make() for kind, make in zoo.KINDS.items()}
    return {(o.name, getattr(o, "anchor", None) or "none"): kind for kind, o in made.items()}


def train(
    dataset: DataSet = "eight_gaussians",
    path: PathName = "rectified",
    objective: ObjectiveName = "IntegralIdentity",
    anchor: Anchor = "none",
    seed: int = 0,
    steps: int = zoo.PLANE_STEPS,
    batch_size: int = 512,
    lr: float = 2e-3,
    hidden: int = 128,
    layers: int = 4,
    draws: int = 5,
    nfes: tuple[int, ...] = (1, 2, 4, 8),
    device: str = "cpu",
) -> list[dict]:
    """Train a model in the plane and measure it: tidy rows.

    path: rectified, ve or pfgmpp (aug_dim 8), or the name of its class. anchor: of IntegralIdentity none or self, of
    X0Regression none, shared, per_example, ground_truth or self. draws: comparisons with fresh data behind each distance.
    nfes: numbers of network calls, see ``System.methods``.

    Raises ValueError with one line for a value out of range and for settings that make no sense together.
    """
    kind = kinds().get((objective, anchor))
    if kind is None:
        anchors = ", ".join(a for name, a in kinds() if name == objective)
        raise ValueError(f"{objective} has no anchor {anchor!r}: it has {anchors or 'none here'}")
    system = zoo.System(CLASSES.get(path, path), kind, dataset)
    counts = {"steps": steps, "hidden": hidden, "layers": layers, "draws": draws}
    for name, value in (*counts.items(), *(("nfes", nfe) for nfe in nfes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if not nfes or not system.methods(nfes):
        raise ValueError(f"{objective} is not sampled with nfes = {list(nfes)}")
    config = ifl.TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, seed=seed, device=device, progress=False
    )
    model = system.model(seed, hidden=hidden, layers=layers)
    run = finished(ifl.fit(model, system.objective(), data_sets.load(dataset), config))
    return zoo.evaluate(run.model, system, run.manifest, nfes=nfes, draws=draws)
