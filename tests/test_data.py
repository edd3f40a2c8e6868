"""Data sets follow their stated laws, and damaged or wrong data are refused with one line."""

import gzip
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from iflow_lib import data
from iflow_lib.data import DATASETS, PLANE, TensorData, as_tensor, load


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("name", PLANE)
def test_plane_has_mean_0_and_variance_1(name):
    x = load(name).x
    assert x.shape == (100_000, 2) and x.dtype == torch.float32
    # 5 standard errors of a mean and of a variance; fourth moments here are at most 3.1
    assert x.mean(0).abs().max() < 5 / 100_000**0.5
    expected = 1.01 if name == "eight_gaussians" else 1.0
    assert (x.double().var(0) - expected).abs().max() < 5 * (3.1 / 100_000) ** 0.5


def test_eight_gaussians_modes():
    d = load("eight_gaussians", n=40_000, seed=3)
    assert d.labels.dtype == torch.int64
    counts = torch.bincount(d.labels, minlength=8)
    assert (counts - 5000).abs().max() < 5 * (40_000 * 7 / 64) ** 0.5
    for k in range(8):
        mode = d.x[d.labels == k]
        angle = torch.tensor(k * torch.pi / 4)
        assert (mode.mean(0) - 2**0.5 * torch.stack([angle.cos(), angle.sin()])).abs().max() < 0.008
        assert (mode.std(0) - 0.1).abs().max() < 0.006


def test_checkerboard_squares():
    cell = (load("checkerboard", n=16_000).x / (3 / 4) ** 0.5 + 2).clamp(0, 3.9999).long()
    assert bool(((cell[:, 0] + cell[:, 1]) % 2 == 0).all())
    counts = torch.bincount(cell[:, 0] * 4 + cell[:, 1], minlength=16)
    assert int((counts > 0).sum()) == 8 and (counts[counts > 0] - 2000).abs().max() < 220


@pytest.mark.parametrize("name", PLANE)
def test_seed_and_split_make_the_draw(name):
    first, again = load(name, n=500, seed=1), load(name, n=500, seed=1)
    assert torch.equal(first.x, again.x) and first.sha256 == again.sha256
    other = [load(name, n=500, seed=2), load(name, n=500, split="test", seed=1)]
    for d in other:
        assert d.sha256 != first.sha256
        # independent draws share no point and are uncorrelated, point by point
        assert not {tuple(p) for p in first.x.tolist()} & {tuple(p) for p in d.x.tolist()}
        assert abs(np.corrcoef(first.x[:, 0], d.x[:, 0])[0, 1]) < 5 / 500**0.5


def test_draw_leaves_the_global_generators_alone():
    torch.manual_seed(0), np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    load("pinwheel", n=10), load("fashion_mnist", n=10)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    "name, train, test, side",
    [("digits", 1437, 360, 8), ("fashion_mnist", 10_000, 2000, 28), ("emoji", 3400, 386, 32)],
)
def test_images(name, train, test, side):
    sets = [load(name), load(name, split="test")]
    for d, size in zip(sets, (train, test), strict=True):
        assert (
            d.x.shape == (size, 3 if name == "emoji" else 1, side, side)
            and d.x.dtype == torch.float32
        )
        assert d.x.min() == -1 and d.x.max() == 1 and d.labels.unique().tolist() == list(range(10))
        image, label = d[7]
        assert len(d) == size and torch.equal(image, d.x[7]) and label == d.labels[7]
    rows = [{row.tobytes() for row in d.x.numpy()} for d in sets]
    assert (
        len(rows[0] & rows[1]) <= 1
    )  # the splits are disjoint (the official files share a picture or two)


def test_fashion_mnist_is_balanced_and_chosen_by_seed():
    assert load("fashion_mnist").labels.bincount().tolist() == [1000] * 10
    assert load("fashion_mnist", split="test").labels.bincount().tolist() == [200] * 10
    few, again, other = (load("fashion_mnist", n=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(few.x, again.x) and torch.equal(few.labels, again.labels)
    assert not torch.equal(few.x, other.x)
    assert len({row.tobytes() for row in few.x.numpy()}) == 50  # without replacement


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"name": "mnist"}, "fashion_mnist"),
        ({"name": "spiral", "split": "valid"}, "train or test"),
        ({"name": "spiral", "n": 0}, "at least 1"),
        ({"name": "spiral", "n": 2.5}, "whole number"),
        ({"name": "spiral", "seed": -1}, "at least 0"),
        ({"name": "spiral", "root": "x"}, "fashion_mnist_full"),
        ({"name": "digits", "n": 1438}, "1437"),
        ({"name": "fashion_mnist", "split": "test", "n": 2001}, "2000"),
    ],
)
def test_load_refuses(arguments, word):
    with pytest.raises(ValueError) as error:
        load(**arguments)
    assert word in one_line(error)


