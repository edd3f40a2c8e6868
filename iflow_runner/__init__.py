"""Executes the numbered notebooks and keeps what they found. Imports neither torch nor iflow_lib."""

import importlib.util
from pathlib import Path

#: The folder of the library whose notebooks are run.
LIBRARY = Path(importlib.util.find_spec("iflow_lib").origin).parent
__version__ = "0.1.0"
