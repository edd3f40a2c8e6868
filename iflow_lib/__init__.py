"""One-step generative flow models: a small library behind the notebooks.

Names are imported when first used (PEP 562), so that ``iflow --help`` need not wait for torch.
"""
from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "RectifiedFlow": "paths", "VarianceExploding": "paths", "VariancePreserving": "paths",
    "PoissonFlow": "paths", "PathSample": "paths",
    "MLP": "networks", "UNet": "networks", "Transformer": "networks",
    "FlowMap": "flow_map",
    "FlowMatching": "objectives", "IntegralIdentity": "objectives", "IntegralAdditivity": "objectives",
    "Batch": "objectives", "ConsistencyTraining": "baselines", "Distillation": "baselines",
    "X0Regression": "anchors", "AnchorStore": "anchors",
    "TrainConfig": "training", "TrainRun": "training", "fit": "training",
    "SampleResult": "samplers", "sample": "samplers", "reflow": "samplers",
}
_MODULES = ("analytic", "anchors", "baselines", "checkpoints", "data", "diagnostics", "metrics", "objectives",
            "networks", "paths", "plotting", "reproduce", "results", "samplers", "studies", "training")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
