"""Data sets by name: a registry in which each set has its own fixed seed id, and ``load``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..registry import first_line
from ..utils import check_int, check_seed
from .tensor_data import TensorData

SPLITS = ("train", "test")
DATASET_KINDS = ("plane", "plane_held_out", "draws", "images", "stored")

#: Number of examples that ``load`` draws from a law when the caller names none.
DRAWN_BY_DEFAULT = {"train": 100_000, "test": 10_000}


@dataclass(frozen=True)
class DatasetEntry:
    """What the library knows about a data set. Other modules ask the entry, never the name.

    Its fields are the arguments of ``register_dataset``, and the function.

    Attributes:
        compared_by: How ``metrics`` measures the distance between real draws: ``"points"``
            compares two independent draws, ``"fashion_features"`` compares features of the shipped
            Fashion-MNIST classifier, and None means that no such pair is defined.
    """

    name: str
    seed_id: int
    kind: str
    function: Callable[..., tuple[Any, Any]]
    largest_pixel: float = 255
    takes_root: bool = False
    compared_by: str | None = None

    @property
    def in_plane(self) -> bool:
        """Whether an example is a point in the plane, drawn from a law."""
        return self.kind in ("plane", "plane_held_out")

    @property
    def drawn(self) -> bool:
        """Whether each load is a fresh draw from a law, of any size."""
        return self.in_plane or self.kind == "draws"


#: Every registered data set: name -> entry.
DATASETS: dict[str, DatasetEntry] = {}


def register_dataset(
    name: str,
    *,
    seed_id: int | None = None,
    kind: str = "stored",
    largest_pixel: float = 255,
    takes_root: bool = False,
    compared_by: str | None = None,
) -> Callable[[Callable], Callable]:
    """Register a function as a data set, which ``load`` then knows by its name.

    The function takes and returns what its kind says:

    ============  ================================  ================================================
    kind          called as                         returns
    ============  ================================  ================================================
    ``"plane"``   ``function(n, rng)``              points (n, 2), labels (n,) or None
    ``"draws"``   ``function(n, rng)``              examples (n, ...), labels (n,) or None
    ``"images"``  ``function(split)``               pixels (n, H, W) or (n, H, W, C) from 0 to
                                                    ``largest_pixel``, labels (n,) or None
    ``"stored"``  ``function(split)``               examples (n, ...), labels (n,) or None
    ============  ================================  ================================================

    ``rng`` is a ``numpy.random.Generator``, the only source of chance that the function may use;
    ``"plane_held_out"`` is ``"plane"`` for the sets on which no setting of the library is chosen.
    ``split`` is "train" or "test". With ``takes_root`` the function of a stored set is called as
    ``function(split, root)``. The same function may be registered again, as a notebook's cell does
    when it is run twice.

    Args:
        name: The name that ``load`` takes.
        seed_id: Needed. A whole number that no other data set has, of at least 100 for a set of your own.
            Draws depend on it and not on the order of registration.
        kind: ``"plane"``, ``"plane_held_out"``, ``"draws"``, ``"images"`` or ``"stored"``.
        largest_pixel: The value of a white pixel; ``load`` maps [0, largest_pixel] to [-1, 1].
        takes_root: Whether the function also takes a folder.
        compared_by: As in ``DatasetEntry``; None is ``"points"`` where a set is drawn from a law.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ValueError: If the name or the seed id is taken or missing, or the kind is unknown.
    """
    if not isinstance(name, str) or name == "":
        raise ValueError(
            'register_dataset takes a name, as in @ifl.register_dataset("mine", seed_id=100); got '
            f"{name!r}"
        )
    seed_id = check_int("seed_id", seed_id, minimum=0)
    if kind not in DATASET_KINDS:
        raise ValueError(
            f"unknown kind {kind!r} for data set {name!r}; expected {', '.join(DATASET_KINDS)}"
        )

    def register(function: Callable) -> Callable:
        if name in DATASETS and not _same_origin(DATASETS[name].function, function):
            raise ValueError(f"a data set {name!r} is registered already; choose another name")
        for other in DATASETS.values():
            if other.seed_id == seed_id and other.name != name:
                raise ValueError(
                    f"seed_id {seed_id} belongs to the data set {other.name!r}; choose another one for "
                    f"{name!r}"
                )
        found = DatasetEntry(name, seed_id, kind, function, largest_pixel, takes_root, compared_by)
        if compared_by is None and found.drawn:
            found = replace(found, compared_by="points")
        DATASETS[name] = found
        return function

    return register


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of the registered data sets, in the order of their seed ids.

    Args:
        kind: Only sets of this kind; None returns all.

    Returns:
        The names.
    """
    in_order = sorted(DATASETS.values(), key=lambda found: found.seed_id)
    return tuple(found.name for found in in_order if kind in (None, found.kind))


