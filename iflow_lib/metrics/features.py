"""Features of images, which the distances between sets of images compare."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor, nn

from ..data import checked, load
from ..data.images import ASSETS
from ..io import read_checked
from ..utils import check_int

#: The two classifiers that come with the package -> the stem of the files of its weights, and the
#: file and sha256 of its features of the 10,000 official test images.
CLASSIFIERS = {
    "first": (
        "classifier",
        "fashion_test.safetensors",
        "f10079d1c2d2f7b23942a2237993bd3caa8d676df249c36e2bc60b78653ef64f",
    ),
    "second": (
        "classifier_second",
        "fashion_test_second.safetensors",
        "3863608c3e737852011fc5dc7e93614e1fc87ca1ff0b5d42829dbc86150ad269",
    ),
}


class FashionFeatures(nn.Module):
    """A classifier of Fashion-MNIST whose features are compared.

    A distance in one set of features can be small by accident. So there are two, made differently,
    and no model is trained on either:

    - "first": three convolutions with pooling between them and a linear layer, trained on 50,000
      images.
    - "second": patches, residual blocks, and a mean over all places, trained with another seed on
      25,000 images that were shifted and mirrored.

    Both have 64 features and a standardization, so that each feature has mean 0 and variance 1 on
    its training images; ``logits`` adds a ReLU and the last layer. Values outside [-1, 1] are
    clamped, as they would be when a picture is stored, but not rounded to 256 levels.

    Args:
        pretrained: Whether to load the weights that come with the package. False leaves them
            random, to train them as ``experiments/make_assets.py`` does.
        which: "first" or "second".

    Raises:
        FileNotFoundError: If the shipped weights are missing.
        ValueError: If there is no such classifier, or the weights fail their checksum.
    """

    num_features = 64

    def __init__(self, pretrained: bool = True, which: str = "first") -> None:
        super().__init__()
        _check_classifier(which)
        body = _first_body if which == "first" else _second_body
        # the standardization is before the ReLU of the last layer: no feature can die
        self.body = nn.Sequential(
            *body(self.num_features), nn.BatchNorm1d(self.num_features, affine=False)
        )
        self.head = nn.Linear(self.num_features, 10)
        if pretrained:
            self.load_state_dict(_classifier_weights(CLASSIFIERS[which][0]))
            self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features.

        Args:
            x: Images (B, 1, 28, 28) in [-1, 1].

        Returns:
            Features (B, 64).

        Raises:
            ValueError: For images of another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"images have shape {tuple(x.shape)}; the classifier takes (n, 1, 28, 28) "
                "in [-1, 1]; give features= for others"
            )
        return self.body(x.clamp(-1, 1))

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits (B, 10) of the classes of images (B, 1, 28, 28)."""
        return self.head(self(x).relu())


def _first_body(features: int) -> list[nn.Module]:
    return [
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 3 * 3, features),
    ]


def _second_body(features: int) -> list[nn.Module]:
    return [
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        _Residual(32),
        _Residual(32),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        _Residual(64),
        _Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, features),
    ]


class _Residual(nn.Module):
    """Adds what a convolution of each channel and two layers across channels find."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def _check_classifier(which: str) -> None:
    if which not in CLASSIFIERS:
        raise ValueError(
            f"there is no classifier {which!r}: expected one of {', '.join(CLASSIFIERS)}"
        )


@torch.no_grad()
def embed(x: Any, features: nn.Module | None = None, batch_size: int = 500) -> Tensor:
    """Compute the features of images, in batches on the CPU, in evaluation mode.

    Points (n, d) are taken as features already where no ``features`` are given. So a set that is
    compared often needs its features only once: ``r = embed(real)``, then
    ``frechet_distance(samples, r)``.

    Args:
        x: Images (n, C, H, W) in [-1, 1], or points (n, d).
        features: A module from images (B, ...) to features (B, d); None takes the shipped
            classifier.
        batch_size: Images in one call.

    Returns:
        Features (n, d), float64.

    Raises:
        ValueError: For whole numbers, NaN, an empty set, or images that the module does not take.
    """
    x = checked(x, "images").cpu()
    if features is None:
        if x.ndim == 2:
            return x.double()
        features = shipped_classifier()
    training = features.training
    features.eval()
    try:
        batches = x.split(check_int("batch_size", batch_size))
        found = torch.cat([features(batch.float()) for batch in batches]).double()
    finally:
        features.train(training)
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(
            f"features returned shape {tuple(found.shape)} for {len(x)} images; expected (n, d)"
        )
    return checked(found, "features of the images")


def embed_both(x: Any, y: Any, features: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Compute the features of two sets that are to be compared.

    Args:
        x: Images (n, ...) or points (n, d), for ``embed``.
        y: Images (m, ...) or points (m, d).
        features: The module, for ``embed``.

    Returns:
        Features (n, d) and (m, d), float64.

    Raises:
        ValueError: As ``embed``, and if the numbers of features differ.
    """
    x, y = embed(x, features), embed(y, features)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features and y has {y.shape[1]}; they must agree")
    return x, y


def fashion_reference(n: int = 2000, which: str = "first") -> Tensor:
    """Return the features of Fashion-MNIST's test images, which samples are compared with.

    They are made once and shared: do not change them in place.

    Args:
        n: 2,000 for the test images that come with the package, or 10,000 for all official ones,
            whose features (not the images) come with it as float16.
        which: The classifier, as in ``FashionFeatures``.

    Returns:
        Features (n, 64), float64.

    Raises:
        ValueError: For another ``n`` or classifier, or a damaged file.
        FileNotFoundError: If a file is missing.
    """
    _check_classifier(which)
    if n not in (2000, 10_000):
        raise ValueError(
            f"there are features of 2,000 or of 10,000 test images, {n} were asked for"
        )
    return fashion_features("test", which) if n == 2000 else all_test_features(which)


@functools.lru_cache(maxsize=4)
def fashion_features(split: str, which: str = "first") -> Tensor:
    """Return the features (n, 64) of the Fashion-MNIST images of the package, made once.

    Args:
        split: "train" for 10,000 images, which no classifier was trained on, or "test" for 2,000.
        which: The classifier, as in ``FashionFeatures``.

    Returns:
        The features, float64; do not change them in place.
    """
    return embed(load("fashion_mnist", split=split), shipped_classifier(which))


@functools.lru_cache(maxsize=2)
def all_test_features(which: str = "first") -> Tensor:
    """Read the features (10,000, 64) of all official test images. which: the classifier."""
    from safetensors.torch import load as from_bytes

    _, name, digest = CLASSIFIERS[which]
    return from_bytes(read_checked(ASSETS / name, digest))["features"].double()


@functools.lru_cache(maxsize=2)
def shipped_classifier(which: str = "first") -> FashionFeatures:
    """Load a classifier that comes with the package, once. which: as in ``FashionFeatures``."""
    return FashionFeatures(which=which)


def _classifier_weights(stem: str) -> dict[str, Tensor]:
    from safetensors.torch import load as from_bytes

    card = ASSETS / f"{stem}.json"
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing; reinstall the package")
    try:
        digest = json.loads(card.read_text())["sha256"].lower()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{card} is damaged: {error!r}; reinstall the package") from error
    return from_bytes(read_checked(ASSETS / f"{stem}.safetensors", digest))
