"""Own data: from a data frame to samples in its own types and units.

- schema, storage, columns, leftout: what a column is, how it is stored, how a flow sees it.
- table: ``TableFlow``, which learns a data frame.
- clock, regular, windows: a long table of measurements as windows of equal length.
- calendar, scales, learning, asked, series: ``SeriesFlow``, which learns windows.
- folders: a folder of sounds as windows, a folder of images as a data set.
- given: one network for whole examples, and for the rest of one where parts are given.
- quality: how good samples are, beside real rows and ``baselines``; scores, features, classifiers and
  measures are its parts, quality_page and pictures its page.
"""

from . import baselines
from .folders import ImageFolder, audio_windows, image_folder
from .given import GivenParts, WithGiven, sample_given
from .quality import Quality, quality
from .schema import Column, Schema, schema
from .series import SeriesFlow
from .table import TableFlow
from .windows import Windows, windows

__all__ = [
    "Column",
    "GivenParts",
    "ImageFolder",
    "Quality",
    "Schema",
    "SeriesFlow",
    "TableFlow",
    "Windows",
    "WithGiven",
    "audio_windows",
    "baselines",
    "image_folder",
    "quality",
    "sample_given",
    "schema",
    "windows",
]
