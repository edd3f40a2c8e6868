"""What happens beside a training, between two steps: measuring, logging, stopping early."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ..model import FlowMap
from ..registry import first_line
from .distributed import Processes

Result = TypeVar("Result")


class Training(Protocol):
    """What a callback sees of a run, between two steps.

    Attributes:
        step: Steps done.
        model: The model that is trained, with its last weights.
        average: The model with averaged weights, which ``fit`` returns, in evaluation mode.
        manifest: What the manifest says beforehand; ``manifest["config"]`` has the settings.
        processes: The processes that share the run. ``processes.on_first(action)`` does something
            in the first one alone, such as writing a file.
    """

    step: int
    model: FlowMap
    average: FlowMap
    manifest: dict[str, Any]
    processes: Processes

    def record(self, name: str, value: float) -> None:
        """Put a number of this step into the history, in a column of this name.

        Raises:
            ValueError: If the name is that of a column which every history has.
        """

    def stop(self, reason: str) -> None:
        """End the training after this step; a continuation then trains no further either."""


class Callback:
    """Something that is done beside a training: ``TrainConfig(callbacks=[...])``.

    A callback of your own overrides what it needs::

        class Largest(ifl.Callback):
            def after_step(self, training):
                if training.step % 100 == 0:
                    largest = max(float(w.abs().max()) for w in training.model.parameters())
                    training.record("largest_weight", largest)

    It must leave the weights, the data and torch's random numbers as they are. Where several
    processes share a run, each calls all methods but ``log``, so that they must do the same in
    each. If a method raises, the run writes a checkpoint, where it has a folder, and ends with one
    line that names the callback.

    Attributes:
        name: What errors, checkpoints and the manifest call it; another one for each of a run.
    """

    name: str

    def __init_subclass__(cls, **options: Any) -> None:
        """Call each class by its own name."""
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def start(self, training: Training, state: dict[str, Any]) -> None:
        """Begin, before the first step of a call of ``fit``; a callback may serve several runs.

        Args:
            training: The run. Its ``step`` is above 0 where it is continued.
            state: What ``state`` returned for the checkpoint of a run that is continued, its
                tensors on the CPU; empty for a new run, or one that this callback was not in.

        Raises:
            ValueError: If this callback does not fit the run, or cannot go on from there.
        """

    def after_step(self, training: Training) -> None:
        """Do what is due after a step."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take a row of the history, in the first process alone.

        Args:
            step: Steps done.
            values: By name: the mean loss since the row before, the learning rate "lr", the seconds
                of training, and what callbacks recorded.
        """

    def end(self, training: Training) -> None:
        """Finish a run that has ended well or was interrupted, after its last checkpoint."""

    def close(self, failed: bool) -> None:
        """Let go of files and connections, however the run has ended."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this callback: tensors and JSON values, by name."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return JSON values for the manifest of the run: settings, and what came out."""
        return {}


class CallbackError(RuntimeError):
    """A callback has failed. The error that it raised is the cause."""


def checked_callbacks(given: Any) -> tuple[Callback, ...]:
    """Return callbacks as a tuple.

    Raises:
        ValueError: If one is no callback, or two have one name.
    """
    found = (given,) if isinstance(given, Callback) else given
    if not isinstance(found, (list, tuple)):
        raise ValueError(
            f"callbacks must be a list, such as [ifl.Validation(held_out)], got {given!r:.60}"
        )
    for one in found:
        if isinstance(one, type) and issubclass(one, Callback):
            raise ValueError(
                f"callbacks holds the class {one.__name__}: give an instance, {one.__name__}(...)"
            )
        if not isinstance(one, Callback):
            raise ValueError(
                f"callbacks must hold objects that extend ifl.Callback, got {one!r:.60}"
            )
    names = [one.name for one in found]
    for name in names:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"the name of a callback must be text without dots, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(
                f"two callbacks have the name {name!r}: give one another, as in callback.name = "
                f'"{name}_2"'
            )
    return tuple(found)


class Callbacks:
    """The callbacks of a run. What one of them raises becomes one line that names it.

    Args:
        callbacks: The callbacks, in the order in which they are called.
        processes: Processes that share the run.
    """

    def __init__(self, callbacks: Sequence[Callback], processes: Processes) -> None:
        self.all, self.processes = tuple(callbacks), processes

    def start(self, training: Training, states: dict[str, dict[str, Any]]) -> None:
        """Begin, with the states that a checkpoint kept of some. One without begins anew.

        Raises:
            CallbackError: If a callback fails.
            ValueError: If a callback refuses the run.
        """
        for one in self.all:
            state = states.get(one.name, {})
            try:
                _call(one, "at the start", one.start, training, state)
            except CallbackError as error:
                if not isinstance(error.__cause__, ValueError):
                    raise
                why = first_line(error.__cause__)
                raise ValueError(f"the callback {one.name} cannot start: {why}") from error

    def after_step(self, training: Training) -> None:
        """Call each after a step; CallbackError if one fails."""
        for one in self.all:
            _call(one, f"after step {training.step}", one.after_step, training)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand a row of the history on, in the first process; CallbackError in all if one fails."""

        def each() -> None:
            for one in self.all:
                _call(one, f"at the row of step {step}", one.log, step, values)

        if self.all:
            self.processes.on_first(each)

    def end(self, training: Training) -> None:
        """Call each after the run; CallbackError if one fails."""
        for one in self.all:
            _call(one, "at the end", one.end, training)

    def close(self, failed: bool) -> None:
        """Close each. What goes wrong then is a warning, so that no result is lost by it."""
        for one in self.all:
            try:
                one.close(failed)
            except Exception as error:
                warnings.warn(
                    f"the callback {one.name} could not be closed: {first_line(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Return what a checkpoint keeps: tensors by ``name.key``, and JSON values by name.

        Raises:
            CallbackError: If a callback fails, or its state is neither.
        """
        tensors, values = {}, {}
        for one in self.all:
            state = _call(one, "in state()", one.state)
            rest = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
            _call(one, "in state()", json.dumps, rest)
            tensors.update({f"{one.name}.{k}": v for k, v in state.items() if k not in rest})
            if state:
                values[one.name] = rest
        return tensors, values

    def describe(self) -> list[dict[str, Any]]:
        """Return what the manifest says of each."""
        return [{"name": one.name, **_call(one, "in describe()", one.describe)} for one in self.all]


def states(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by name of a callback what ``Callbacks.state`` has taken apart."""
    found: dict[str, dict[str, Any]] = {name: dict(rest) for name, rest in values.items()}
    for place, tensor in tensors.items():
        name, key = place.split(".", 1)
        found.setdefault(name, {})[key] = tensor
    return found


def _call(callback: Callback, when: str, action: Callable[..., Result], *arguments: Any) -> Result:
    """What a method returns; what it raises becomes one line."""
    try:
        return action(*arguments)
    except Exception as error:
        raise CallbackError(
            f"the callback {callback.name} failed {when}: {first_line(error)}"
        ) from error
