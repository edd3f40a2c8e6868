"""Execute the numbered notebooks and keep what they found. Imports neither torch nor iflow_lib."""

import importlib.metadata
import importlib.util
from pathlib import Path

_FOUND = importlib.util.find_spec("iflow_lib")  # importing it would import torch
if _FOUND is None or _FOUND.origin is None:
    raise ImportError("iflow_runner needs iflow_lib beside it: pip install -e . in the checkout")
#: Folder of the library whose notebooks are run.
LIBRARY = Path(_FOUND.origin).parent
#: Folder of this package.
RUNNER = Path(__file__).parent

try:
    __version__ = importlib.metadata.version("iflow-lib")
except importlib.metadata.PackageNotFoundError:  # on the path, but not installed
    __version__ = "unknown"
