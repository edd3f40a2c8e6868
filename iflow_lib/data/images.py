"""Stored images: digits, Fashion-MNIST, emoji.

Each function takes the split and returns pixels (n, H, W) or (n, H, W, 3) that count from 0, with
labels (n,).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np

from .registry import register_dataset

ASSETS = Path(__file__).parent.parent / "assets"

#: sha256 of the files that come with the package.
VENDORED = {
    "fashion_mnist": "8b248b3e3f49d5bbafa5f119b3d46fa82fc31b2b4f63c46546c3c2cd80761cc0",
    "emoji": "715a64a9bbf451a44d085bb9eee2d1b72fa95ec4b1c4732751a854b64705e4c8",
}
#: Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
#: sha256 of the uncompressed idx contents, which do not depend on how a file was compressed.
FASHION_FULL = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@register_dataset("digits", seed_id=5, kind="images", largest_pixel=16)
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's 1,797 digits of 8x8; 360 of them are the test set."""
    from sklearn.datasets import load_digits

    everything = load_digits()
    # the file repeats the digits 0 to 9 in turn, so a cut at one place would not be a random choice
    order = np.random.default_rng(0).permutation(len(everything.images))
    chosen = np.sort(order[:360] if split == "test" else order[360:])
    return everything.images[chosen].astype(np.float32), everything.target[chosen]


@register_dataset("fashion_mnist", seed_id=6, kind="images", compared_by="fashion_features")
def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the part of Fashion-MNIST that comes with the package: 10,000 + 2,000 images."""
    return _vendored("fashion_mnist", split)


@register_dataset("fashion_mnist_full", seed_id=7, kind="images", takes_root=True)
def fashion_mnist_full(
    split: str, root: str | os.PathLike[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read all 70,000 images of Fashion-MNIST from ``root``, Debian's folder or the cache."""
    folder = _full_folder(root)
    prefix = "train" if split == "train" else "t10k"
    images = np.frombuffer(_read_idx(folder, f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(_read_idx(folder, f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


@register_dataset("emoji", seed_id=8, kind="images")
def emoji(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read Google's emoji, 32x32 in colour on white: 3,400 + 386 images."""
    return _vendored("emoji", split)


def _vendored(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    file = ASSETS / f"{name}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; reinstall the package")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != VENDORED[name]:
        raise ValueError(f"{file} is damaged: its sha256 is wrong; reinstall the package")
    with np.load(io.BytesIO(content)) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _full_folder(root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        return Path(root)
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    options = (
        "give root=FOLDER with the four idx or idx.gz files, install Debian's package "
        "dataset-fashion-mnist, or install torchvision to download them"
    )
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError:
        raise FileNotFoundError(
            f"the full Fashion-MNIST is not on this machine; {options}"
        ) from None
    cache = Path.home() / ".cache" / "iflow_lib"
    try:
        FashionMNIST(cache, download=True)
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise OSError(f"torchvision could not download Fashion-MNIST ({why}); {options}") from error
    return cache / "FashionMNIST" / "raw"


def _read_idx(folder: Path, name: str) -> bytes:
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        file, content = plain, plain.read_bytes()
    elif packed.is_file():
        file = packed
        try:
            content = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{packed} is damaged: {error}") from error
    else:
        raise FileNotFoundError(
            f"{folder} has no {name} or {name}.gz; expected the four Fashion-MNIST files"
        )
    if hashlib.sha256(content).hexdigest() != FASHION_FULL[name]:
        raise ValueError(
            f"{file} is damaged or not Fashion-MNIST: the sha256 of its contents is wrong"
        )
    return content
