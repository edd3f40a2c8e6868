"""The batches of a run: which examples each step sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import TensorData
from ..data.mapped import portions, row_blocks
from ..model import FlowMap
from ..objectives.base import Batch
from .config import TrainConfig
from .coupling import Pairing
from .distributed import Processes


class Batches:
    """The data of a run, on its device, and the batches that are drawn from them.

    Each process keeps its share of the examples. All draw the same batch and see all of it.

    Args:
        data: Data set, float32 (examples, ...). One that is mapped from a file stays there if the
            device is a CPU.
        model: Model to train. Labels are used if its network has classes.
        config: Settings of the run.
        processes: Processes that share it.

    Raises:
        ValueError: If the data hold NaN or infinite values, or are fewer than the processes.
    """

    def __init__(
        self, data: TensorData, model: FlowMap, config: TrainConfig, processes: Processes
    ) -> None:
        device = processes.device
        self.config, self.processes = config, processes
        self.device, self.size = device, len(data)
        if self.size < processes.world_size:
            raise ValueError(
                f"{self.size} examples are too few for {processes.world_size} processes: start fewer"
            )
        share = processes.shard(data.x)
        _check_finite(share, data, processes)
        self.mapped = data.mapped if device.type == "cpu" else None
        self.x = share.to(device)
        self.labels = data.labels.to(device) if model.classes and data.labels is not None else None
        self.noise = (
            None if data.noise is None else processes.shard(data.noise).to(device, self.x.dtype)
        )
        self.channels_last = config.channels_last and self.x.ndim == 4

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """Draw the batch of a step, with replacement.

        Args:
            step: Number of the step, from 0.
            generator: Generator of the run.

        Returns:
            The batch, ``batch_size`` examples, the same in every process.
        """
        config, source = self.config, generator.device
        index = torch.randint(self.size, (config.batch_size,), generator=generator, device=source)
        place = index.to(self.device)
        x_0 = self.processes.fetch(self._examples, place)
        if self.channels_last:
            x_0 = x_0.contiguous(memory_format=torch.channels_last)
        noise, labels, known, pair = None, None, None, None
        if self.noise is not None:
            noise = self.processes.fetch(self.noise.__getitem__, place)
        if self.labels is not None:
            chance = torch.rand(len(place), generator=generator, device=source).to(self.device)
            known = self.labels[place]
            labels = torch.where(chance >= config.label_dropout, known, -1)
        if config.coupling == "ot":
            # by the classes of the data: a withheld one is still that of the example
            pair = Pairing(x_0, known)
        return Batch(
            x_0,
            labels=labels,
            index=index,
            noise=noise,
            pair=pair,
            step=step,
            steps=config.steps,
            epoch=step * config.batch_size // self.size,
        )

    def _examples(self, place: Tensor) -> Tensor:
        """Rows of this process's share, on the device."""
        if self.mapped is None:
            return self.x.index_select(0, place)
        out = self.x.new_empty(len(place), *self.x.shape[1:])
        for part in portions(len(place), self.mapped):
            out[part] = self.x[place[part]]
        return out


def _check_finite(share: Tensor, data: TensorData, processes: Processes) -> None:
    """Each process reads its own share of a mapped file, and all raise if one finds something.

    ``TensorData`` has looked at data in memory already; of a large file it reads some rows only.
    """
    if data.mapped is None:
        return
    bad = sum(int((~torch.isfinite(block)).sum()) for block in row_blocks(share, data.mapped))
    bad = int(processes.sum(torch.tensor(bad, device=processes.device)))
    if bad:
        raise ValueError(f"data has {bad} NaN or infinite values; remove them first")
