"""How far samples are from data, and how good a model's jumps are."""

from .distances import Floor, frechet_distance, interval, kernel_distance, real_floor, real_pairs
from .features import FashionFeatures, embed, fashion_reference, shipped_classifier
from .flow import AnchorVariance, anchor_variance, jump_error, straightness
from .inception import inception_fid
from .transport import sliced_w2, w2
from .two_sample import Copies, Coverage, c2st, copies, energy_distance, mmd, precision_recall

__all__ = [
    "AnchorVariance",
    "Copies",
    "Coverage",
    "FashionFeatures",
    "Floor",
    "anchor_variance",
    "c2st",
    "copies",
    "embed",
    "energy_distance",
    "fashion_reference",
    "frechet_distance",
    "inception_fid",
    "interval",
    "jump_error",
    "kernel_distance",
    "mmd",
    "precision_recall",
    "real_floor",
    "real_pairs",
    "shipped_classifier",
    "sliced_w2",
    "straightness",
    "w2",
]
