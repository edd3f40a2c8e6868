"""Anchors: the published recipe, regression on x_0 with an estimate of x_0 as a further input, in each of its readings.

What the available sources say (a reviewer's account of arXiv 2504.20179, and the released code of its predecessor DDDM):
``x_0^(0) ~ N(0, I)``; each step draws fresh ``(x_0, z)``, the estimate is updated, ``x_0^(n+1) <- f(x_0^(n), x_t, t)``, and
the loss compares f with x_0. They leave open whose estimate is meant; ``X0Regression`` has every reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training.distributed import Team

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from ..data import portions, release
from ..io import write_atomic
from ..model import FlowMap
from ..paths import expand
from .base import Batch, Objective, on_line

ANCHORS = ("none", "shared", "per_example", "ground_truth", "self")
DTYPES = ("float32", "float16")
DISTANCES = ("mse", "pseudo_huber", "l1")


def _alone():
    from ..training.distributed import Team

    return Team()


class AnchorStore:
    """One estimate of x_0 for each example of a data set, in a memory-mapped file: RAM does not grow with the data.

    ``AnchorStore.create(folder, n, shape)`` writes ``anchors.npy`` (started as N(0, I), seeded) and ``anchors.json``;
    ``AnchorStore(folder)`` opens them. Rows are read and updated by index. Updates hold a lock of the file, so that several
    processes can share a store; whatever is refused leaves it untouched. With a ``team`` of several, each process has
    a store of its own, in its own folder, with its share of the estimates, and all read and update together.

    Raises FileNotFoundError if there is no store, ValueError if its files do not belong together.
    """

    def __init__(self, folder, team: Team | None = None):
        from filelock import FileLock

        self.folder, self.team = FilePath(folder), team or _alone()
        try:
            self.info = json.loads((self.folder / "anchors.json").read_text(encoding="utf-8"))
            self.rows = np.load(self.folder / "anchors.npy", mmap_mode="r+", allow_pickle=False)
            expected = (self._share(self.info["examples"], self.team), *self.info["shape"])
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no anchor store in {folder}: make one with AnchorStore.create"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the anchor store in {folder} is damaged ({error}): create it again"
            ) from error
        if self.rows.shape != expected or str(self.rows.dtype) != self.info["dtype"]:
            raise ValueError(
                f"the anchor store in {folder} is damaged: anchors.npy has shape {self.rows.shape} and type "
                f"{self.rows.dtype}, anchors.json says {expected} and {self.info['dtype']}"
            )
        self.lock = FileLock(self.folder / "anchors.lock")

    @classmethod
    def create(
        cls,
        folder,
        examples: int,
        shape,
        *,
        dtype: str = "float32",
        seed: int = 0,
        data: str | None = None,
        rule: str = "per_example",
        team: Team | None = None,
    ) -> AnchorStore:
        """Make a store in ``folder``, in place of an older one. dtype: float32 or float16, which takes half the space;
        data: the data set's checksum or name, for ``check``; rule: "per_example", or "ground_truth", the only one under
        which a caller may store targets.
        """
        if examples < 1 or dtype not in DTYPES:
            raise ValueError(
                f"need at least one example and float32 or float16, got {examples!r} and {dtype!r}"
            )
        if rule not in ("per_example", "ground_truth"):
            raise ValueError(
                f"unknown rule {rule!r} for a store: expected per_example or ground_truth"
            )
        folder, shape, team = FilePath(folder), tuple(shape), team or _alone()
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        temporary = folder / f".anchors-{os.getpid()}.npy"
        try:
            rows = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=dtype, shape=(cls._share(examples, team), *shape)
            )
            done = 0
            for start in range(
                0, examples, 1024
            ):  # everyone draws all, so that a share holds what one store would
                size = min(1024, examples - start)
                block = generator.standard_normal((size, *shape), dtype=np.float32)
                own = block[(team.rank - start) % team.world :: team.world]
                rows[done : done + len(own)] = own
                done += len(own)
                release(rows)
            rows.flush()
            del rows
            os.replace(temporary, folder / "anchors.npy")
        finally:
            temporary.unlink(missing_ok=True)
        write_atomic(
            folder / "anchors.json",
            json.dumps(
                {
                    "examples": examples,
                    "shape": list(shape),
                    "dtype": dtype,
                    "seed": seed,
                    "data": data,
                    "rule": rule,
                }
            ),
        )
        return cls(folder, team)

    @staticmethod
    def _share(examples: int, team: Team) -> int:
        return len(range(team.rank, examples, team.world))

    def check(
        self,
        examples: int,
        shape,
        *,
        data: str | None = None,
        dtype: str | None = None,
        rule: str | None = None,
    ) -> None:
        """ValueError unless this store was made for a data set of this size and shape and, where they are given, with this
        checksum, type of numbers and rule."""
        made = (self.info["examples"], tuple(self.info["shape"]))
        if made != (examples, tuple(shape)):
            raise ValueError(
                f"the anchor store in {self.folder} is for {made[0]} examples of shape {made[1]}, the data "
                f"are {examples} of shape {tuple(shape)}"
            )
        if data and self.info["data"] and data != self.info["data"]:
            raise ValueError(
                f"the anchor store in {self.folder} was made for another data set: its checksum is "
                f"{self.info['data'][:12]}, that of the data {data[:12]}"
            )
        for name, wanted in (("dtype", dtype), ("rule", rule)):
            if wanted and wanted != self.info[name]:
                raise ValueError(
                    f"the anchor store in {self.folder} has {name} {self.info[name]}, not {wanted}"
                )

    def read(self, index: Tensor) -> Tensor:
        """Estimates of the examples ``index`` (B,), float32 (B, ...). IndexError or ValueError for a wrong index."""
        self._check_index(index)
        return self.team.fetch(self._read, index, tuple(self.info["shape"]))

    def _read(self, index: Tensor) -> Tensor:
        place = index.cpu().numpy()
        values = np.empty((len(place), *self.info["shape"]), dtype=np.float32)
        for part in portions(len(place), self.rows):
            values[part] = self.rows[place[part]]
        return torch.from_numpy(values).to(index.device)

    def update(self, index: Tensor, estimate: Tensor) -> None:
        """Store new estimates (B, ...) at ``index`` (B,); where an index comes twice, the last one stays.

        Raises IndexError for an index out of range and ValueError for another shape, whole numbers or NaN.
        """
        self._check_index(index)
        if tuple(estimate.shape) != (len(index), *self.info["shape"]):
            raise ValueError(
                f"estimates must have shape {(len(index), *self.info['shape'])}, got {tuple(estimate.shape)}"
            )
        if not estimate.is_floating_point():
            raise ValueError(f"estimates must be floats, got {estimate.dtype}")
        if not bool(torch.isfinite(estimate).all()):
            raise ValueError("estimates hold NaN or infinite values: the store is left as it was")
        values, rows = (
            estimate.detach().float().cpu().numpy().astype(self.info["dtype"]),
            index.cpu().numpy(),
        )
        own = rows % self.team.world == self.team.rank
        with self.lock:
            place, values = rows[own] // self.team.world, values[own]
            for part in portions(len(place), self.rows):
                self.rows[place[part]] = values[part]

    def copy_to(self, folder) -> None:
        """Copy all estimates into ``folder``, in the order of the examples whatever the team.
        Nothing larger than a block is held in memory."""
        file, shape = FilePath(folder) / "anchors.npy", (len(self), *self.info["shape"])
        if self.team.rank == 0:
            np.lib.format.open_memmap(
                file, mode="w+", dtype=self.info["dtype"], shape=shape
            ).flush()
        self.team.wait()
        with self.lock:
            self._blocks(np.load(file, mmap_mode="r+", allow_pickle=False), to_file=True)
        self.team.wait()

    def copy_from(self, folder) -> None:
        """Take all estimates from what ``copy_to`` wrote. ValueError if they are of another shape or type."""
        other = np.load(FilePath(folder) / "anchors.npy", mmap_mode="r", allow_pickle=False)
        expected = (len(self), *self.info["shape"])
        if other.shape != expected or other.dtype != self.rows.dtype:
            raise ValueError(
                f"the estimates in {folder} have shape {other.shape} and type {other.dtype}, this store "
                f"{expected} and {self.rows.dtype}"
            )
        with self.lock:
            self._blocks(other, to_file=False)

    def _blocks(self, whole: np.ndarray, to_file: bool) -> None:
        """Move this process's share to or from the rows of all, block by block."""
        mine = whole[self.team.rank :: self.team.world]
        for start in range(0, len(mine), 1024):
            part = slice(start, start + 1024)
            if to_file:
                mine[part] = self.rows[part]
            else:
                self.rows[part] = mine[part]
            release(self.rows)
            release(whole)
        if to_file:
            whole.flush()

    def _check_index(self, index: Tensor) -> None:
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"index must be whole numbers of shape (B,), got {index.dtype} {tuple(index.shape)}"
            )
        n = self.info["examples"]
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < n):
            raise IndexError(
                f"index must lie in [0, {n}), got {int(index.min())} to {int(index.max())}"
            )

    def __len__(self) -> int:
        return self.info["examples"]


