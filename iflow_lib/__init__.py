"""One-step generative flow models: a small library behind the notebooks."""

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
from .networks import MLP, Transformer, UNet, register_network
from .objectives import (
    Batch,
    ConsistencyTraining,
    Distillation,
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
from .training import TrainConfig, TrainRun, fit
from .utils import __version__, pick_device

__all__ = [
    "MLP",
    "Batch",
    "ConsistencyTraining",
    "Distillation",
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
    "TensorData",
    "TerminalVelocity",
    "TrainConfig",
    "TrainRun",
    "Transformer",
    "UNet",
    "VarianceExploding",
    "VariancePreserving",
    "X0Regression",
    "__version__",
    "analytic",
    "data",
    "fit",
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
