"""How far samples are from data, and how good a model's jumps are."""

from .distances import Floor, frechet_distance, interval, kernel_distance, real_floor, real_pairs
from .features import FashionFeatures, embed, fashion_reference
from .flow import AnchorVariance, anchor_variance, jump_error, straightness
from .inception import inception_fid
from .transport import sliced_w2, w2
from .two_sample import Coverage, c2st, energy_distance, mmd, precision_recall

__all__ = [
    "AnchorVariance",
    "Coverage",
    "FashionFeatures",
    "Floor",
    "anchor_variance",
    "c2st",
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
    "sliced_w2",
    "straightness",
    "w2",
]
