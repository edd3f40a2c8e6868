"""The FID of the literature, on Inception features."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from ..data import checked
from .distances import frechet_distance

#: Of torch-fidelity's Inception weights: the file's name holds this start of it.
INCEPTION_SHA256 = "6726825d"


def inception_fid(x, y, weights=None) -> float:
    """The FID of the literature: Frechet distance on the 2,048 Inception features, as torch-fidelity computes them.

    x: samples (n, C, H, W) in [-1, 1], C 1 or 3; y: data; more than 2,048 of each. weights: path of torch-fidelity's
    ``weights-inception-2015-12-05-6726825d.pth``, by default looked for in, else downloaded to, torch's hub folder.
    Raises ImportError without torch-fidelity, FileNotFoundError if the weights can neither be found nor downloaded,
    ValueError if they fail their checksum.
    """
    network = _inception(weights)
    return frechet_distance(_inception_features(network, x), _inception_features(network, y))


def _inception(weights=None):
    """torch-fidelity's network. Its weights are a pickle, so it is given a copy of what loads without running code."""
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
def _inception_features(network, images) -> Tensor:
    """(n, C, H, W) in [-1, 1] -> (n, 2048), by way of whole bytes, as the FID is defined."""
    images = checked(images, "images").clamp(-1, 1)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return torch.cat([network(batch)[0] for batch in pixels.split(50)]).double()
