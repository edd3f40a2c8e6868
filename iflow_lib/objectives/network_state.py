"""Networks that draw masks or keep statistics: compared calls start from the same state.

Most objectives compare calls of the network with each other: both sides of a difference, two halves
and a whole, the network now and at an earlier time. A network with dropout draws other masks at
each call, and what such a comparison then measures is the masks. With a central difference of half
width 1e-3, that error is multiplied by 500. A network with batch normalisation moves its running
statistics at each call, although only the prediction is made at the points that are trained on.

So a loss makes the calls it compares within ``repeatable(model)`` and the prediction after it. They
all start from the same state of torch's global generators and of the network's buffers, and only
the prediction moves that state on. The same masks belong to the same rows only if the calls have
equally many rows; and statistics of a batch are comparable only if it has the same rows. So such a
network is always called with all rows: ``compared_rows``. In a derivative those statistics are
held. Consistency training compares two noise levels: there both calls are given the rows of both.

A network without any of this, a pure one, is called as if this module did not exist.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model import FlowMap, writes_into_input
from ..utils import random_state, set_random_state

#: network -> whether it is pure, as ``examine`` found it
_PURE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ROWS = 4  # of a trial call: batch normalisation needs more than one


def examine(model: FlowMap, device: torch.device | None = None) -> None:
    """Find out whether the network is pure: two small calls of a copy in training mode tell.

    Args:
        model: The model, which is left as it is.
        device: Where the copy is called. None takes the model's device.

    Raises:
        ValueError: If the network takes other arguments, writes into them, or draws random numbers
            that torch's global generators do not give.
    """
    _PURE[model.net], fault = False, None
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return  # its calls wait for the other processes
    try:
        with trial(model, device) as (twin, inputs), torch.no_grad():
            changes, fault = _call_twice(twin, inputs)
    except Exception as error:
        # The network takes no small batch, or is at fault: not pure is right for any network.
        if isinstance(error, TypeError):
            _check_signature(model)
        return
    if fault is not None:
        raise fault
    norms = any(isinstance(module, _BATCH_NORMS) for module in model.modules())
    _PURE[model.net] = not (changes or norms)


def _call_twice(model: FlowMap, inputs: tuple[Any, ...]) -> tuple[bool, ValueError | None]:
    """Return whether a call changes random state or buffers, and what is wrong with the network."""
    device = model_device(model)
    state, buffers = random_state(device), copy.deepcopy(dict(model.named_buffers()))
    given = copy.deepcopy(inputs)
    first_out = model(*inputs).clone()
    if not all(a is None or torch.equal(a, b) for a, b in zip(given, inputs)):
        return True, writes_into_input(model.net)
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name not in saved and not torch.equal(buffer, buffers[name]):
            return True, ValueError(
                f"the network {type(model.net).__name__} changes the buffer {name.removeprefix('net.')}, which is not saved: register "
                "it with persistent=True"
            )
    now = random_state(device) | dict(model.named_buffers())
    changes = not all(torch.equal(now[name], value) for name, value in (state | buffers).items())
    set_random_state(state, device)
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            buffer.copy_(buffers[name])
    # kernels of a GPU may add in another order
    if torch.allclose(first_out, model(*inputs), rtol=1e-3, atol=1e-5, equal_nan=True):
        return changes, None
    return changes, ValueError(
        f"the network {type(model.net).__name__} returns another output for the same input and the same state "
        "of torch's global generator: draw its random numbers from that generator, as torch.rand does, "
        "not from numpy or a generator of its own, and keep what it counts in a buffer (register_buffer)"
    )


def check_unknown_label(model: FlowMap) -> None:
    """Check that a network with classes takes the label -1, an unknown class, for what it is.

    A network that uses labels as an index takes the last class instead. Random weights tell, where
    there are two classes at least.

    Raises:
        ValueError: If it does not.
    """
    if model.classes < 2:
        return
    with trial(model, torch.device("cpu")) as (twin, (x, t, s, anchor, _)), torch.no_grad():
        twin.eval()
        for weight in twin.parameters():
            weight.copy_(torch.randn_like(weight))
        outs = []
        for label in (0, model.classes - 1, -1):
            try:
                outs.append(twin(x, t, s, anchor, torch.full((len(x),), label)))
            except Exception:
                if label >= 0:
                    return  # the first step tells what is wrong
                outs.append(outs[1])
    first_class, last_class, unknown = outs
    if torch.equal(unknown, last_class) and not torch.equal(first_class, last_class):
        raise ValueError(
            f"the network {type(model.net).__name__} does not take the label -1, which stands for an unknown "
            "class: give it a vector more, for labels below 0, or train with label_dropout=0"
        )


def _check_signature(model: FlowMap) -> None:
    """Raise ValueError if ``forward`` of the network does not take what ``FlowMap`` gives."""
    extra = ["anchor"] * model.anchored + ["labels"] * bool(model.classes)
    try:
        inspect.signature(model.net.forward).bind("x", "t", "s", **dict.fromkeys(extra))
    except TypeError as error:
        call = ", ".join(["x", "t", "s", *(f"{name}={name}" for name in extra)])
        raise ValueError(
            f"forward of the network {type(model.net).__name__} must take the call net({call}): {error}"
        ) from None


def is_pure(model: FlowMap) -> bool:
    """Return whether a call in training depends on its own rows alone and changes nothing.

    Dropout draws from a global generator and batch normalisation mixes the rows, so neither is
    pure.
    """
    if model.net not in _PURE:
        examine(model)
    return _PURE[model.net]


def repeatable(model: FlowMap, *, hold_statistics: bool = False) -> AbstractContextManager[Any]:
    """Make calls of the network repeatable within a ``with`` block.

    Each call leaves torch's global generators and the network's buffers as it found them. The
    prediction, which follows the block, therefore sees the same dropout masks as the calls inside
    it.

    Args:
        model: The model that is called.
        hold_statistics: Let batch normalisation use its running statistics, for a derivative. The
            statistics of a batch move when all its rows do, but those of the network that is
            sampled stand still.
    """
    # A compiled loss has a pure network: see Objective.compiles.
    if torch.compiler.is_compiling() or is_pure(model):
        return nullcontext()
    return _repeatable(model, hold_statistics)


@contextmanager
def _repeatable(model: FlowMap, hold_statistics: bool) -> Iterator[None]:
    buffers, device = _buffers(model), model_device(model)
    start = random_state(device)
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.training]

    def before(*_: Any) -> None:  # the call works on copies of the buffers
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())

    def after(*_: Any) -> None:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        set_random_state(start, device)

    hooks = [
        model.net.register_forward_pre_hook(before),
        model.net.register_forward_hook(after, always_call=True),
    ]
    try:
        for module in norms:
            module.train(not hold_statistics)
        yield
    finally:
        for module in norms:
            module.train()
        for hook in hooks:
            hook.remove()


def compared_rows(model: FlowMap, k: int, n: int) -> int:
    """Return how many of n rows a call for the first k needs: k, or all if it is not pure."""
    return k if torch.compiler.is_compiling() or is_pure(model) else n


def mixes_rows(model: FlowMap) -> bool:
    """Return whether batch normalisation makes the output of a row depend on the others."""
    if torch.compiler.is_compiling() or is_pure(model):
        return False
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def _buffers(model: FlowMap) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]


def model_device(model: FlowMap) -> torch.device:
    """Return where the weights of the model are."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


@contextmanager
def trial(
    model: FlowMap, device: torch.device | None = None
) -> Iterator[tuple[FlowMap, tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]]]:
    """Give a copy of the model in training mode, and the arguments of a small call of it.

    What the copy draws from torch's global generators within the ``with`` block is put back at its
    end.
    """
    twin = copy.deepcopy(model).to(device or model_device(model)).train()
    weight = next(twin.parameters(), torch.zeros(()))
    x = torch.linspace(-1, 1, _ROWS).to(weight)
    t, s = (x + 2) / 4, (x + 2) / 8
    x = x.reshape(-1, *[1] * len(model.data_shape)).expand(-1, *model.data_shape).contiguous()
    anchor = torch.zeros_like(x) if model.anchored else None
    labels = torch.zeros_like(t, dtype=torch.long) if model.classes else None
    state = random_state(x.device)
    try:
        yield twin, (x, t, s, anchor, labels)
    finally:
        set_random_state(state, x.device)
