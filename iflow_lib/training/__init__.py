"""``fit``, its settings, and what a run keeps on disk."""

from .config import TrainConfig
from .loop import TrainRun, fit

__all__ = ["TrainConfig", "TrainRun", "fit"]
