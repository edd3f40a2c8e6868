"""Data sets by name. Every one is a ``TensorData``."""

from __future__ import annotations

import numpy as np
import torch

from .images import _IMAGES, ASSETS, VENDORED
from .tensor_data import TensorData, as_tensor, checked, portions, release
from .toy import _PLANE

PLANE = ("eight_gaussians", "checkerboard", "two_moons", "spiral", "pinwheel")
DATASETS = (*PLANE, "digits", "fashion_mnist", "fashion_mnist_full", "emoji")
SPLITS = ("train", "test")


def load(
    name: str, n: int | None = None, split: str = "train", seed: int = 0, root=None
) -> TensorData:
    """Load a data set by name.

    name: one of ``DATASETS``.
    In the plane: ``n`` points (if not given, 100,000 for train and 10,000 for test) drawn with ``seed``;
    ``split="test"`` is an independent draw of the same law.
    Images: (B, channels, H, W) in [-1, 1] with labels; ``n`` of them chosen at random with ``seed``, without
    replacement (if not given, all in file order).

    - digits: scikit-learn's 1,797 8x8 images, split at random once and for all (1,437 + 360)
    - fashion_mnist: the balanced 10,000 + 2,000 28x28 images that come with the package, checked by sha256
    - fashion_mnist_full: all 60,000 + 10,000, checked by sha256, from ``root`` (a folder with the four idx or
      idx.gz files), else from the folder of Debian's package dataset-fashion-mnist, else downloaded by
      torchvision into ~/.cache/iflow_lib
    - emoji: 3,400 + 386 of Google's, (B, 3, 32, 32) on white, that come with the package, checked by sha256; labels are
      ten categories; the skin tones of one emoji are all in the same split

    Raises ValueError (unknown name or split, n or seed out of range, damaged file), FileNotFoundError
    (missing file), OSError (failed download).
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected train or test")
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if root is not None and name != "fashion_mnist_full":
        raise ValueError(f"root is only for fashion_mnist_full; {name} needs no folder")
    rng = np.random.default_rng([seed, SPLITS.index(split), DATASETS.index(name)])
    if name in PLANE:
        x, labels = _PLANE[name](n or (100_000 if split == "train" else 10_000), rng)
    else:
        images, labels = _IMAGES[name](split, root)
        if n is not None and n > len(images):
            raise ValueError(f"{name} has {len(images)} {split} examples, {n} were asked for")
        chosen = slice(None) if n is None else rng.permutation(len(images))[:n]
        images, labels = images[chosen], labels[chosen]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        x = images / np.float32(16 if name == "digits" else 255) * 2 - 1  # the largest pixel
    labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return TensorData(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), labels, name)
