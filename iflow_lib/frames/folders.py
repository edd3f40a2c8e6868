"""Folders of sounds and of images: as windows, and as a data set."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import TensorData
from ..utils import check_int
from .windows import Windows

#: File names that are read as images.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
#: Channels of the two kinds of images.
IMAGE_MODES = {"L": 1, "RGB": 3}


def audio_windows(
    folder: str | PathLike[str],
    length: int,
    rate: int | None = None,
    *,
    stride: int | None = None,
    mono: bool = True,
) -> Windows:
    """Cut the WAV files of a folder, and of its sub-folders, into windows.

    Values are amplitudes from -1 to 1. What is left at the end of a file is not used, and files
    shorter than a window are left out and counted.

    Args:
        folder: Where the files are.
        length: Samples of a window.
        rate: Samples a second. Files of another rate are resampled (``scipy.signal.resample_poly``,
            which filters first). None takes the rate of the files, which must all have one.
        stride: Samples between the starts of two windows; None takes ``length``.
        mono: Whether the channels of a file are averaged. Otherwise all files must have as many.

    Returns:
        The windows; their entity is the file, so that ``split`` puts each file on one side.

    Raises:
        ImportError: Without soundfile.
        ValueError: If there is no such folder or file, a file cannot be read, rates or channels
            differ, or no file is long enough; one line that names the file.
    """
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            'reading WAV files needs soundfile: pip install "iflow-lib[frames]"'
        ) from error
    from scipy.signal import resample_poly

    length = check_int("length", length, 4)
    stride = length if stride is None else check_int("stride", stride)
    rate = None if rate is None else check_int("rate", rate)
    root, files = _files(folder, (".wav",), "WAV files")
    heads = [(file, _head(soundfile, file)) for file in files]
    rates, widths = Counter(h.samplerate for _, h in heads), Counter(h.channels for _, h in heads)
    if rate is None and len(rates) > 1:
        raise ValueError(
            f"the files have different rates, {', '.join(f'{r} Hz' for r in sorted(rates))}: give rate=..., "
            "to which all are resampled"
        )
    if not mono and len(widths) > 1:
        raise ValueError(
            f"the files have {' and '.join(map(str, sorted(widths)))} channels: give mono=True, which "
            "averages them"
        )
    rate = heads[0][1].samplerate if rate is None else rate
    values, positions, names, short = [], [], [], 0
    for file, head in heads:
        try:
            sound = soundfile.read(file, dtype="float64", always_2d=True)[0]
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {_line(error)}") from error
        if not bool(np.isfinite(sound).all()):
            raise ValueError(
                f"{file} holds infinite amplitudes or NaN: write it again, or remove it"
            )
        sound = sound.mean(1, keepdims=True) if mono else sound
        if head.samplerate != rate:
            common = math.gcd(rate, head.samplerate)
            sound = resample_poly(sound, rate // common, head.samplerate // common, axis=0)
        if len(sound) < length:
            short += 1
            continue
        view = np.lib.stride_tricks.sliding_window_view(sound, length, axis=0)[::stride]
        values.append(view.transpose(0, 2, 1))
        positions.append(np.arange(len(view)) * stride)
        names += [file.relative_to(root).as_posix()] * len(view)
    if not values:
        raise ValueError(
            f"none of the {len(files)} files has {length} samples at {rate} Hz: give a smaller length"
        )
    several = next(iter(widths)) if not mono else 1
    notes = [f"{rate} samples a second, so that a window lasts {length / rate:.3g} s"]
    if mono and set(widths) != {1}:
        notes.append("the channels of stereo files are averaged")
    return Windows(
        values=np.concatenate(values),
        channels=("sound",) if several == 1 else tuple(f"sound_{i + 1}" for i in range(several)),
        positions=np.concatenate(positions),
        every=pd.Timedelta(round(1e9 / rate), "ns"),
        entities=np.asarray(names, dtype=object),
        entity="file",
        counts={
            "files": len(files),
            "files shorter than a window, left out": short,
            "files resampled": len(files) - rates[rate],
        },
        notes=tuple(notes),
    )


class ImageFolder(TensorData):
    """Images of a folder, in [-1, 1], (B, channels, height, width).

    Args:
        x: The images.
        labels: Classes (B,), or None.
        name: Name of the folder.
        classes: Names of the classes, which are the sub-folders, in the order of their labels.
        files: Where each image comes from, below the folder.
        notes: What was done to the images, one sentence each.
    """

    def __init__(
        self,
        x: np.ndarray,
        labels: np.ndarray | None,
        name: str,
        classes: Sequence[str],
        files: Sequence[str],
        notes: Sequence[str],
    ) -> None:
        super().__init__(x, labels, name)
        self.classes, self.files, self.notes = tuple(classes), tuple(files), tuple(notes)

    def __repr__(self) -> str:
        """Return the shape, the classes, and what was done."""
        named = f", classes {', '.join(self.classes)}" if self.classes else ""
        first = f"ImageFolder({self.name!r}, {tuple(self.x.shape)}{named})"
        return "\n".join([first, *(f"  {note}" for note in self.notes)])


def image_folder(
    folder: str | PathLike[str],
    size: int | Sequence[int],
    *,
    mode: str = "RGB",
    skip_broken: bool = False,
) -> ImageFolder:
    """Read the images of a folder as examples of one size.

    Of an image of another shape the centre is cut out, as large as fits; then it is resized by
    Pillow's LANCZOS, which smooths where it shrinks. Photographs are turned upright as their camera
    says. What is transparent becomes white. Sub-folders are classes, in the order of their names.

    Args:
        folder: Where the images are: all in it, or all in its sub-folders.
        size: Side of the images, or (height, width).
        mode: "RGB" for colour, (B, 3, H, W), or "L" for grey, (B, 1, H, W).
        skip_broken: Whether files that cannot be read are left out with a warning that names them.
            Otherwise they are an error.

    Returns:
        The images, float32 in [-1, 1], with labels where there are sub-folders.

    Raises:
        ImportError: Without Pillow.
        ValueError: If there is no such folder or image, images lie both in the folder and in
            sub-folders, or files cannot be read; one line that names them.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading images needs Pillow: pip install "iflow-lib[frames]"') from error
    sides = (size, size) if not isinstance(size, Sequence) or isinstance(size, str) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number or a pair (height, width), got {size!r}")
    height, width = (check_int("size", side) for side in sides)
    if mode not in IMAGE_MODES:
        raise ValueError(f'mode must be "RGB" for colour or "L" for grey, got {mode!r}')
    root, files = _files(folder, IMAGE_SUFFIXES, "images")
    whose = [file.relative_to(root).parts[:-1] for file in files]
    if any(whose) and not all(whose):
        loose = files[[bool(parts) for parts in whose].index(False)].name
        raise ValueError(
            f"{root} has images in sub-folders, which are classes, and others beside them, such as {loose}: "
            "move those into a sub-folder"
        )
    pixels: list[np.ndarray] = []
    kept: list[int] = []
    broken: list[str] = []
    cropped = enlarged = clear = 0
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                array, said = _example(image, height, width, mode)
        except Exception as error:  # Pillow's readers raise errors of many kinds
            broken.append(f"{file.relative_to(root).as_posix()} ({_line(error)})")
            continue
        pixels.append(array)
        kept.append(i)
        cropped, enlarged, clear = cropped + said[0], enlarged + said[1], clear + said[2]
    if broken:
        shown = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        words = f"{len(broken)} of {len(files)} files cannot be read as images: {shown}"
        if not skip_broken or not kept:
            raise ValueError(f"{words}: remove them, or give skip_broken=True")
        warnings.warn(f"{words}: they are left out", RuntimeWarning, stacklevel=2)
    classes = sorted({parts[0] for parts in whose if parts})
    labels = np.array([classes.index(whose[i][0]) for i in kept]) if classes else None
    x = np.stack(pixels).astype(np.float32) / 127.5 - 1
    x = x[:, None] if mode == "L" else x.transpose(0, 3, 1, 2)
    told = {
        f"{cropped:,} of {len(kept):,} were cut to their centre": cropped,
        f"{enlarged:,} were smaller and are enlarged": enlarged,
        f"{clear:,} had transparent parts, which are white": clear,
        f"{len(broken):,} could not be read and are left out": len(broken),
    }
    notes = [note for note, number in told.items() if number]
    names = [files[i].relative_to(root).as_posix() for i in kept]
    return ImageFolder(np.ascontiguousarray(x), labels, root.name, classes, names, notes)


def _files(
    folder: str | PathLike[str], suffixes: Sequence[str], what: str
) -> tuple[Path, list[Path]]:
    """Return a folder and its files of some kinds, in the order of their names."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: give the folder that holds the {what}")
    found = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in suffixes and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{root} holds no {what} ({', '.join(suffixes)})")
    return root, found


def _head(soundfile: Any, file: Path) -> Any:
    try:
        return soundfile.info(str(file))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a WAV file: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _example(
    image: Any, height: int, width: int, mode: str
) -> tuple[np.ndarray, tuple[bool, bool, bool]]:
    """Return the pixels of one image, and whether it was cut, enlarged, or transparent."""
    from PIL import Image, ImageOps

    if image.mode[0] in "IF":
        raise ValueError(f"pixels of mode {image.mode}, not of 8 bits")
    image = ImageOps.exif_transpose(image)
    clear = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if clear:
        image = image.convert("RGBA")
        clear = image.getextrema()[3][0] < 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    cut = image.width * height != image.height * width
    small = image.width < width or image.height < height
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8), (cut, small, clear)
