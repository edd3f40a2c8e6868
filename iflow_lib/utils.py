"""Small helpers that every module may use: devices, whole numbers, compiling."""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from typing import Any

import numpy as np
import torch

__version__ = "0.1.0"

#: torch.compile's name for CUDA graphs
GRAPHS = {"mode": "reduce-overhead"}


class Compiled:
    """``function``, which returns a tensor or a tuple of tensors and None, under ``torch.compile``: compiled at its first
    call; where that fails, ``function`` itself from then on, with a warning of one line. options: of ``torch.compile``."""

    def __init__(self, function, **options):
        self.function, self.fast = function, torch.compile(function, **options)
        self.graphs = options.get("mode") == GRAPHS["mode"]

    def __call__(self, *args, **kwargs):
        if self.fast is None:
            return self.function(*args, **kwargs)
        try:
            if not self.graphs:
                return self.fast(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            out = self.fast(
                *args, **kwargs
            )  # in the graph's own memory, which the next call writes over
            return _copy(out) if torch.is_tensor(out) else tuple(map(_copy, out))
        except Exception as error:  # whatever a compiler says; if the fault is the function's own, it says so once more
            result = self.function(*args, **kwargs)
            self.fast, why = None, (str(error).strip().splitlines() or [""])[0][:200]
            warnings.warn(
                f"going on without torch.compile, which failed: {type(error).__name__}: {why}",
                RuntimeWarning,
                stacklevel=2,
            )
            return result


def _copy(value):
    return value.clone() if torch.is_tensor(value) else value


@functools.cache
def load_jvp_rules() -> None:
    """torch loads its rules for forward mode at their first use, with a warning about itself that no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            importlib.import_module("torch._decomp.decompositions_for_jvp")
        except ImportError:
            pass  # another version keeps them elsewhere: then it warns


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is cuda, else mps, else cpu. ValueError for an unknown name or a device that this machine lacks."""
    name = str(device)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if (
        kind not in ("cpu", "cuda", "mps")
        or (index and not index.isdecimal())
        or name.endswith(":")
    ):
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or mps")
    found = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}[kind]
    if int(index or 0) >= found:
        raise ValueError(f"device {name!r} is not available on this machine: use auto or cpu")
    return torch.device(name)


def check_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of any type.

    Args:
        name: What errors call the value.
        value: A whole number: of Python, of numpy, or a torch tensor of one element.
        minimum: The least value that is allowed.

    Returns:
        The value.

    Raises:
        ValueError: If it is not a whole number of at least ``minimum``; True and False are none.
    """
    boolean = isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) is torch.bool
    try:
        number = None if boolean else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return number


def check_seed(value: Any) -> int:
    """Return ``value`` as a seed that every generator takes.

    Args:
        value: A whole number from 0 to 2^63 - 1, of Python, numpy or torch.

    Returns:
        The seed.

    Raises:
        ValueError: If it is not such a number.
    """
    seed = check_int("seed", value, minimum=0)
    if seed >= 1 << 63:
        raise ValueError(f"seed must be a whole number below 2^63, got {value!r}")
    return seed
