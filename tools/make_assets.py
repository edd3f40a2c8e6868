"""Make the files in ``iflow_lib/assets`` again: the Fashion-MNIST subset and the feature classifier.

    python tools/make_assets.py subset [--root FOLDER]      about 15 s; prints the sha256 for data.FASHION_SHA256

``--root`` is a folder with the four idx or idx.gz files of the full set (see ``iflow_lib.data.load``).
"""
from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from iflow_lib import data  # noqa: E402

ASSETS = Path(data.__file__).parent / "assets"


def balanced(images: np.ndarray, labels: np.ndarray, per_class: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """``per_class`` images of each class, chosen at random, kept in the order of the official files."""
    chosen = np.sort(np.concatenate(
        [rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)]))
    return images[chosen], labels[chosen]


def make_subset(root=None) -> str:
    """Write ``fashion_mnist.npz``: 1,000 train and 200 test images a class of the official splits. Returns its sha256."""
    arrays = {}
    for split, per_class, seed in (("train", 1000, 0), ("test", 200, 1)):
        images, labels = data._fashion_mnist_full(split, root)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = balanced(
            images, labels, per_class, np.random.default_rng(seed))
    file = ASSETS / "fashion_mnist.npz"
    np.savez_compressed(file, **arrays)
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    print(make_subset())