@pytest.mark.parametrize("name, size", [("fashion_mnist", 2000), ("emoji", 386)])
def test_damaged_or_missing_subset(name, size, tmp_path, monkeypatch):
    good = data.ASSETS / f"{name}.npz"
    monkeypatch.setattr(data, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert f"{name}.npz is missing" in one_line(error)
    copy = tmp_path / f"{name}.npz"
    shutil.copy(good, copy)
    assert len(load(name, split="test")) == size
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    copy.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(name)
    assert "damaged" in one_line(error) and "sha256" in one_line(error)


def write_full(folder, monkeypatch, packed: bool):
    """A tiny stand-in for the official files, with its own checksums."""
    digests = {}
    for prefix, n in (("train", 6), ("t10k", 4)):
        images = np.arange(n * 784, dtype=np.uint8).tobytes()
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", bytes(16) + images),
            (f"{prefix}-labels-idx1-ubyte", bytes(8) + bytes(range(n))),
        ):
            (folder / (name + ".gz" * packed)).write_bytes(
                gzip.compress(content) if packed else content
            )
            digests[name] = data.hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "FASHION_FULL", digests)


@pytest.mark.parametrize("packed", [False, True])
def test_full_set_from_a_folder(tmp_path, monkeypatch, packed):
    with pytest.raises(FileNotFoundError) as error:
        load("fashion_mnist_full", root=tmp_path)
    assert "train-images-idx3-ubyte" in one_line(error)
    write_full(tmp_path, monkeypatch, packed)
    d = load("fashion_mnist_full", root=tmp_path, split="test")
    assert d.x.shape == (4, 1, 28, 28) and d.labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(d.x[0].flatten()[:256], torch.arange(256) / 255 * 2 - 1)
    file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    file.write_bytes(file.read_bytes()[:-3])  # cut short
    with pytest.raises(ValueError) as error:
        load("fashion_mnist_full", root=tmp_path)
    assert "damaged" in one_line(error) and file.name in one_line(error)


def test_full_set_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(data.Path, "home", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # not installed
    with pytest.raises(FileNotFoundError) as error:
        load("fashion_mnist_full")
    assert all(
        word in one_line(error) for word in ("root=", "dataset-fashion-mnist", "torchvision")
    )

    def offline(root, download):
        raise RuntimeError("Error downloading train-images\nlong story")

    monkeypatch.setitem(
        sys.modules, "torchvision.datasets", types.SimpleNamespace(FashionMNIST=offline)
    )
    with pytest.raises(OSError) as error:
        load("fashion_mnist_full")
    assert "Error downloading" in one_line(error)

    def online(root, download):
        (root / "FashionMNIST" / "raw").mkdir(parents=True)
        write_full(root / "FashionMNIST" / "raw", monkeypatch, packed=False)

    monkeypatch.setitem(
        sys.modules, "torchvision.datasets", types.SimpleNamespace(FashionMNIST=online)
    )
    assert len(load("fashion_mnist_full")) == 6


@pytest.mark.skipif(
    not data.DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_subset_is_part_of_the_official_test_set():
    full, part = load("fashion_mnist_full", split="test"), load("fashion_mnist", split="test")
    assert len(full) == 10_000
    label_of = {
        row.tobytes(): int(label) for row, label in zip(full.x.numpy(), full.labels, strict=True)
    }
    assert [label_of[row.tobytes()] for row in part.x.numpy()] == part.labels.tolist()


def test_as_tensor_takes_tensors_arrays_and_datasets():
    x = torch.randn(5, 2, dtype=torch.float64)
    labels = torch.arange(5)
    for given in (
        x,
        x.numpy(),
        x.clone().requires_grad_(),
        TensorData(x.float()),
        TensorData(x.float(), labels),
        TensorDataset(x),
        TensorDataset(x, labels),
        Plain(x),
    ):
        found = as_tensor(given)
        assert (
            found.dtype == torch.float32
            and not found.requires_grad
            and torch.equal(found, x.float())
        )


class Plain(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize(
    "given, word",
    [
        (torch.zeros(3, 2, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 2, dtype=torch.complex64), "complex64"),
        (torch.tensor([[0.0, float("nan")], [float("inf"), 0.0]]), "2 NaN or infinite"),
        (torch.zeros(3), "shape (3,)"),
        (torch.zeros(()), "shape ()"),
        (torch.zeros(0, 2), "empty"),
        (Plain([]), "empty"),
        ([[1.0, 2.0]], "list"),
        ("spiral", "str"),
        (Plain([torch.zeros(2), torch.zeros(3)]), "one tensor"),
        (Plain(["a", "b"]), "one tensor"),
        (TensorDataset(torch.zeros(3, 2, dtype=torch.int64)), "int64"),
    ],
)
def test_as_tensor_refuses(given, word):
    with pytest.raises(ValueError) as error:
        as_tensor(given)
    assert word in one_line(error)


def test_names_are_complete():
    assert set(DATASETS) == set(data._PLANE) | set(data._IMAGES)
    with pytest.raises(ValueError):
        TensorData(torch.zeros(3, 2), torch.zeros(2))
