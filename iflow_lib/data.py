"""Data sets: five laws in the plane, 8x8 digits, Fashion-MNIST, emoji. Every one is a ``TensorData``.

In the plane every law has mean 0 and standard deviation 1 per coordinate, with the constants worked out in
closed form, so that a draw of any size follows the same law:

- eight_gaussians: equal weights, means on a ring of radius sqrt(2), standard deviation 0.1 (overall 1.005)
- checkerboard: uniform on the 8 dark squares of a 4 x 4 board with sides at +-sqrt(3)
- two_moons: the half circles of scikit-learn's ``make_moons``, noise 0.05 before scaling
- spiral: two arms r = theta, theta in [0, 3 pi], uniform in area, noise 0.3 before scaling
- pinwheel: five bent arms (Johnson et al. 2016, arXiv 1603.06277), radial 0.3, tangential 0.05, rate 0.25
"""
from __future__ import annotations

import functools
import gzip
import hashlib
import io
import math
import mmap
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

PLANE = ("eight_gaussians", "checkerboard", "two_moons", "spiral", "pinwheel")
DATASETS = (*PLANE, "digits", "fashion_mnist", "fashion_mnist_full", "emoji")
SPLITS = ("train", "test")
ASSETS = Path(__file__).parent / "assets"

VENDORED = {"fashion_mnist": "8b248b3e3f49d5bbafa5f119b3d46fa82fc31b2b4f63c46546c3c2cd80761cc0",
            "emoji": "715a64a9bbf451a44d085bb9eee2d1b72fa95ec4b1c4732751a854b64705e4c8"}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
# sha256 of the uncompressed idx contents, the same whoever packed them
FASHION_FULL = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class TensorData(Dataset):
    """A whole data set in memory. ``x``: float32 (B, ...); ``labels``: int64 (B,) or None; ``name``; ``noise``: the z that
    belongs to each example, (B, ...), for coupled data (``samplers.reflow``), or None.

    x may be a memory-mapped array, ``np.load("x.npy", mmap_mode="c")``: float32 then stays on disk, and RAM does not grow
    with the data set. An item is ``x[i]``, or ``(x[i], labels[i])`` where there are labels.
    """

    def __init__(self, x: torch.Tensor | np.memmap, labels: torch.Tensor | None = None, name: str = "tensor",
                 noise: torch.Tensor | None = None):
        self.mapped = x if isinstance(x, np.memmap) else None
        x = as_tensor(x) if isinstance(x, np.memmap) else x
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"{name}: {len(x)} examples but {len(labels)} labels")
        if noise is not None and noise.shape != x.shape:
            raise ValueError(f"{name}: noise must have the shape of x, {tuple(x.shape)}; got {tuple(noise.shape)}")
        self.x, self.labels, self.name, self.noise = x, labels, name, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] if self.labels is None else (self.x[index], self.labels[index])

    def __repr__(self) -> str:
        return f"TensorData({self.name!r}, {tuple(self.x.shape)})"

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the bytes of ``x``."""
        digest = hashlib.sha256()
        for block in _blocks(self.x, self.mapped):
            digest.update(block.cpu().contiguous().numpy())
        return digest.hexdigest()


def load(name: str, n: int | None = None, split: str = "train", seed: int = 0, root=None) -> TensorData:
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


def as_tensor(data) -> torch.Tensor:
    """A float32 tensor (B, ...) from a tensor, a numpy array, a ``TensorData`` or a Dataset of x or (x, y).

    Raises ValueError with one line for anything else, whole-number or complex data, rank below 2, no
    examples, examples of differing shapes, NaN or infinity.
    """
    return checked(data).float()


def checked(data, name: str = "data") -> torch.Tensor:
    """As ``as_tensor``, same errors, but keeping the type of the floats; ``name`` is what errors call it."""
    mapped = data if isinstance(data, np.memmap) else None
    if isinstance(data, TensorData):
        data, mapped = data.x, data.mapped
    if isinstance(data, np.ndarray):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of arrays that are read-only: nothing here writes
            data = torch.from_numpy(np.ascontiguousarray(data))
    if not isinstance(data, torch.Tensor):
        data = _stack(data, name)
    if not data.is_floating_point():
        raise ValueError(f"{name} has type {data.dtype}; expected floats of about unit size, "
                         "for pictures x.float() / 255 * 2 - 1")
    if data.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(data.shape)}; expected rank 2 or more, (examples, ...)")
    if data.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(data.shape)} is empty")
    bad = sum(int((~torch.isfinite(block)).sum()) for block in _blocks(data, mapped))
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values; remove them first")
    return data.detach()


def release(array) -> None:
    """Give the memory of a large memory-mapped array back to the system, which reads it again where it is needed. Nothing
    is lost, and other arrays are left alone. Without it, every page ever touched would count as this process's."""
    if _large(array):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def _large(array) -> bool:
    mapping = getattr(array, "_mmap", None)
    return mapping is not None and len(mapping) > 1 << 26 and hasattr(mmap, "MADV_DONTNEED")


