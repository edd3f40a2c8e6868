"""``SeriesFlow``: learn windows of a series, draw new ones, and go on with one that has begun."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import hub, pretrained
from ..model import FlowMap
from ..training import Callback, TrainConfig
from ..utils import check_int, check_seed
from .asked import given_values, lay, phase_of, where_to_begin
from .calendar import check_features, features
from .clock import spacing
from .decoders import SeriesDecoder
from .given import sample_given
from .learning import SERIES_NETWORKS, Encoded, Learning
from .regular import EPOCH, OnGrid, on_grid
from .scales import SCALES, ChannelScale
from .storage import Storage
from .windows import Windows, windows

#: Fewest windows that are learned.
FEWEST_WINDOWS = 20
#: Most entities that a network tells apart; of more, all are learned as one.
MOST_ENTITIES = 64
#: Settings that are kept with a model.
SETTINGS = (
    "length",
    "every",
    "time",
    "entity",
    "channels",
    "network",
    "width",
    "calendar",
    "conditions",
    "steps",
    "batch_size",
    "seed",
    "coupling",
    "polish",
    "scale",
    "dropout",
    "beyond_support",
    "stride",
    "max_gap",
    "bounds",
    "timezone",
    "offset",
)
#: Settings of the windows that a data frame is cut into.
CUTTING = ("stride", "max_gap", "bounds", "timezone", "offset")


class SeriesFlow:
    """A model of windows of a series: ``fit(df)``, then ``sample(n)`` gives new windows.

    Channels come back in their units, types and rounding, within the measured range. With
    ``conditions`` parts of a window can be given, each in ``nfe`` network calls, as without:
    ``forecast(df)`` goes on with the last rows of a table, and ``sample(n, given={"set_1": plan})``
    draws windows around given channels.

    Several entities are told apart by one network, as classes.

    Args:
        length: Steps of a window, at least 4.
        every: Length of a step.
        time: Name of the column of time stamps.
        entity: Name of the column that says whose measurement it is, or None.
        channels: Names of the measured columns; None takes all columns of numbers.
        network: "unet", convolutions at several resolutions, or "transformer", attention over steps.
        width: Width of the network. None goes by the number of channels.
        calendar: What the network is told of the moment of each step, some of "hour", "weekday" and
            "month" (the time of the year). Samples then have moments, drawn from the data or asked for.
        conditions: Whether parts can be given. Without it, all of the training goes into whole
            windows.
        steps: Training steps. None goes by the number of windows.
        batch_size: Windows a training step.
        seed: Seed of the weights and of the training.
        coupling: "ot" pairs noise and windows in each batch, "independent" does not.
        polish: Share of the steps, the last ones, in which samples are also matched to the windows
            as distributions (``EnergyMatching``).
        scale: "scores" makes each channel standard normal by its ranks; "standard" takes its mean
            and standard deviation away.
        dropout: Of the U-Net, see ``UNet1d``.
        beyond_support: Whether values outside the measured range may be made.
        stride: As in ``windows``: steps between the starts of two windows.
        max_gap: As in ``windows``: longest gap that is filled.
        bounds: As in ``windows``: possible values of channels.
        timezone: As in ``windows``: zone of stamps that carry none. The calendar goes by it.
        offset: As in ``windows``: where windows begin.

    Attributes:
        model: The trained ``FlowMap``, or None.
        scales: The scale of each channel.
        entities: Names of the entities that the network tells apart, in the order of their classes.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        length: int = 24,
        every: str | pd.Timedelta = "1h",
        time: str = "time",
        entity: str | None = None,
        channels: Sequence[str] | None = None,
        *,
        network: str = "unet",
        width: int | None = None,
        calendar: Sequence[str] = (),
        conditions: bool = True,
        steps: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        coupling: str = "ot",
        polish: float = 0.25,
        scale: str = "scores",
        dropout: float = 0.0,
        beyond_support: bool = False,
        stride: int | None = None,
        max_gap: int = 3,
        bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
        timezone: str | None = None,
        offset: str = "0h",
    ) -> None:
        self.length, self.every = check_int("length", length, 4), str(spacing("every", every))
        self.time, self.entity = time, entity
        self.channels = None if channels is None else list(channels)
        for name, value, known in (("network", network, SERIES_NETWORKS), ("scale", scale, SCALES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.network, self.scale = network, scale
        self.width = None if width is None else check_int("width", width)
        self.calendar, self.conditions = check_features(calendar), bool(conditions)
        self.steps = None if steps is None else check_int("steps", steps)
        self.batch_size, self.seed = check_int("batch_size", batch_size, 2), check_seed(seed)
        self.coupling, self.polish, self.dropout = coupling, float(polish), float(dropout)
        if not 0 <= self.polish <= 1:
            raise ValueError(f"polish must be in [0, 1], got {polish!r}")
        TrainConfig(1, batch_size=self.batch_size, coupling=coupling)  # it checks them
        self.beyond_support = bool(beyond_support)
        self.stride = None if stride is None else check_int("stride", stride)
        self.max_gap, self.timezone = check_int("max_gap", max_gap, 0), timezone
        self.bounds = None if bounds is None else dict(bounds)
        self.offset = str(offset)
        self.model: FlowMap | None = None
        self.scales: list[ChannelScale] = []
        self.entities: list[Any] = []
        self._learned: dict[str, Any] = {}

    # ------------------------------------------------------------------ training

    def fit(
        self,
        data: pd.DataFrame | Windows,
        progress: bool = False,
        device: Any = "auto",
        callbacks: Sequence[Callback] = (),
    ) -> SeriesFlow:
        """Learn a long table, or windows that were cut from one.

        Args:
            data: One row for each entity and moment, see ``windows``; or windows.
            progress: Whether a bar is shown.
            device: Where training runs; see ``TrainConfig``.
            callbacks: As in ``TrainConfig``, of two trainings one after the other: the last one,
                by ``polish``, goes on with the model of the first. A ``Validation`` takes a
                held-out table, or windows.

        Returns:
            Itself.

        Raises:
            ValueError: If there is too little to learn from, or the data do not fit the settings:
                one line that says why and what to do.
        """
        cut = self._cut(data)
        if len(cut) < FEWEST_WINDOWS:
            raise ValueError(
                f"{len(cut)} windows are too few to learn from: give {FEWEST_WINDOWS} at least, by more rows, a "
                "smaller length, or a smaller stride"
            )
        observed = np.ones(cut.values.shape, bool) if cut.observed is None else cut.observed
        scales = [
            ChannelScale.fit(
                cut.values[:, :, i],
                self.scale,
                self.beyond_support,
                observed[:, :, i] if observed[:, :, i].any() else None,
            )
            for i in range(len(cut.channels))
        ]
        names = [] if cut.entities is None else sorted(set(cut.entities), key=str)
        if len(names) > MOST_ENTITIES:
            warnings.warn(
                f"{len(names)} entities are more than {MOST_ENTITIES}: they are learned as one, and not told "
                "apart",
                UserWarning,
                stacklevel=2,
            )
        names = names if 2 <= len(names) <= MOST_ENTITIES else []
        encoded = self._encoded(cut, scales, names)
        labels = encoded.labels

        def encode(held_out: Any) -> Encoded:
            other = self._cut(held_out)
            if tuple(other.channels) != tuple(cut.channels):
                raise ValueError(
                    f"the held-out windows have the channels {list(other.channels)}, and the model "
                    f"{list(cut.channels)}"
                )
            return self._encoded(other, scales, names)

        how = Learning(**{f.name: getattr(self, f.name) for f in fields(Learning)})
        model = how.train(encoded, len(names), progress, device, callbacks, encode)
        self.model, self.scales, self.entities = model, scales, names
        self._learned = {
            "channels": list(cut.channels),
            "dtypes": dict(cut.dtypes),
            "timezone": cut.timezone,
            "phase": phase_of(cut),
            "origin": None if cut.origin is None else cut.origin.isoformat(),
            "every": int(cut.every.value),
            "shares": [float((labels == i).float().mean()) for i in range(len(names))]  # type: ignore[union-attr]
            if names
            else [],
            "positions": cut.positions.tolist() if self.calendar else [],
            "labels": labels.tolist() if self.calendar and labels is not None else [],
        }
        return self

    def _encoded(self, cut: Windows, scales: list[ChannelScale], names: list[Any]) -> Encoded:
        """Return windows as the network sees them, with the classes of their entities."""
        labels = told = None
        if names:
            owners = [None] * len(cut) if cut.entities is None else list(cut.entities)
            if unknown := set(owners) - set(names):
                raise ValueError(f"no window to learn is of {self.entity} {unknown.pop()!r}")
            labels = torch.tensor([names.index(name) for name in owners])
        if self.calendar:
            if cut.stamps is None:
                raise ValueError("these windows belong to no date, so there is no calendar to tell")
            calendar = self._calendar(cut.stamps, cut.timezone).reshape(len(cut), cut.length, -1)
            told = torch.from_numpy(calendar).float()
        rows = np.stack([s.encode(cut.values[:, :, i]) for i, s in enumerate(scales)], axis=2)
        return Encoded(torch.from_numpy(rows).float(), told, labels)

    def _cut(self, data: pd.DataFrame | Windows) -> Windows:
        """Return windows, cut by the settings, or given ones that fit them."""
        if not isinstance(data, Windows):
            settings = {name: getattr(self, name) for name in CUTTING}
            return windows(
                data,
                self.time,
                self.entity,
                self.channels,
                every=self.every,
                length=self.length,
                **settings,
            )
        if data.length != self.length:
            raise ValueError(
                f"the windows have {data.length} steps and the model {self.length}: give "
                f"SeriesFlow(length={data.length})"
            )
        if self.channels is not None and list(data.channels) != self.channels:
            raise ValueError(
                f"the windows have the channels {list(data.channels)}, and the model {self.channels}"
            )
        if not np.isfinite(data.values).all():
            raise ValueError("the windows hold NaN or infinite values: leave those windows out")
        self.time, self.entity, self.every = data.time, data.entity, str(data.every)
        self.timezone = self.timezone or data.timezone
        if data.origin is not None:
            self.offset = str(data.origin - EPOCH)
        return data

    def _calendar(self, stamps: pd.DatetimeIndex, timezone: str) -> np.ndarray:
        return features(stamps, self.calendar, timezone)

    # ------------------------------------------------------------------ sampling

    def sample(
        self,
        n: int,
        seed: int = 0,
        nfe: int = 1,
        *,
        given: Any = None,
        entity: Any = None,
        starts: Any = None,
    ) -> Windows:
        """Draw new windows.

        Args:
            n: How many. More windows only add to the end, for the same seed.
            seed: Seed of the noise.
            nfe: Network calls a window.
            given: What is given in the windows, in the units of the data: values of some channels,
                ``{"set_1": plan}`` with plans (T,) or (n, T); or an array (T, C) or (n, T, C) with
                NaN where nothing is given.
            entity: Whose windows: a name, or n of them. None draws them as often as in the data.
            starts: Moments at which the windows begin, one or n of them, for a model with a
                calendar. None draws them from the data.

        Returns:
            The windows; ``frame()`` makes a long table of them. They have moments where the model
            was told a calendar, else they belong to no date.

        Raises:
            ValueError: If nothing was fitted, or something is asked for that the model cannot give.
        """
        learned = self._fitted()
        n, seed = check_int("n", n), check_seed(seed)
        rng = np.random.default_rng([self.seed, seed, 3])
        labels, positions = self._whose(n, rng, entity, starts)
        known = None
        if given is not None:
            if not self.conditions:
                raise ValueError(
                    "this model was fitted with conditions=False, so nothing can be given: fit one with "
                    "conditions=True"
                )
            known = given_values(given, n, self.length, learned["channels"])
        return self._draw(n, seed, nfe, known, labels, positions, learned)

    def forecast(
        self,
        history: pd.DataFrame,
        n: int = 1,
        seed: int = 0,
        nfe: int = 1,
        *,
        horizon: int | None = None,
        future: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Go on with the last rows of each entity.

        The first part of a window is what was measured, and the rest is drawn. A window begins
        where those of the training do: with a ``stride`` of ``length``, a forecast is the rest of
        the window that has begun, such as of the day.

        Args:
            history: Rows with the columns of the data. Short gaps are filled, as in training; what
                longer ones lack is drawn too.
            n: Windows for each entity.
            seed: Seed of the noise.
            nfe: Network calls a window.
            horizon: Steps to draw, below ``length``. None takes half a window or what is nearest.
            future: Rows of later moments, of which the values that are there are given, such as
                planned set-points.

        Returns:
            A long table of the steps after each entity's last row: ``sample``, from 0 to n - 1, the
            entity, the time, and the channels.

        Raises:
            ValueError: If nothing was fitted, or without conditions; if the history has other
                columns or entities, or no window begins where it is needed.
        """
        learned = self._fitted()
        n, seed = check_int("n", n), check_seed(seed)
        if not self.conditions or learned["origin"] is None:
            raise ValueError(
                "this model goes on with nothing: fit a table with times, with conditions=True"
            )
        if horizon is not None and not 1 <= check_int("horizon", horizon) < self.length:
            raise ValueError(f"horizon must be below {self.length}, a window, got {horizon}")
        names, every = learned["channels"], pd.Timedelta(learned["every"], "ns")
        parts = self._on_grid(history, names, every)
        later = {}
        if future is not None:
            kept = [name for name in names if name in future.columns]
            if not kept:
                raise ValueError(f"future has no channel of the model: expected some of {names}")
            columns = [names.index(name) for name in kept]
            later = {one.entity: one for one in self._on_grid(future, kept, every).series}
        given, labels, positions, cuts = [], [], [], []
        for one in parts.series:
            end = one.first + len(one.values)
            begin = where_to_begin(end, horizon, self.length, learned["phase"])
            window = np.full((self.length, len(names)), np.nan)
            lay(window, one.values, one.first - begin, slice(None))
            if one.entity in later:
                other = later[one.entity]
                lay(window, other.values, other.first - begin, columns, after=end - begin)
            if bool(np.isnan(window[: end - begin]).all()):
                where = "" if one.entity is None else f" of {one.entity!r}"
                raise ValueError(
                    f"the last {end - begin} steps of the history{where} hold no value: expected "
                    "measurements up to the moment to go on from"
                )
            given.append(window)
            labels.append(self._class(one.entity) if self.entities else 0)
            positions.append(begin)
            cuts.append(slice(end - begin, None if horizon is None else end - begin + horizon))
        which = np.repeat(np.arange(len(given)), n)
        made = self._draw(
            len(which),
            seed,
            nfe,
            np.stack(given)[which],
            np.array(labels)[which] if self.entities else None,
            np.array(positions)[which],
            learned,
        )
        if self.entity is not None and made.entities is None:
            names_of = np.array([one.entity for one in parts.series], dtype=object)
            made = replace(made, entities=names_of[which], entity=self.entity)
        table = made.frame()
        step = np.tile(np.arange(self.length), len(which))
        first, stop = (
            np.repeat([getattr(c, end) or self.length for c in cuts], n * self.length)
            for end in ("start", "stop")
        )
        table = table[(step >= first) & (step < stop)].reset_index(drop=True)
        table["window"] = table["window"] % n
        return table.rename(columns={"window": "sample"})

    def _on_grid(self, table: pd.DataFrame, names: list[str], every: pd.Timedelta) -> OnGrid:
        """Return a table on the grid of the training, of some channels."""
        bounds = {name: pair for name, pair in (self.bounds or {}).items() if name in names}
        return on_grid(
            table,
            self.time,
            self.entity,
            names,
            every,
            self.max_gap,
            bounds,
            self.timezone,
            self.offset,
        )

    def _whose(
        self, n: int, rng: np.random.Generator, entity: Any, starts: Any
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the classes and the first steps of n windows, drawn where nothing is asked for."""
        learned = self._learned
        labels = None
        if entity is not None:
            if not self.entities:
                raise ValueError("this model tells no entities apart: give entity=None")
            asked = [entity] * n if np.ndim(entity) == 0 else list(entity)
            if len(asked) != n:
                raise ValueError(f"entity must be one name or {n}, got {len(asked)}")
            labels = np.array([self._class(name) for name in asked])
        chance = rng.random((n, 2))
        if starts is not None:
            if not self.calendar:
                raise ValueError("this model was told no calendar, so its windows have no moments")
            moments = pd.DatetimeIndex(np.atleast_1d(pd.to_datetime(starts, utc=True)))
            if len(moments) not in (1, n):
                raise ValueError(f"starts must be one moment or {n}, got {len(moments)}")
            since = (moments - pd.Timestamp(learned["origin"])) // pd.Timedelta(
                learned["every"], "ns"
            )
            positions = np.broadcast_to(since.to_numpy(), n).copy()
        elif self.calendar:
            rows = np.arange(len(learned["positions"]))
            among = np.array(learned["labels"])
            positions = np.array(learned["positions"])[(chance[:, 0] * len(rows)).astype(int)]
            if self.entities and labels is None:  # an entity goes with its own moments
                labels = among[(chance[:, 0] * len(rows)).astype(int)]
        else:
            positions = None
        if self.entities and labels is None:
            edges = np.cumsum(learned["shares"])[:-1]
            labels = np.searchsorted(edges, chance[:, 1], side="right")
        return labels, positions

    def _class(self, name: Any) -> int:
        if name not in self.entities:
            known = ", ".join(map(str, self.entities[:8]))
            raise ValueError(f"the model knows no {self.entity} {name!r}: it learned {known}")
        return self.entities.index(name)

    def _draw(
        self,
        n: int,
        seed: int,
        nfe: int,
        given: np.ndarray | None,
        labels: np.ndarray | None,
        positions: np.ndarray | None,
        learned: dict[str, Any],
    ) -> Windows:
        """Draw n windows, with what is given kept as it was given."""
        assert self.model is not None
        names, every = learned["channels"], pd.Timedelta(learned["every"], "ns")
        origin = None if learned["origin"] is None else pd.Timestamp(learned["origin"])
        values = flags = None
        if given is not None or self.calendar:
            known = np.full((1, self.length, len(names)), np.nan) if given is None else given
            there = ~np.isnan(known)
            beyond = sum(s.outside(known[:, :, i]) for i, s in enumerate(self.scales))
            if beyond and self.scale == "scores":
                warnings.warn(
                    f"{beyond:,} given values lie outside the measured range: the model takes the nearest "
                    "measured value for each",
                    UserWarning,
                    stacklevel=3,
                )
            z = np.stack([s.encode(known[:, :, i]) for i, s in enumerate(self.scales)], axis=2)
            parts: list[np.ndarray] = [np.where(there, z, 0.0)]
            marks: list[np.ndarray] = [there.astype(float)]
            if self.calendar:
                assert positions is not None and origin is not None
                steps = (positions[:, None] + np.arange(self.length)).ravel()
                stamps = pd.DatetimeIndex(origin + steps * every)
                told = self._calendar(stamps, learned["timezone"]).reshape(n, self.length, -1)
                marks = [np.broadcast_to(marks[0], (n, *marks[0].shape[1:]))]
                parts = [np.broadcast_to(parts[0], (n, *parts[0].shape[1:])), told]
                marks.append(np.ones((n, self.length, 1)))
            values, flags = (torch.from_numpy(np.concatenate(a, 2)).float() for a in (parts, marks))
        blocks = sample_given(
            self.model,
            n,
            nfe=nfe,
            seed=seed,
            values=values,
            flags=flags,
            labels=None if labels is None else torch.from_numpy(labels),
        )
        z = np.concatenate([block[:, :, : len(names)].numpy() for block in blocks]).astype(float)
        out = np.stack([s.decode(z[:, :, i]) for i, s in enumerate(self.scales)], axis=2)
        if given is not None:
            out = np.where(np.isnan(given), out, given)
        dated = positions is not None
        return Windows(
            values=out,
            channels=tuple(names),
            positions=positions if positions is not None else np.zeros(n, dtype=np.int64),
            every=every,
            origin=origin if dated else None,
            entities=None
            if labels is None
            else np.array([self.entities[i] for i in labels], dtype=object),
            time=self.time,
            entity=self.entity if labels is not None else None,
            dtypes=learned["dtypes"],
            timezone=learned["timezone"],
        )

    def _fitted(self) -> dict[str, Any]:
        if self.model is None:
            raise ValueError(
                "nothing was fitted yet: call fit(df) first, or SeriesFlow.load(folder)"
            )
        return self._learned

    # ------------------------------------------------------------------ files

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model into a folder, as ``model.safetensors`` and ``config.json``.

        Args:
            folder: Where the files go; it is made if it is missing.

        Raises:
            ValueError: If nothing was fitted yet, or entities have names that JSON cannot hold.
            OSError: If the folder cannot be written.
        """
        series = self.config()
        assert self.model is not None
        self.model.save_pretrained(folder, series=series)

    def push_to_hub(self, name: str, *, license: str | None = None, **options: Any) -> str:
        """Send the model to a hub, with a card that names its channels.

        The model's ``config.json`` holds values of the data: of each column the distinct ones, or
        thousands of them. Who may read the model may read these.

        Args:
            name: The repository, ``user/model``; it is made if it is missing.
            license: By the hub's short name, such as "mit".
            **options: Of ``FlowMap.push_to_hub``: private, which is True, token, branch, manifest.

        Returns:
            The address of the commit, which ends in its number: the ``revision`` to load.

        Raises:
            ValueError: If nothing was fitted yet, or the name is none.
            OSError: If the hub refuses, or cannot be reached.
            ImportError: If huggingface_hub is missing, of the extra ``hub``.
        """
        series = self.config()
        assert self.model is not None
        facts = {"channels": ", ".join(self._learned["channels"])} | self.model.facts()
        facts["settings"] = ", ".join(f"{k}={v!r}" for k, v in series["settings"].items())
        use = f'flow = ifl.SeriesFlow.load("{name}", revision="...")\nwindows = flow.sample(100)'
        told = options.get("manifest")
        text = hub.card(name, facts, told, use=use, notes=hub.VALUES, license=license)
        return self.model.push_to_hub(name, card=text, series=series, **options)

    def config(self) -> dict[str, Any]:
        """Return what is kept beside the network, as JSON values: settings, scales, what was learned.

        Raises:
            ValueError: If nothing was fitted yet.
        """
        learned = self._fitted()
        return {
            "settings": {name: getattr(self, name) for name in SETTINGS},
            "scales": [scale.config() for scale in self.scales],
            "entities": [
                name.item() if isinstance(name, np.generic) else name for name in self.entities
            ],
            "learned": learned,
        }

    def decoder(self) -> tuple[SeriesDecoder, dict[str, Any]]:
        """Return the decoding of windows as tensors, for ``iflow_lib.export``.

        Returns:
            A module from the numbers of windows (B, T, C) to values in their units; and what these
            are, as JSON values: channels with their types, entities with their shares of the data,
            and for a model with a calendar the steps at which the windows of the data begin,
            ``positions`` counted from ``origin`` in steps of ``every``, both in nanoseconds.

        Raises:
            ValueError: If nothing was fitted yet.
        """
        learned = self._fitted()
        names, dtypes = learned["channels"], learned["dtypes"]
        told = {key: learned[key] for key in ("every", "timezone", "shares")}
        origin = learned["origin"]
        told["origin"] = None if origin is None else pd.Timestamp(origin).as_unit("ns").value
        if self.calendar:
            told |= {key: learned[key] for key in ("positions", "labels")}
        return SeriesDecoder(self.scales), {
            "kind": "series",
            "channels": [
                {"name": name, "dtype": Storage(dtypes.get(name, "float64")).numpy_dtype}
                for name in names
            ],
            "length": self.length,
            "time": self.time,
            "entity": self.entity,
            "entities": self.config()["entities"],
            "calendar": list(self.calendar),
            **told,
        }

    @classmethod
    def load(
        cls, folder: str | PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> SeriesFlow:
        """Read what ``save`` wrote, or ``push_to_hub`` sent.

        Args:
            folder: The folder; or ``user/model``, a repository of a hub.
            revision: Of a repository, see ``FlowMap.from_pretrained``.
            token: Of a repository, see ``FlowMap.from_pretrained``.

        Returns:
            The model, which gives the same samples to the bit.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, or the folder holds another kind of model.
            OSError: If a repository cannot be fetched.
            ImportError: If it is one and huggingface_hub is missing, of the extra ``hub``.
        """
        folder = hub.local_folder(folder, revision, token)
        series = pretrained.read_config(folder)["info"].get("series")
        if series is None:
            raise ValueError(f"{folder} holds no SeriesFlow: expected a folder from its save")
        model = FlowMap.from_pretrained(folder)
        flow = cls(**series["settings"])
        flow.model, flow.entities, flow._learned = model, series["entities"], series["learned"]
        flow.scales = [ChannelScale.build(config) for config in series["scales"]]
        return flow

    def __repr__(self) -> str:
        """Return what was fitted."""
        if self.model is None:
            return f"SeriesFlow({self.length} steps of {self.every}, nothing fitted yet)"
        return (
            f"SeriesFlow({self.length} steps of {self.every} x {', '.join(self._learned['channels'])}, "
            f"{self.model.parameter_count:,} parameters)"
        )
