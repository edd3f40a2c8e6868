"""Data frames by name: penguins, weather, randhie. They are raw, as their sources have them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..io import read_checked

if TYPE_CHECKING:
    import pandas as pd

ASSETS = Path(__file__).parent.parent / "assets"

Reader = Callable[[], "pd.DataFrame"]

#: sha256 of the files that come with the package.
SHIPPED = {
    "penguins": "c1389583136398d9da48509f1b6574705294349d6ebe2446d161e9c012dfdcac",
    "weather": "dd19bbecdf262da5c35e299a384ba61023ec2f8e2b0fc7655ba6d2500ee0a932",
}
#: Every frame by name: the function that reads it.
FRAMES: dict[str, Reader] = {}


def register_frame(name: str) -> Callable[[Reader], Reader]:
    """Register a function without arguments as a data frame, which ``frame`` knows by its name.

    Args:
        name: The name.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ValueError: If the name is no text, or belongs to another function.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(
            f'register_frame takes a name, as in @register_frame("mine"); got {name!r}'
        )

    def register(function: Reader) -> Reader:
        known = FRAMES.get(name, function)
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"a data frame {name!r} is registered already; choose another name")
        FRAMES[name] = function
        return function

    return register


def frame(name: str) -> pd.DataFrame:
    """Return a data frame by name.

    - penguins: 344 penguins of three species, four measures, sex and year; 19 missing cells.
    - weather: hourly weather of New York's three airports in 2013, 26,115 rows, in the units of its
      source (degrees F, mph, inches, millibars, miles), untouched: with gaps in time, many missing
      values, and one wind speed of 1,048 mph, a fault of the sensor. ``time_hour`` is in UTC; year,
      month, day and hour are local.
    - randhie: 20,190 rows of the RAND health insurance experiment, all numbers, from statsmodels.

    Args:
        name: One of ``FRAMES``.

    Returns:
        A new frame.

    Raises:
        ValueError: For another name, or a damaged file.
        FileNotFoundError: If a file is missing.
        ImportError: If statsmodels, which has randhie, is not installed.
    """
    if not isinstance(name, str) or name not in FRAMES:
        raise ValueError(
            f"unknown data frame {name!r}; expected one of {', '.join(sorted(FRAMES))}"
        )
    return FRAMES[name]()


@register_frame("penguins")
def penguins() -> pd.DataFrame:
    """Read the penguins that come with the package."""
    return _shipped("penguins")


@register_frame("weather")
def weather() -> pd.DataFrame:
    """Read the weather rows that come with the package."""
    import pandas as pd  # late: importing the package is to be quick

    found = _shipped("weather")
    found["time_hour"] = pd.to_datetime(found["time_hour"], utc=True)
    return found


@register_frame("randhie")
def randhie() -> pd.DataFrame:
    """Read the health insurance rows from statsmodels."""
    try:
        from statsmodels.datasets import randhie as source
    except ImportError:
        raise ImportError(
            "randhie comes with statsmodels, which is not installed: pip install statsmodels"
        ) from None
    return source.load_pandas().data


def _shipped(name: str) -> pd.DataFrame:
    import pandas as pd

    content = read_checked(ASSETS / f"{name}.csv.gz", SHIPPED[name])
    text = io.BytesIO(gzip.decompress(content))
    return pd.read_csv(text, float_precision="round_trip")
