"""``fit``, its settings, what happens beside a run, and what a run keeps on disk."""

from .callbacks import Callback, Training
from .config import TrainConfig
from .loggers import TensorBoard, WeightsAndBiases
from .loop import TrainRun, fit
from .validation import Validation

__all__ = [
    "Callback",
    "TensorBoard",
    "TrainConfig",
    "TrainRun",
    "Training",
    "Validation",
    "WeightsAndBiases",
    "fit",
]
