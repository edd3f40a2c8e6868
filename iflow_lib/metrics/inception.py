"""The FID of the literature, on Inception features."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import checked
from .distances import frechet_distance

#: How the sha256 of torch-fidelity's Inception weights starts; the file's name holds it too.
INCEPTION_SHA256 = "6726825d"


def inception_fid(x: Any, y: Any, weights: str | os.PathLike[str] | None = None) -> float:
    """Compute the FID of the literature, as torch-fidelity computes its features.

    It is the ``frechet_distance`` on 2,048 Inception features (Heusel et al. 2017, arXiv
    1706.08500).

    Args:
        x: Samples (n, C, H, W) in [-1, 1], C 1 or 3, more than 2,048.
        y: Data (m, C, H, W), more than 2,048.
        weights: Path of torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``. None looks
            for it in torch's hub folder, and downloads it there.

    Returns:
        The distance.

    Raises:
        ImportError: Without torch-fidelity.
        FileNotFoundError: If the weights can neither be found nor downloaded.
        ValueError: If the weights fail their checksum, or there are too few images.
    """
    network = inception_network(weights)
    return frechet_distance(inception_features(network, x), inception_features(network, y))


def inception_network(weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Load torch-fidelity's Inception network.

    Its weights are a pickle. The network is given a copy of what loads without running code.

    ``weights`` and the errors are those of ``inception_fid``; the network goes from uint8 images
    (B, 3, H, W) to a tuple of features.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise ImportError(
            "the Inception FID needs torch-fidelity: pip install 'iflow-lib[fid]'"
        ) from error
    name = URL_INCEPTION_V3.rsplit("/", 1)[1]
    file = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file() and weights is None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                URL_INCEPTION_V3, str(file), hash_prefix=INCEPTION_SHA256, progress=False
            )
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"the Inception weights could not be downloaded ({error}): put {name} from "
                f"{URL_INCEPTION_V3} at {file}"
            ) from error
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {file}: put {name} from {URL_INCEPTION_V3} there"
        )
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(INCEPTION_SHA256):
        raise ValueError(
            f"{file} is damaged: its sha256 does not start with {INCEPTION_SHA256}; download {name} again"
        )
    copy = io.BytesIO()
    torch.save(torch.load(file, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copy)


@torch.no_grad()
def inception_features(network: nn.Module, images: Any) -> Tensor:
    """Compute the 2,048 features of images, by way of whole bytes, as the FID is defined.

    Args:
        network: What ``inception_network`` returned.
        images: Images (n, C, H, W) in [-1, 1], C 1 or 3.

    Returns:
        Features (n, 2048), float64.

    Raises:
        ValueError: For images of another shape, whole numbers, or NaN.
    """
    images = checked(images, "images").clamp(-1, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"need images (n, 1 or 3, H, W), got shape {tuple(images.shape)}")
    pixels = ((images.expand(-1, 3, -1, -1) + 1) * 127.5).round().to(torch.uint8)
    return torch.cat([network(batch)[0] for batch in pixels.split(50)]).double()