@dataclass
class X0Regression(Objective):
    """Regression on the data: ``E d(f(x_t, t; a), x_0)``, ``f = x_t - t u(x_t, t, 0; a)`` (arXiv 2504.20179 as the
    available sources describe it; its predecessor DDDM, arXiv 2405.13540).

    f is the jump to the data, but what it learns is not the flow map: for d = "mse" the minimiser is the posterior mean
    ``E[x_0 | x_t, a]``, for "l1" the median of each element, for "pseudo_huber" something between. At t = t_max, where x_t
    is pure noise, without an anchor that is the mean of the data whatever the noise.

    anchor: what a is. All but "none" need a network built with ``anchor=True``.
        "none": no a.   "shared": one running batch of estimates, each step's output being the next one's anchor, whatever
        the examples.   "per_example": each example's own last estimate (``AnchorStore``), at first N(0, I).
        "ground_truth": the same, but x_0 itself is stored, as the released code of DDDM does.
        "self": the network's own estimate in the same step, from an anchor N(0, I).
    distance: "mse", "l1", or "pseudo_huber", ``sqrt(e^2 + c^2) - c``, element by element.
    blend: DDDM's loss ``w d(f, x_0) + (1 - w) d(f, a)``, ``w = 1 / (epoch + 1)``.
    time_density: as for ``Path.sample_times``, None for the path's own; start_share: examples at the start of sampling.
    store_dtype: float32, or float16 for a store of half the size.
    """

    anchor: str = "none"
    distance: str = "mse"
    c: float = 1.4e-4
    blend: bool = False
    time_density: tuple[float, float] | str | None = None
    start_share: float = 0.1
    store_dtype: str = "float32"

    def __post_init__(self):
        for name, allowed in (
            ("store_dtype", DTYPES),
            ("anchor", ANCHORS),
            ("distance", DISTANCES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )
        if self.blend and self.anchor == "none":
            raise ValueError("blend compares the output with the anchor: it needs one")
        self.store: AnchorStore | None = None
        self._temporary = None
        self._running: Tensor | None = None

    def config(self) -> dict:
        return asdict(self)

    def prepare(
        self, model: FlowMap, data, folder=None, seed: int = 0, team: Team | None = None
    ) -> None:
        """Make the store where the rule needs one, in ``folder`` or in a temporary one that goes with this objective; or
        take ``self.store``, set before, if it was made for these data. ValueError if it was not."""
        import tempfile

        if (self.anchor != "none") != model.anchored:
            raise ValueError(
                f"X0Regression(anchor={self.anchor!r}) needs a network built with "
                f"anchor={self.anchor != 'none'}"
            )
        self._running = None
        if self.anchor in ("per_example", "ground_truth"):
            if (
                self.store is None or self._temporary is not None
            ):  # a store of one's own starts afresh with each run
                if folder is None:
                    self._temporary = tempfile.TemporaryDirectory(prefix="anchors-")
                    folder = self._temporary.name
                self.store = AnchorStore.create(
                    folder,
                    len(data),
                    model.data_shape,
                    dtype=self.store_dtype,
                    seed=seed,
                    data=data.sha256,
                    rule=self.anchor,
                    team=team,
                )
            self.store.check(
                len(data),
                model.data_shape,
                data=data.sha256,
                dtype=self.store_dtype,
                rule=self.anchor,
            )

    def state(self) -> dict[str, Tensor]:
        return {} if self._running is None else {"running": self._running}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._running = state.get("running")

    def save_files(self, folder) -> None:
        if self.store is not None:
            self.store.copy_to(folder)

    def load_files(self, folder) -> None:
        if self.store is not None:
            self.store.copy_from(folder)

    def _anchor(self, batch: Batch, generator: torch.Generator | None) -> Tensor | None:
        x_0 = batch.x_0
        if self.anchor == "none":
            return None
        if self.anchor in ("per_example", "ground_truth"):
            if self.store is None or batch.index is None:
                raise ValueError(
                    f"anchor={self.anchor!r} keeps one estimate for each example: train it with `fit`, or "
                    "call `prepare` and give batches with an index"
                )
            return self.store.read(batch.index).to(x_0)
        if (
            self.anchor == "shared"
            and self._running is not None
            and self._running.shape == x_0.shape
        ):
            return self._running.to(x_0)
        source = generator.device if generator is not None else "cpu"
        return torch.randn(x_0.shape, generator=generator, device=source).to(x_0)

    def _distance(self, f: Tensor, other: Tensor) -> Tensor:
        e = f - other
        if self.distance == "mse":
            return e.square().mean()
        return (
            e.abs().mean()
            if self.distance == "l1"
            else ((e.square() + self.c**2).sqrt() - self.c).mean()
        )

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        x_0, path = batch.x_0, model.path
        source = generator.device if generator is not None else "cpu"
        t = path.tau(
            path.sample_times(
                len(x_0), density=self.time_density, generator=generator, device=x_0.device
            )
        )
        t = torch.where(
            torch.rand(len(x_0), generator=generator, device=source).to(t.device)
            < self.start_share,
            torch.full_like(t, path.tau_max),
            t,
        )
        drawn = {
            "x_0": x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "labels": batch.labels,
            "anchor": self._anchor(batch, generator),
        }
        # a tensor, not a number: a compiled loss would be compiled again for every epoch
        return (
            {**drawn, "weight": torch.full_like(t, 1 / (batch.epoch + 1))} if self.blend else drawn
        )

    def loss(
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        labels: Tensor | None,
        anchor: Tensor | None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x_t = on_line(x_0, z, t)

        def f(anchor: Tensor | None) -> Tensor:
            return x_t - expand(t, x_t) * model(x_t, t, torch.zeros_like(t), anchor, labels)

        if self.anchor == "self":
            with torch.no_grad():
                anchor = f(anchor)
        estimate = f(anchor)
        loss = self._distance(estimate, x_0)
        if weight is not None:
            loss = weight[0] * loss + (1 - weight[0]) * self._distance(estimate, anchor)
        return loss, estimate.detach()

    def update_state(
        self, batch: Batch, drawn: dict, loss: Tensor, estimate: Tensor | None
    ) -> None:
        if bool(
            torch.isfinite(loss)
        ):  # a store must not take the estimates of a run that has failed
            if self.anchor == "shared":
                self._running = estimate
            elif self.store is not None:
                self.store.update(
                    batch.index, batch.x_0 if self.anchor == "ground_truth" else estimate
                )
