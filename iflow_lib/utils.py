"""Small helpers that every module may use: devices, numbers that users give, compiling."""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

__version__ = "0.1.0"

#: torch.compile's name for CUDA graphs
GRAPHS = {"mode": "reduce-overhead"}

#: Where exceptions of torch.compile are defined; a function's own errors come from elsewhere.
COMPILER_PACKAGES = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


class Compiled:
    """A function under ``torch.compile``, or as it is if it cannot be compiled.

    It is compiled at its first call. If the compiler fails, a warning of one line says so, and the
    function runs as it is from then on. Errors of the function itself are raised, and so is a lack
    of
    memory: the next call may have enough, and then it is to run compiled.

    Args:
        function: Returns a tensor, or a tuple of tensors and None.
        **options: Of ``torch.compile``.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function = function
        self.compiled: Callable[..., Any] | None = torch.compile(function, **options)
        self.graphs = options.get("mode") == GRAPHS["mode"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.compiled is None:
            return self.function(*args, **kwargs)
        try:
            if not self.graphs:
                return self.compiled(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            out = self.compiled(*args, **kwargs)
            # it lies in the graph's own memory, which the next call writes over
            return _copy(out) if torch.is_tensor(out) else tuple(map(_copy, out))
        except Exception as error:
            if not _is_compiler_failure(error):
                raise
            _leave_forward_mode()
            # a compiler also reports faults of the function: then the function raises its own error here
            result = self.function(*args, **kwargs)
            self.compiled, why = None, (str(error).strip().splitlines() or [""])[0][:200]
            warnings.warn(
                f"going on without torch.compile, which failed: {type(error).__name__}: {why}",
                RuntimeWarning,
                stacklevel=2,
            )
            return result


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value


def _is_compiler_failure(error: Exception) -> bool:
    if is_out_of_memory(getattr(error, "inner_exception", None) or error):
        return False
    return any(kind.__module__.startswith(COMPILER_PACKAGES) for kind in type(error).__mro__)


def _leave_forward_mode() -> None:
    """End forward mode if a compiler that broke off has left it on, for then no other can begin."""
    if forward_ad._current_level >= 0:
        return  # it is on around the call
    try:
        torch._C._exit_dual_level(level=0)
    except RuntimeError:
        pass  # it is off


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and ("DefaultCPUAllocator" in str(error) or "MPS backend out of memory" in str(error))
    )


@functools.cache
def load_jvp_rules() -> None:
    """Load torch's rules for forward mode, which warn about themselves at their first use.

    No user can act on that warning, so it is silenced here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            importlib.import_module("torch._decomp.decompositions_for_jvp")
        except ImportError:
            pass  # another version keeps them elsewhere: then it warns


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global generators that a network on ``device`` may draw from.

    Args:
        device: Where the network is.

    Returns:
        The states, uint8 (n,), by the kind of device: that of the CPU, and that of ``device``.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Take back what ``random_state`` returned. A state that is not given stays as it is."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def uses_tf32(device: torch.device) -> bool:
    """Return whether matrix products of float32 on a device are rounded to TF32."""
    try:
        return device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # set by fp32_precision alone, whose newer names older versions lack
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on another device, in another type if one is given.

    The copy to a CUDA device is made while the program goes on.
    """
    if x.device.type == "cpu" and device.type == "cuda":
        # its type first: on the way, it would be copied into memory that is not pinned
        return x.to(dtype or x.dtype).pin_memory().to(device, non_blocking=True)
    return x.to(device, dtype or x.dtype)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device of this machine.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", a ``torch.device``, or "auto" for cuda, else mps,
            else cpu.

    Returns:
        The device, with the index that was asked for.

    Raises:
        ValueError: If the name is unknown or this machine lacks the device.
    """
    name = str(device)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        asked = torch.device(name)
        found = {"cpu": 1, "cuda": cuda and torch.cuda.device_count(), "mps": mps}[asked.type]
    except (RuntimeError, KeyError):
        raise ValueError(
            f"unknown device {name!r}: expected auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if (asked.index or 0) >= found:
        raise ValueError(f"device {name!r} is not available on this machine: use auto or cpu")
    return asked


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
        value: A whole number from 0 to 2^32 - 1, of Python, numpy or torch. Torch's generator on
            the CPU reads no more bits, so that larger seeds would silently repeat smaller ones.

    Returns:
        The seed.

    Raises:
        ValueError: If it is not such a number.
    """
    seed = check_int("seed", value, minimum=0)
    if seed >= 1 << 32:
        raise ValueError(f"seed must be a whole number below 2^32, got {value!r}")
    return seed
