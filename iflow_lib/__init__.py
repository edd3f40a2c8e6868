"""One-step generative flow models: a small library behind the notebooks."""

from typing import TYPE_CHECKING, Any

from . import (
    analytic,
    data,
    metrics,
    networks,
    objectives,
    paths,
    plotting,
    sampling,
    training,
    zoo,
)
from .data import TensorData, register_dataset
from .model import FlowMap
from .networks import MLP, Transformer, UNet, UNet1d, register_network
from .objectives import (
    Batch,
    ConsistencyTraining,
    Distillation,
    EnergyMatching,
    FlowMapDistillation,
    FlowMatching,
    IntegralAdditivity,
    IntegralIdentity,
    Objective,
    TerminalVelocity,
    X0Regression,
)
from .paths import (
    Path,
    PathSample,
    PoissonFlow,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    register_path,
)
from .sampling import Sampler, SampleResult, reflow, register_sampler, sample
from .training import (
    Callback,
    TensorBoard,
    TrainConfig,
    TrainRun,
    Validation,
    WeightsAndBiases,
    fit,
)
from .utils import __version__, pick_device

if TYPE_CHECKING:
    from . import frames
    from .frames import SeriesFlow, TableFlow

__all__ = [
    "MLP",
    "Batch",
    "Callback",
    "ConsistencyTraining",
    "Distillation",
    "EnergyMatching",
    "FlowMap",
    "FlowMapDistillation",
    "FlowMatching",
    "IntegralAdditivity",
    "IntegralIdentity",
    "Objective",
    "Path",
    "PathSample",
    "PoissonFlow",
    "RectifiedFlow",
    "SampleResult",
    "Sampler",
    "SeriesFlow",
    "TableFlow",
    "TensorBoard",
    "TensorData",
    "TerminalVelocity",
    "TrainConfig",
    "TrainRun",
    "Transformer",
    "UNet",
    "UNet1d",
    "Validation",
    "VarianceExploding",
    "VariancePreserving",
    "WeightsAndBiases",
    "X0Regression",
    "__version__",
    "analytic",
    "data",
    "fit",
    "frames",
    "metrics",
    "networks",
    "objectives",
    "paths",
    "pick_device",
    "plotting",
    "reflow",
    "register_dataset",
    "register_network",
    "register_path",
    "register_sampler",
    "sample",
    "sampling",
    "training",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import ``frames`` at its first use: it needs pandas, which takes a second."""
    if name not in ("frames", "SeriesFlow", "TableFlow"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    frames = importlib.import_module(".frames", __name__)
    return frames if name == "frames" else getattr(frames, name)


def __dir__() -> list[str]:
    """List also what is imported at its first use."""
    return sorted({*globals(), *__all__})