def portions(n: int, mapped):
    """Slices of n rows to be touched, in any order, of what may be a large mapped array, which is released after each: a
    system that maps the neighbours of every page it reads would hold a good part of the file after one batch."""
    size = 16 if _large(mapped) else max(1, n)
    for start in range(0, n, size):
        yield slice(start, start + size)
        release(mapped)


def _blocks(x: torch.Tensor, mapped):
    """The rows of x in blocks of 4 MB or so, released once used."""
    for block in x.split(max(1, (1 << 20) // max(1, x[0].numel()))):
        yield block
        release(mapped)


def _stack(data, name: str) -> torch.Tensor:
    if not isinstance(data, Dataset) or not hasattr(data, "__len__"):
        raise ValueError(f"{name} is a {type(data).__name__}; "
                         "expected a tensor (examples, ...) or a torch Dataset with a length")
    if len(data) == 0:
        raise ValueError(f"{name} is empty: the data set has length 0")
    items = (data[i] for i in range(len(data)))
    try:
        return torch.stack([torch.as_tensor(x[0] if isinstance(x, (tuple, list)) else x) for x in items])
    except (TypeError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"the examples of {name} do not make one tensor: {why}") from error


# ---- laws in the plane: (n, rng) -> points (n, 2) float64, component (n,) or None


def _eight_gaussians(n, rng):
    k = rng.integers(8, size=n)
    angle = k * (math.pi / 4)
    return math.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((n, 2)), k


def _checkerboard(n, rng):
    column, pair = rng.integers(4, size=n), rng.integers(2, size=n)
    row = 2 * pair + column % 2
    board = np.stack([column, row], 1) + rng.random((n, 2))  # on [0, 4]^2; uniform on [0, 4] has variance 4/3
    return (board - 2) * math.sqrt(3 / 4), None


def _two_moons(n, rng):
    k = rng.integers(2, size=n)
    t = math.pi * rng.random(n)
    x = np.where(k == 0, np.cos(t), 1 - np.cos(t))
    y = np.where(k == 0, np.sin(t), 0.5 - np.sin(t))
    noise = 0.05
    variance = np.array([0.75, 0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2]) + noise**2
    return (np.stack([x - 0.5, y - 0.25], 1) + noise * rng.standard_normal((n, 2))) / np.sqrt(variance), k


def _spiral(n, rng):
    k = rng.integers(2, size=n)
    end, noise = 3 * math.pi, 0.3
    theta = end * np.sqrt(rng.random(n))
    curve = ((1 - 2 * k) * theta)[:, None] * np.stack([np.cos(theta), np.sin(theta)], 1)
    variance = end**2 / 4 + np.array([0.75, -0.75]) + noise**2  # E[theta^2 cos^2], E[theta^2 sin^2]
    return (curve + noise * rng.standard_normal((n, 2))) / np.sqrt(variance), k


def _pinwheel(n, rng):
    k = rng.integers(5, size=n)
    radial, tangential = 1 + 0.3 * rng.standard_normal(n), 0.05 * rng.standard_normal(n)
    angle = 2 * math.pi / 5 * k + 0.25 * np.exp(radial)
    x = np.cos(angle) * radial - np.sin(angle) * tangential
    y = np.sin(angle) * radial + np.cos(angle) * tangential
    return np.stack([x, y], 1) / math.sqrt((1 + 0.3**2 + 0.05**2) / 2), k  # by five-fold symmetry


_PLANE = {"eight_gaussians": _eight_gaussians, "checkerboard": _checkerboard, "two_moons": _two_moons,
          "spiral": _spiral, "pinwheel": _pinwheel}


# ---- images: (split, root) -> images (B, H, W) or (B, H, W, 3) counting from 0, labels (B,)


def _digits(split, root):
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))  # the file has a rhythm of 10
    chosen = np.sort(order[:360] if split == "test" else order[360:])
    return digits.images[chosen].astype(np.float32), digits.target[chosen]


def _vendored(name, split):
    file = ASSETS / f"{name}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; reinstall the package")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != VENDORED[name]:
        raise ValueError(f"{file} is damaged: its sha256 is wrong; reinstall the package")
    with np.load(io.BytesIO(content)) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _fashion_mnist_full(split, root):
    folder = _full_folder(root)
    prefix = "train" if split == "train" else "t10k"
    images = np.frombuffer(_read_idx(folder, f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(_read_idx(folder, f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def _full_folder(root) -> Path:
    if root is not None:
        return Path(root)
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    options = ("give root=FOLDER with the four idx or idx.gz files, install Debian's package "
               "dataset-fashion-mnist, or install torchvision to download them")
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError:
        raise FileNotFoundError(f"the full Fashion-MNIST is not on this machine; {options}") from None
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
        raise FileNotFoundError(f"{folder} has no {name} or {name}.gz; expected the four Fashion-MNIST files")
    if hashlib.sha256(content).hexdigest() != FASHION_FULL[name]:
        raise ValueError(f"{file} is damaged or not Fashion-MNIST: the sha256 of its contents is wrong")
    return content


_IMAGES = {"digits": _digits, "fashion_mnist_full": _fashion_mnist_full,
           **{name: lambda split, root, name=name: _vendored(name, split) for name in VENDORED}}