def entry(name: str) -> DatasetEntry:
    """Return what is known about a data set.

    Args:
        name: The name of a registered data set.

    Returns:
        Its entry.

    Raises:
        ValueError: If no data set has this name.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(names())}")
    return DATASETS[name]


def load(
    name: str,
    n: int | None = None,
    split: str = "train",
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> TensorData:
    """Load a data set by name.

    A set in the plane is a law: ``load`` draws ``n`` fresh points, and "test" is an independent
    draw of the same law. Images are stored: (B, channels, H, W) in [-1, 1] with labels, of which
    ``load`` chooses ``n`` at random without replacement.

    - digits: scikit-learn's 1,797 images of 8x8, split at random once and for all (1,437 + 360).
    - fashion_mnist: the balanced 10,000 + 2,000 images of 28x28 that come with the package.
    - fashion_mnist_full: all 60,000 + 10,000, from ``root`` (a folder with the four idx or idx.gz
      files), else from the folder of Debian's package dataset-fashion-mnist, else downloaded by
      torchvision into ~/.cache/iflow_lib.
    - emoji: 3,400 + 386 of Google's images, (B, 3, 32, 32) on white, that come with the package.
      Labels are ten categories; the skin tones of one emoji are all in the same split.

    All files are checked by their sha256.

    Args:
        name: One of ``names()``.
        n: Number of examples. None draws 100,000 for training and 10,000 for testing from a law,
            and takes all images in the order of their file.
        split: "train" or "test".
        seed: Seed of the draw, or of the choice among stored examples.
        root: Folder of the four files of fashion_mnist_full.

    Returns:
        The examples, float32, with labels where the set has them.

    Raises:
        ValueError: For an unknown name or split, an ``n`` or ``seed`` out of range, or a damaged
            file.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails.
    """
    found = entry(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected train or test")
    n = None if n is None else check_int("n", n)
    seed = check_seed(seed)
    if root is not None and not found.takes_root:
        takers = ", ".join(other for other in names() if DATASETS[other].takes_root)
        raise ValueError(f"root is only for {takers}; {name} needs no folder")
    rng = np.random.default_rng([seed, SPLITS.index(split), found.seed_id])
    if found.drawn:
        x, labels = _draw(found, DRAWN_BY_DEFAULT[split] if n is None else n, rng)
    else:
        x, labels = _choose(found, n, split, rng, root)
    return TensorData(x, labels, name)


def _draw(
    found: DatasetEntry, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    x, labels = _pair(found, _called(found, n, rng))
    if len(x) != n or (found.in_plane and x.shape != (n, 2)):
        shape = f"({n}, 2)" if found.in_plane else f"({n}, ...)"
        raise ValueError(
            f"the function of data set {found.name!r} must return {n} examples of shape {shape}, got "
            f"{x.shape}"
        )
    return x, labels


def _choose(
    found: DatasetEntry,
    n: int | None,
    split: str,
    rng: np.random.Generator,
    root: str | os.PathLike[str] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    more = (root,) if found.takes_root else ()
    x, labels = _pair(found, _called(found, split, *more))
    if n is not None:
        if n > len(x):
            raise ValueError(f"{found.name} has {len(x)} {split} examples, {n} were asked for")
        chosen = rng.permutation(len(x))[:n]
        x, labels = x[chosen], None if labels is None else labels[chosen]
    return (_in_unit_range(found, x) if found.kind == "images" else x), labels


def _in_unit_range(found: DatasetEntry, pixels: np.ndarray) -> np.ndarray:
    """Pixels (n, H, W) or (n, H, W, C) from 0 to the largest -> float32 (n, C, H, W) in [-1, 1]."""
    if pixels.ndim not in (3, 4) or not 0 <= pixels.min() <= pixels.max() <= found.largest_pixel:
        raise ValueError(
            f"the function of data set {found.name!r} must return pixels (n, H, W) or (n, H, W, C) from "
            f"0 to {found.largest_pixel:g}, got shape {pixels.shape} with values from "
            f"{pixels.min():g} to {pixels.max():g}"
        )
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return images / np.float32(found.largest_pixel) * 2 - 1


def _called(found: DatasetEntry, *arguments: Any) -> Any:
    """Call the function of a set; what a user's raises is said with the name of the set."""
    if found.function.__module__.startswith(__package__):
        return found.function(*arguments)
    try:
        return found.function(*arguments)
    except Exception as error:
        raise ValueError(
            f"the function of data set {found.name!r} fails: {first_line(error)}"
        ) from error


def _pair(found: DatasetEntry, made: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(
            f"the function of data set {found.name!r} must return (x, labels) or (x, None), got a "
            f"{type(made).__name__}"
        )
    x, labels = (part.detach().cpu() if isinstance(part, Tensor) else part for part in made)
    return np.asarray(x), None if labels is None else np.asarray(labels)


def _same_origin(one: Callable, other: Callable) -> bool:
    """Whether both are the same definition, run twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
