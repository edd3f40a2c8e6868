"""Training objectives: one idea a file."""

from .anchor_store import AnchorStore
from .base import Batch, Objective, on_line
from .consistency import ConsistencyTraining
from .derivative import DerivativeObjective
from .distillation import Distillation
from .energy import paired_energy_distance
from .energy_matching import EnergyMatching
from .flow_map_distillation import FlowMapDistillation
from .flow_matching import FlowMatching
from .integral_additivity import IntegralAdditivity
from .integral_identity import IntegralIdentity
from .network_state import compared_rows, repeatable
from .terminal_velocity import TerminalVelocity
from .two_time import TwoTimeObjective
from .velocity_target import VelocityTarget, batch_velocity
from .x0_regression import ANCHORS, X0Regression

__all__ = [
    "ANCHORS",
    "AnchorStore",
    "Batch",
    "ConsistencyTraining",
    "DerivativeObjective",
    "Distillation",
    "EnergyMatching",
    "FlowMapDistillation",
    "FlowMatching",
    "IntegralAdditivity",
    "IntegralIdentity",
    "Objective",
    "TerminalVelocity",
    "TwoTimeObjective",
    "VelocityTarget",
    "X0Regression",
    "batch_velocity",
    "compared_rows",
    "paired_energy_distance",
    "on_line",
    "repeatable",
]
