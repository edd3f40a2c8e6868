"""How far samples are from data, and how good a model's jumps are."""

from .distances import Floor, frechet_distance, interval, kernel_distance, real_floor, real_pairs
from .features import FashionFeatures, embed, fashion_reference, shipped_classifier
from .flow import (
    AnchorVariance,
    anchor_variance,
    exact_samples,
    jump_error,
    rms_distance,
    straightness,
)
from .inception import inception_fid
from .support import Support, off_support
from .transport import sliced_w2, w2
from .two_sample import Copies, Coverage, c2st, copies, energy_distance, mmd, precision_recall

__all__ = [
    "AnchorVariance",
    "Copies",
    "Coverage",
    "FashionFeatures",
    "Floor",
    "Support",
    "anchor_variance",
    "c2st",
    "copies",
    "embed",
    "energy_distance",
    "exact_samples",
    "fashion_reference",
    "frechet_distance",
    "inception_fid",
    "interval",
    "jump_error",
    "kernel_distance",
    "mmd",
    "off_support",
    "precision_recall",
    "real_floor",
    "real_pairs",
    "rms_distance",
    "shipped_classifier",
    "sliced_w2",
    "straightness",
    "w2",
]
