"""Training objectives: one idea a file."""

from .base import Batch, Objective, energy, on_line
from .consistency import ConsistencyTraining
from .flow_matching import FlowMatching
from .integral_additivity import IntegralAdditivity
from .integral_identity import IntegralIdentity
from .reflow_distillation import Distillation
from .two_time import TwoTimeObjective
from .x0_regression import ANCHORS, AnchorStore, X0Regression

__all__ = [
    "ANCHORS",
    "AnchorStore",
    "Batch",
    "ConsistencyTraining",
    "Distillation",
    "FlowMatching",
    "IntegralAdditivity",
    "IntegralIdentity",
    "Objective",
    "TwoTimeObjective",
    "X0Regression",
    "energy",
    "on_line",
]
