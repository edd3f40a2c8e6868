"""Data: sets by name, what users bring, and its scale. Every set but a frame is a ``TensorData``.

- registry: ``load``, ``register_dataset`` and what the library knows about each set.
- toy, images, furnace: the sets that come with the package, one function each.
- frames: ``frame``, data frames by name, and ``register_frame``.
- tensor_data: ``TensorData``, and ``as_dataset``, which makes one of any data.
- unpack: what users bring, and every check of it.
- mapped: going through data that are large or in a mapped file.
- unit_scale: ``standardize`` and the warning about data far from unit scale.
"""

from ..scaling import Standardization
from . import furnace, images, toy
from .frames import FRAMES, frame, register_frame
from .registry import DATASETS, SPLITS, DatasetEntry, entry, load, names, register_dataset
from .tensor_data import TensorData, as_dataset, as_tensor, checked, shape_hint
from .toy import Modes, modes
from .unit_scale import scale_warning, standardize

#: The five laws in the plane that come with the package.
PLANE = names(kind="plane")
#: Three more, on which no setting of the library is chosen (docs/protocol.md).
PLANE_HELD_OUT = names(kind="plane_held_out")

__all__ = [
    "DATASETS",
    "FRAMES",
    "PLANE",
    "PLANE_HELD_OUT",
    "SPLITS",
    "DatasetEntry",
    "Modes",
    "Standardization",
    "TensorData",
    "as_dataset",
    "as_tensor",
    "checked",
    "entry",
    "frame",
    "furnace",
    "images",
    "load",
    "modes",
    "names",
    "register_dataset",
    "register_frame",
    "scale_warning",
    "shape_hint",
    "standardize",
    "toy",
]
