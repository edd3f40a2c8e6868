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

#: sha256 of fashion_test.safetensors, the features of the 10,000 official test images.
TEST_SHA256 = "f10079d1c2d2f7b23942a2237993bd3caa8d676df249c36e2bc60b78653ef64f"


class FashionFeatures(nn.Module):
    """The classifier of Fashion-MNIST whose features are compared.

    It has three convolutions, a linear layer to 64 features, and a standardization, so that each
    feature has mean 0 and variance 1 on its training images; ``logits`` adds a ReLU and the last
    layer. Values outside [-1, 1] are clamped, as they would be when a picture is stored, but not
    rounded to 256 levels.

    Args:
        pretrained: Whether to load the weights that come with the package. False leaves them
            random, to train them as ``experiments/make_assets.py`` does.

    Raises:
        FileNotFoundError: If the shipped weights are missing.
        ValueError: If the shipped weights fail their checksum.
    """

    num_features = 64

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
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
            nn.Linear(64 * 3 * 3, self.num_features),
            nn.BatchNorm1d(self.num_features, affine=False),  # before the ReLU: no feature can die
        )
        self.head = nn.Linear(self.num_features, 10)
        if pretrained:
            self.load_state_dict(_classifier_weights())
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
        features = _shipped_classifier()
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


def fashion_reference(n: int = 2000) -> Tensor:
    """Return the features of Fashion-MNIST's test images, which samples are compared with.

    They are made once and shared: do not change them in place.

    Args:
        n: 2,000 for the test images that come with the package, or 10,000 for all official ones,
            whose features (not the images) come with it as float16.

    Returns:
        Features (n, 64), float64.

    Raises:
        ValueError: For another ``n``, or a damaged file.
        FileNotFoundError: If a file is missing.
    """
    if n not in (2000, 10_000):
        raise ValueError(
            f"there are features of 2,000 or of 10,000 test images, {n} were asked for"
        )
    return fashion_features("test") if n == 2000 else all_test_features()


@functools.lru_cache(maxsize=2)
def fashion_features(split: str) -> Tensor:
    """Return the features (n, 64) of the Fashion-MNIST images of the package, made once.

    Args:
        split: "train" for 10,000 images, which the classifier was not trained on, or "test" for
            2,000.

    Returns:
        The features, float64; do not change them in place.
    """
    return embed(load("fashion_mnist", split=split))


@functools.lru_cache(maxsize=1)
def all_test_features() -> Tensor:
    """Read the features (10,000, 64) of all official test images."""
    from safetensors.torch import load as from_bytes

    content = read_checked(ASSETS / "fashion_test.safetensors", TEST_SHA256)
    return from_bytes(content)["features"].double()


@functools.lru_cache(maxsize=1)
def _shipped_classifier() -> FashionFeatures:
    return FashionFeatures()


def _classifier_weights() -> dict[str, Tensor]:
    from safetensors.torch import load as from_bytes

    card = ASSETS / "classifier.json"
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing; reinstall the package")
    try:
        digest = json.loads(card.read_text())["sha256"].lower()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{card} is damaged: {error!r}; reinstall the package") from error
    return from_bytes(read_checked(ASSETS / "classifier.safetensors", digest))
