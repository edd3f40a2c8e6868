"""Registries: classes by name, so that a saved model can say what it is made of.

This module imports nothing of ours.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


class Registry(dict[str, type]):
    """Classes by name whose instances can be written to JSON and built again.

    A class tells its constructor's arguments through a method ``config()``. What is written of an
    instance is ``{"name": class, "module": where the class is defined, "arguments": config()}``.

    Args:
        kind: What the classes are, for errors: "network" or "path".
        base: The class that all of them extend.
        base_name: How users write that class, for errors.
    """

    def __init__(self, kind: str, base: type, base_name: str) -> None:
        super().__init__()
        self.kind, self.base, self.base_name = kind, base, base_name

    def add(self, cls: C) -> C:
        """Register a class under its name and return it, as a decorator does.

        A notebook's cell can be run again: a class of the same module and qualified name takes the
        place of the earlier one.

        Args:
            cls: A class that extends ``base`` and has ``config()``.

        Returns:
            The class itself.

        Raises:
            ValueError: If it is not such a class, has no ``config()``, or its name is taken by
                another class.
        """
        if not inspect.isclass(cls) or not issubclass(cls, self.base):
            given = cls.__name__ if inspect.isclass(cls) else f"a {type(cls).__name__}"
            raise ValueError(
                f"register_{self.kind} decorates a class that extends {self.base_name}, not {given}"
            )
        name, config = cls.__name__, getattr(cls, "config", None)
        inherited = config is not None and config is getattr(self.base, "config", None)
        if not callable(config) or (inherited and inspect.signature(cls).parameters):
            raise ValueError(
                f"the {self.kind} {name} has no config(): give it one that returns its constructor's "
                "arguments as a dict"
            )
        if name in self and not self._knows(cls):
            raise ValueError(
                f"the name {name} is taken by the {self.kind} {_place(self[name])}: choose another name"
            )
        self[name] = cls
        return cls

    def describe(self, thing: Any) -> dict[str, Any]:
        """Return what is written of an instance.

        Args:
            thing: An instance of a registered class.

        Returns:
            ``{"name": ..., "module": ..., "arguments": ...}``.

        Raises:
            ValueError: If its class is not registered, or ``config()`` gives no JSON values or leaves out an
                argument of the constructor.
        """
        cls = type(thing)
        if not self._knows(cls):
            raise ValueError(
                f"the {self.kind} {cls.__name__} cannot be saved: decorate the class with "
                f"@ifl.register_{self.kind} and give it config(), which returns its constructor's arguments"
            )
        arguments = self._config(thing)
        taken = inspect.signature(cls).parameters.values()
        missing = [p.name for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        missing = [name for name in missing if name not in arguments]
        if missing:
            raise ValueError(
                f"config() of the {self.kind} {cls.__name__} leaves out {', '.join(missing)}: it must return "
                "all arguments of the constructor, so that the saved model can be built again"
            )
        return {"name": cls.__name__, "module": cls.__module__, "arguments": arguments}

    def build(self, entry: Mapping[str, Any]) -> Any:
        """Build the instance that an entry describes.

        Args:
            entry: What ``describe`` returned. Arguments that it lacks because the class did not have
                them yet have the values of the class's ``unsaved``, if it has such a dict.

        Returns:
            An instance whose ``config()`` gives the arguments of the entry.

        Raises:
            ValueError: If the name is unknown, or the class does not take the arguments or gives
                others back.
        """
        name, arguments = entry["name"], entry["arguments"]
        if name not in self:
            module = f", {entry['module']}" if entry.get("module") else ""
            if entry.get("module") == "__main__":
                module = " (it was in the script that saved it: put the class into a module that both import)"
            raise ValueError(
                f"unknown {self.kind} {name!r}: import the module that registers it first{module}; "
                f"known are {', '.join(sorted(self))}"
            )
        arguments = {**older_arguments(self[name]), **arguments}
        try:
            thing = self[name](**arguments)
        except Exception as error:  # a user's constructor may raise anything
            raise ValueError(
                f"{name} does not take the arguments {arguments}: {first_line(error)}"
            ) from error
        config = self._config(thing)
        for key, value in arguments.items():
            if key not in config or not _same(config[key], value):
                raise ValueError(
                    f"config() of the {self.kind} {name} gives {key}={config.get(key)!r} for {value!r}: "
                    "it must return the constructor's arguments"
                )
        return thing

    def _knows(self, cls: type) -> bool:
        known = self.get(cls.__name__)
        return known is not None and _place(known) == _place(cls)

    def _config(self, thing: Any) -> dict[str, Any]:
        config = thing.config()
        try:
            if not isinstance(config, dict):
                raise TypeError(f"it is a {type(config).__name__}")
            return plain(config)
        except TypeError as error:
            raise ValueError(
                f"config() of the {self.kind} {type(thing).__name__} must be a dict of JSON values: {error}"
            ) from error


def older_arguments(cls: type | None) -> dict[str, Any]:
    """Return arguments of a class that files of earlier versions lack, each with what it was then."""
    return vars(cls).get("unsaved", {}) if cls else {}


def plain(value: Any) -> Any:
    """Return a value as JSON keeps it: tuples become lists, numpy's numbers become Python's.

    Args:
        value: None, a number, a string, or lists, tuples and dicts of them.

    Returns:
        What is read back after the value was written to JSON.

    Raises:
        TypeError: If it holds something that JSON has no form for.
    """
    return json.loads(json.dumps(value, default=_python_number))


def _python_number(value: Any) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"JSON has no form for a {type(value).__name__}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, with its type unless that is ValueError."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _same(a: Any, b: Any) -> bool:
    return a == b or json.dumps(a) == json.dumps(b)  # NaN is not equal to itself
