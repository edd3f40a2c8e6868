"""The features of images that distances compare."""

from __future__ import annotations

import functools
import json

import torch
from torch import Tensor, nn

from ..data import ASSETS, checked, load

TEST_SHA256 = "f10079d1c2d2f7b23942a2237993bd3caa8d676df249c36e2bc60b78653ef64f"  # of fashion_test.safetensors


class FashionFeatures(nn.Module):
    """The classifier whose features are compared: images (B, 1, 28, 28) in [-1, 1] to (B, 64) features.

    Three convolutions, a linear layer to 64 and a standardisation, so that each feature has mean 0 and
    variance 1 on its training images; ``logits`` adds a ReLU and the last layer. Values outside [-1, 1] are
    clamped, as they would be when a picture is stored, but not rounded to 256 levels. ``pretrained=False``
    leaves the weights random (to train it: tools/make_assets.py).

    Raises FileNotFoundError or ValueError if the shipped weights are missing or fail their checksum, and
    ValueError for inputs of another shape.
    """

    num_features = 64

    def __init__(self, pretrained: bool = True):
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
        if x.ndim != 4 or x.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"images have shape {tuple(x.shape)}; the classifier takes (n, 1, 28, 28) "
                "in [-1, 1]; give features= for others"
            )
        return self.body(x.clamp(-1, 1))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self(x).relu())


def _classifier_weights() -> dict[str, Tensor]:
    from safetensors.torch import load as from_bytes

    from ..io import read_checked

    card = ASSETS / "classifier.json"
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing; reinstall the package")
    try:
        digest = json.loads(card.read_text())["sha256"].lower()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{card} is damaged: {error!r}; reinstall the package") from error
    return from_bytes(read_checked(ASSETS / "classifier.safetensors", digest))


@functools.lru_cache(maxsize=1)
def _shipped() -> FashionFeatures:
    return FashionFeatures()


@torch.no_grad()
def embed(x, features: nn.Module | None = None, batch_size: int = 500) -> Tensor:
    """Features (n, d) in float64 of x, in batches, with ``features`` in evaluation mode, on the CPU.

    features=None: the shipped classifier for images, while points (n, d) are taken as features already. So a
    set that is compared often needs its features only once: ``r = embed(real)``, ``frechet_distance(samples,
    r)``. Raises ValueError for whole numbers, NaN, empty sets, or images that the classifier does not take.
    """
    x = checked(x, "images").cpu()
    if features is None:
        if x.ndim == 2:
            return x.double()
        features = _shipped()
    training = features.training
    features.eval()
    try:
        found = torch.cat([features(batch.float()) for batch in x.split(batch_size)]).double()
    finally:
        features.train(training)
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(
            f"features returned shape {tuple(found.shape)} for {len(x)} images; expected (n, d)"
        )
    return checked(found, "features of the images")


def fashion_reference(n: int = 2000) -> Tensor:
    """Features (n, 64) of test images, made once: what samples are compared with. Do not change it.

    n: 2,000, the vendored test images; or 10,000, all official ones, whose features (not the images) come with the
    package as float16. Raises ValueError for another n or a damaged file, FileNotFoundError for a missing one.
    """
    if n not in (2000, 10_000):
        raise ValueError(
            f"there are features of 2,000 or of 10,000 test images, {n} were asked for"
        )
    return _fashion_features("test") if n == 2000 else _all_test_features()


@functools.lru_cache(maxsize=1)
def _all_test_features() -> Tensor:
    from safetensors.torch import load as from_bytes

    from ..io import read_checked

    return from_bytes(read_checked(ASSETS / "fashion_test.safetensors", TEST_SHA256))[
        "features"
    ].double()


@functools.lru_cache(maxsize=2)
def _fashion_features(split: str) -> Tensor:
    return embed(load("fashion_mnist", split=split))


def _two_embedded(x, y, features) -> tuple[Tensor, Tensor]:
    x, y = embed(x, features), embed(y, features)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features and y has {y.shape[1]}; they must agree")
    return x, y
