"""What must hold on a CUDA device: ``pytest -m cuda``. The checks are in experiments/gpu_checks.py, which does without pytest."""

import pytest
import torch

from experiments.gpu_checks import CHECKS
from experiments.gpu_table import Skip

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(name):
    try:
        CHECKS[name].run(torch.device("cuda"))
    except Skip as why:
        pytest.skip(str(why))
