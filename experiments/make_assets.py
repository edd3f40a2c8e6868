"""Make the files in ``iflow_lib/assets`` again: the Fashion-MNIST subset, the feature classifier, the emoji.

    python -m experiments.make_assets subset [--root FOLDER]        15 s; prints the sha256 for data.images.VENDORED
    python -m experiments.make_assets classifier [--root FOLDER]    3 minutes on one CPU core; second-classifier: 6
    python -m experiments.make_assets features [--root FOLDER]      10 s; prints the sha256 for metrics.features.CLASSIFIERS;
                                                                    second-features: of the second classifier
    python -m experiments.make_assets emoji --root FOLDER           5 s; prints the sha256 for data.images.VENDORED

``--root`` is a folder with the four idx or idx.gz files of the full set (see ``iflow_lib.data.load``); for the emoji, the
unpacked package of ``npm pack emoji-datasource-google@16.0.0``.
Both are deterministic on one machine; another processor or torch version gives a slightly different
classifier.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from experiments.common import ROOT
from iflow_lib import data, metrics
from iflow_lib.io import sha256, write_atomic
from iflow_lib.metrics.features import CLASSIFIERS, shipped_classifier

ASSETS = ROOT / "iflow_lib" / "assets"
#: Of each classifier, for its card.
ARCHITECTURE = {
    "first": "conv 1-24-48-64 (3x3, ReLU, max-pool 2), linear 64, standardised; ReLU, linear 10",
    "second": (
        "conv 1-32 (4x4, stride 2), 2 residual blocks, conv 32-64 (3x3, stride 2), 2 residual blocks, mean over places, "
        "linear 64, standardised; ReLU, linear 10; a block: depthwise conv 3x3, group norm, conv 1x1 to twice the width, "
        "GELU, conv 1x1 back"
    ),
}


def chosen_images(labels: np.ndarray, split: str) -> np.ndarray:
    """Which images of an official split are vendored: 1,000 (test: 200) a class at random, in file order."""
    per_class, rng = (
        (1000, np.random.default_rng(0)) if split == "train" else (200, np.random.default_rng(1))
    )
    classes = [rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)]
    return np.sort(np.concatenate(classes))


def make_subset(root=None) -> str:
    """Write ``fashion_mnist.npz``: 1,000 train and 200 test images a class. Returns its sha256."""
    arrays = {}
    for split in data.SPLITS:
        full = data.load("fashion_mnist_full", split=split, root=root)
        images = ((full.x[:, 0] + 1) * 127.5).round().byte().numpy()
        labels = full.labels.byte().numpy()
        chosen = chosen_images(labels, split)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    file = ASSETS / "fashion_mnist.npz"
    np.savez_compressed(file, **arrays)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make_classifier(
    root=None, which: str = "first", epochs: int = 5, batch_size: int = 128, lr: float = 3e-3
) -> dict:
    """Train ``FashionFeatures`` on official training images that are not vendored; write it with its card.

    So it has seen neither the images that models are trained on here nor those that they are judged by. There are 50,000, and
    the second classifier is trained on half of them, which are shifted by up to two pixels.
    """
    seed = ("first", "second").index(which)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    full = data.load("fashion_mnist_full", root=root)
    keep = torch.ones(len(full), dtype=torch.bool)
    keep[chosen_images(full.labels.numpy(), "train")] = False
    x, labels = full.x[keep], full.labels[keep]
    said = "the 50,000 official training images that are not in fashion_mnist.npz"
    if which == "second":
        half = torch.randperm(len(x))[: len(x) // 2]
        x, labels = x[half], labels[half]
        said = f"{len(x):,} of {said}, shifted by up to two pixels and mirrored"
    model = metrics.FashionFeatures(pretrained=False, which=which).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(x)).split(batch_size)[: len(x) // batch_size]:
            batch = x[index]
            if torch.rand(()) < 0.5:
                batch = batch.flip(-1)
            if which == "second":
                batch = batch.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(-2, -1))
            loss = torch.nn.functional.cross_entropy(model.logits(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        done = time.perf_counter() - start
        print(
            f"epoch {epoch + 1} of {epochs}: loss {total * epochs / steps:.4f}, {done:.0f} s",
            flush=True,
        )
    seconds = time.perf_counter() - start
    model.eval()
    full_test = data.load("fashion_mnist_full", split="test", root=root)
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    card = {
        "what": "Fashion-MNIST classifier for iflow_lib.metrics.FashionFeatures",
        "architecture": ARCHITECTURE[which],
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": said,
        "trained_on_sha256": data.TensorData(x).sha256,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "accuracy_vendored_test_2000": accuracy(model, data.load("fashion_mnist", split="test")),
        "accuracy_official_test_10000": accuracy(model, full_test),
        "accuracy_vendored_train_10000": accuracy(model, data.load("fashion_mnist")),
        "seconds": round(seconds, 1),
        "hardware": "cpu, 1 thread",
        "torch": torch.__version__,
        "sha256": sha256(weights),
    }
    stem = CLASSIFIERS[which][0]
    write_atomic(ASSETS / f"{stem}.safetensors", weights)
    write_atomic(ASSETS / f"{stem}.json", json.dumps(card, indent=2) + "\n")
    return card


def make_features(root=None, which: str = "first") -> str:
    """Write ``fashion_test.safetensors``: a classifier's features of all 10,000 official test images, as float16 (the
    distances do not change in the digits that are shown), for measurements with 10,000 samples. Returns its sha256."""
    images = data.load("fashion_mnist_full", split="test", root=root)
    content = save({"features": metrics.embed(images, shipped_classifier(which)).half()})
    write_atomic(ASSETS / CLASSIFIERS[which][1], content)
    return sha256(content)


def make_emoji(root) -> str:
    """Write ``emoji.npz``: every emoji and its skin tones on white, 64x64 averaged to 32x32, with their categories, one
    base emoji in ten for testing, its skin tones with it. Returns the file's sha256."""
    from PIL import Image

    folder = Path(root)
    listed = [e for e in json.loads((folder / "emoji.json").read_text()) if e["has_img_google"]]
    kinds = sorted({e["category"] for e in listed})
    listed.sort(key=lambda e: e["unified"])
    test = set(np.random.default_rng(0).permutation(len(listed))[: len(listed) // 10].tolist())
    arrays = {f"{split}_{what}": [] for split in data.SPLITS for what in ("images", "labels")}
    for i, base in enumerate(listed):
        split = "test" if i in test else "train"
        for one in (base, *base.get("skin_variations", {}).values()):
            if one["has_img_google"]:
                picture = Image.open(folder / "img" / "google" / "64" / one["image"]).convert(
                    "RGBA"
                )
                white = Image.alpha_composite(
                    Image.new("RGBA", picture.size, "white"), picture
                ).convert("RGB")
                arrays[f"{split}_images"].append(
                    np.asarray(white.resize((32, 32), Image.Resampling.BOX))
                )
                arrays[f"{split}_labels"].append(kinds.index(base["category"]))
    file = ASSETS / "emoji.npz"
    np.savez_compressed(
        file, **{name: np.array(value, dtype=np.uint8) for name, value in arrays.items()}
    )
    print({name: len(value) for name, value in arrays.items()}, kinds)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@torch.no_grad()
def accuracy(model, test) -> float:
    found = torch.cat([model.logits(batch).argmax(1) for batch in test.x.split(500)])
    return (found == test.labels).double().mean().item()


def main(arguments=None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    make = {
        "subset": make_subset,
        "classifier": make_classifier,
        "second-classifier": partial(make_classifier, which="second", epochs=8),
        "features": make_features,
        "second-features": partial(make_features, which="second"),
        "emoji": make_emoji,
    }
    options.add_argument("what", choices=make)
    options.add_argument(
        "--root",
        help="folder with the four files of the full Fashion-MNIST, or the emoji's package",
    )
    given = options.parse_args(arguments)
    print(json.dumps(make[given.what](given.root), indent=2))


if __name__ == "__main__":
    main()
