"""One training step as one CUDA graph: its hundreds of kernels are started by a single call.

See PyTorch's documentation, "CUDA Graphs". What is recorded reads and writes the same memory each
time it is replayed, and numbers of Python are fixed in it. So everything that differs between two
steps is a tensor that stays where it is, and is written to before the replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..objectives.base import Drawn

Step = Callable[[Drawn], tuple[Tensor, Tensor | None]]

#: Steps that are made before one is recorded: compilers and libraries set themselves up in them.
WARM_UP = 3


class CudaGraph:
    """A graph of one device: what ``StepGraph`` needs of ``torch.cuda``.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph, self.side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call a function on a stream of its own, as must be done before it is recorded."""
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            self.side.wait_stream(here)
            with torch.cuda.stream(self.side):
                function()
            here.wait_stream(self.side)

    def capture(self, function: Callable[[], None]) -> None:
        """Record what a function starts on the device, without doing it.

        On the stream of the warm-up: torch's own one belongs to the first device that was recorded.
        """
        with torch.cuda.device(self.device), torch.cuda.graph(self.graph, stream=self.side):
            function()

    def replay(self) -> None:
        """Do what was recorded."""
        self.graph.replay()


def cuda_graph(device: torch.device) -> CudaGraph | None:
    """Return a new graph, or None on a device without."""
    return CudaGraph(device) if device.type == "cuda" else None


class StepGraph:
    """A training step that is recorded once, and then replayed.

    The first calls are made as they are, on tensors that stay; they are steps of the training like
    all others. Then one is recorded. A call with tensors of other shapes or types is made as it is,
    and so are all calls if recording fails, which a warning of one line says.

    Args:
        graph: An empty graph.
    """

    def __init__(self, graph: CudaGraph) -> None:
        self.graph = graph
        self.calls, self.recorded, self.refused = 0, False, False
        self.drawn: Drawn = {}  # the tensors that stay
        self.kinds: dict[str, tuple | None] = {}
        self.out: tuple[Tensor, Tensor | None]

    def __call__(self, step: Step, drawn: Drawn) -> tuple[Tensor, Tensor | None]:
        """Make a step.

        Args:
            step: Makes a step from what was drawn, and returns the loss, and an estimate or None,
                without gradient. It reads nothing else that changes, but for tensors in place. It
                is the same in all calls; it is not kept, because it holds who keeps this graph.
            drawn: The arguments of the loss by name.

        Returns:
            The loss, and the estimate or None. They stay as they are when the next step is made.
        """
        if self.refused:
            return step(drawn)
        try:
            kinds = _kinds(drawn)
            if not self.kinds:
                self.kinds, self.drawn = kinds, _places(drawn, self.graph.device)
        except Exception as error:  # not a tensor
            return self._refuse(error, step, drawn)
        if kinds != self.kinds:
            return step(drawn)
        for name, place in self.drawn.items():
            if place is not None:
                place.copy_(drawn[name])  # type: ignore[arg-type]
        self.calls += 1
        if self.calls <= WARM_UP:
            with warnings.catch_warnings():  # of Adam, that it is not recorded yet
                warnings.filterwarnings("ignore", ".*capturable=True", UserWarning)
                self.graph.warm_up(partial(self._step, step))
            return self.out
        if not self.recorded:
            try:
                self.graph.capture(partial(self._step, step))
            except Exception as error:  # of CUDA, or of anything that the step calls
                return self._refuse(error, step, drawn)
            self.recorded = True
        self.graph.replay()
        loss, estimate = self.out
        return loss.clone(), None if estimate is None else estimate.clone()

    def _step(self, step: Step) -> None:
        self.out = step(self.drawn)

    def _refuse(self, error: Exception, step: Step, drawn: Drawn) -> tuple[Tensor, Tensor | None]:
        """Make this step and all that follow as they are."""
        self.refused, why = True, (str(error).strip().splitlines() or [""])[0][:200]
        out = step(drawn)  # raises where the step itself is at fault
        warnings.warn(
            f"going on without a CUDA graph of the step, which could not be recorded: "
            f"{type(error).__name__}: {why}",
            RuntimeWarning,
            stacklevel=2,
        )
        return out


def _kinds(drawn: Drawn) -> dict[str, tuple | None]:
    return {k: None if v is None else (v.shape, v.dtype) for k, v in drawn.items()}


def _places(drawn: Drawn, device: torch.device) -> Drawn:
    """Tensors of the same kinds, all on the device: of others, a graph would keep the values."""
    return {k: None if v is None else torch.empty_like(v, device=device) for k, v in drawn.items()}
