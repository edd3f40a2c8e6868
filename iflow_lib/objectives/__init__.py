"""Training objectives: one idea a file."""

from .anchor_store import AnchorStore
from .base import Batch, Objective, on_line
from .consistency import ConsistencyTraining
from .derivative import DerivativeObjective
from .distillation import FlowMapDistillation, energy
from .flow_matching import FlowMatching
from .integral_additivity import IntegralAdditivity
from .integral_identity import IntegralIdentity
from .network_state import compared_rows, repeatable
from .reflow_distillation import Distillation
from .two_time import TwoTimeObjective
from .x0_regression import ANCHORS, X0Regression

__all__ = [
    "ANCHORS",
    "AnchorStore",
    "Batch",
    "ConsistencyTraining",
    "DerivativeObjective",
    "Distillation",
    "FlowMapDistillation",
    "FlowMatching",
    "IntegralAdditivity",
    "IntegralIdentity",
    "Objective",
    "TwoTimeObjective",
    "X0Regression",
    "compared_rows",
    "energy",
    "on_line",
    "repeatable",
]
