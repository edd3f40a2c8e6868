"""``TableFlow``: learn a data frame, and draw new rows of it in one network call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import hub, pretrained
from ..data import TensorData
from ..model import FlowMap
from ..networks import MLP
from ..objectives import EnergyMatching, IntegralIdentity, Objective
from ..paths import RectifiedFlow
from ..training import Callback, TrainConfig, fit
from ..utils import check_int, check_seed
from .columns import ColumnCode, Ranks
from .decoders import TableDecoder, left_out
from .given import GivenParts, WithGiven, held_out_frames, sample_given
from .leftout import LeftOut
from .schema import LEARNED, Schema, check_frame, names, schema

#: Fewest rows that are learned, and under how many a warning says so.
FEWEST_ROWS, FEW_ROWS = 10, 100
#: Most numbers that a row may become.
MOST_NUMBERS = 4096
#: Rows that a small table is repeated to, each time with other places within shared values.
REPEATED_ROWS = 8192
#: Rows that are decoded at a time.
CHUNK = 65536
#: Values (n,) of a column, and where they are missing.
Cells = tuple[np.ndarray, np.ndarray]
#: Names of the settings that are kept with a model.
SETTINGS = (
    "steps",
    "hidden",
    "layers",
    "seed",
    "conditions",
    "beyond_support",
    "batch_size",
    "coupling",
    "polish",
    "most_classes",
)


class TableFlow:
    """A model of a data frame: ``fit(df)``, then ``sample(n)`` gives a frame of the same form.

    Column types, categories, rounding and the observed range come back. Missing values are learned
    with the values. ``sample(n, condition={"species": "Adelie"})`` draws rows with given columns,
    and ``impute(df)`` fills in missing cells; both in ``nfe`` network calls a row, as without.

    Args:
        schema: What each column is, as ``schema(df)`` says, perhaps edited. None looks itself.
        steps: Training steps. None goes by the size of the table.
        hidden: Width of the network. None goes by the size of the table.
        layers: Hidden layers of the network.
        seed: Seed of the weights, of the training, and of places within shared values.
        conditions: Whether columns can be given, and missing cells filled in. Without it, all of
            the training goes into whole rows.
        beyond_support: Whether numbers outside the observed range may be made.
        batch_size: Rows a training step.
        coupling: "ot" pairs noise and rows in each batch, "independent" does not; see
            ``TrainConfig``.
        polish: Share of the steps, the last ones, in which samples are also matched to the rows
            as distributions (``EnergyMatching``).
        most_classes: Most classes of a column that become one number each; above, they become
            normal scores of their order, by frequency where they have none.

    Attributes:
        model: The trained ``FlowMap``, or None.
        schema: The schema in use, or None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        schema: Schema | None = None,
        steps: int | None = None,
        hidden: int | None = None,
        *,
        layers: int = 4,
        seed: int = 0,
        conditions: bool = True,
        beyond_support: bool = False,
        batch_size: int = 256,
        coupling: str = "ot",
        polish: float = 0.3,
        most_classes: int = 16,
    ) -> None:
        if schema is not None and not isinstance(schema, Schema):
            raise ValueError(
                f"schema must be what schema(df) returns, got a {type(schema).__name__}"
            )
        self.schema = self._wanted = schema
        self.steps = None if steps is None else check_int("steps", steps)
        self.hidden = None if hidden is None else check_int("hidden", hidden)
        self.layers, self.seed = check_int("layers", layers), check_seed(seed)
        self.conditions, self.beyond_support = bool(conditions), bool(beyond_support)
        self.batch_size = check_int("batch_size", batch_size)
        self.coupling, self.polish = coupling, float(polish)
        self.most_classes = check_int("most_classes", most_classes)
        if not 0 <= self.polish <= 1:
            raise ValueError(f"polish must be in [0, 1], got {polish!r}")
        TrainConfig(1, batch_size=self.batch_size, coupling=coupling)  # it checks them
        self.model: FlowMap | None = None
        self._codes: list[ColumnCode] = []
        self._left: list[LeftOut] = []
        self._names: list[Any] = []
        self._axes: tuple[Any, Any] = (
            None,
            None,
        )  # names of the index and of the columns

    # ------------------------------------------------------------------ training
    def fit(
        self,
        frame: pd.DataFrame,
        progress: bool = False,
        device: Any = "auto",
        callbacks: Sequence[Callback] = (),
    ) -> TableFlow:
        """Learn a data frame.

        Args:
            frame: The rows. Its index is not learned: samples have a fresh one, of the same name.
            progress: Whether a bar is shown.
            device: Where training runs; see ``TrainConfig``.
            callbacks: As in ``TrainConfig``, of two trainings one after the other: the last one,
                by ``polish``, goes on with the model of the first. A ``Validation`` takes held-out
                rows, with the same columns.

        Returns:
            Itself.

        Raises:
            ValueError: If the frame cannot be learned: one line that says why and what to do.
        """
        check_frame(frame)
        if len(frame.columns) > MOST_NUMBERS:
            raise ValueError(
                f"{len(frame.columns):,} columns are more than {MOST_NUMBERS:,}: drop some"
            )
        if len(frame) < FEWEST_ROWS:
            raise ValueError(
                f"{len(frame)} rows are too few to learn from: give {FEWEST_ROWS} at least, hundreds for "
                "samples that pass for them"
            )
        if len(frame) < FEW_ROWS:
            warnings.warn(
                f"{len(frame)} rows are few: expect samples close to these rows, and give hundreds",
                UserWarning,
                stacklevel=2,
            )
        kinds = schema(frame)
        if self._wanted is not None:
            self._wanted.check()
            _check_columns(frame, list(self._wanted), "the schema is of other columns")
            kinds = self._wanted
        codes = [
            ColumnCode.fit(
                frame[name].rename(name),
                column.kind,
                beyond=self.beyond_support,
                most_classes=self.most_classes,
            )
            for name, column in kinds.items()
            if column.kind in LEARNED
        ]
        left = [
            LeftOut.fit(frame[name].rename(name), column.kind)
            for name, column in kinds.items()
            if column.kind not in LEARNED
        ]
        numbers = sum(code.width for code in codes)
        if not codes:
            raise ValueError(
                f"no column is left to learn: {names(kinds)} are constants, identifiers or texts"
            )
        if numbers > MOST_NUMBERS:
            widest = max(codes, key=lambda code: code.width)
            raise ValueError(
                f"a row becomes {numbers:,} numbers, more than {MOST_NUMBERS:,}: drop columns, or lower "
                f"most_classes ({widest.name!r} alone takes {widest.width})"
            )
        self.model = self._train(frame, codes, progress, device, callbacks)
        self._codes, self._left, self._names = codes, left, list(kinds)
        self._axes = (_plain(frame.index.name), _plain(frame.columns.name))
        self.schema = kinds
        return self

    def _train(
        self,
        frame: pd.DataFrame,
        codes: list[ColumnCode],
        progress: bool,
        device: Any,
        callbacks: Sequence[Callback],
    ) -> FlowMap:
        """Train a network on the encoded rows, and return it with averaged weights."""
        rng = np.random.default_rng([self.seed, 1])
        copies = max(1, -(-REPEATED_ROWS // len(frame)))
        repeated = frame.iloc[np.tile(np.arange(len(frame)), copies)]
        rows = torch.from_numpy(
            np.concatenate([code.encode(repeated[code.name], rng) for code in codes], axis=1)
        )
        owners = _owners(codes)
        flags = 1 + max(owners) if self.conditions else 0
        data = torch.cat([rows, torch.zeros(len(rows), flags)], dim=1)
        hidden, steps = self.hidden or default_hidden(data.shape[1]), self.steps
        steps = steps or default_steps(len(frame))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net: torch.nn.Module = MLP(data.shape[1], hidden, self.layers, features=0)
        if self.conditions:
            net = WithGiven(net, owners)
        last = round(self.polish * steps)
        model = FlowMap(net, RectifiedFlow())
        settings: dict[str, Any] = dict(
            batch_size=self.batch_size,
            seed=self.seed,
            coupling=self.coupling,
            progress=progress,
            device=device,
            ema=0.999 if steps >= 2000 else 0.99,
            callbacks=callbacks,
        )
        base: Objective = IntegralIdentity()

        def encode(held_out: Any) -> TensorData:
            return TensorData(_held_out(held_out, list(frame.columns), codes, flags, self.seed))

        with held_out_frames(callbacks, encode):
            if steps > last:
                objective = GivenParts(base) if self.conditions else base
                model = fit(model, objective, data, TrainConfig(steps - last, **settings)).model
            if last:
                base = EnergyMatching(base)
                objective = GivenParts(base) if self.conditions else base
                model = copy.deepcopy(model).requires_grad_(True)
                config = TrainConfig(last, lr=0.3 / hidden, **settings)
                model = fit(model, objective, data, config).model
        return model.cpu().eval()

    # ------------------------------------------------------------------ sampling
    def sample(
        self,
        n: int,
        seed: int = 0,
        nfe: int = 1,
        condition: Mapping[Any, Any] | pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Draw new rows.

        Args:
            n: How many. More rows only add to the end, for the same seed.
            seed: Seed of the noise.
            nfe: Network calls a row.
            condition: Values of some columns, ``{"species": "Adelie"}`` for all rows, or a frame of
                n rows; a missing value asks for a missing one. The other columns are drawn from
                their law given these.

        Returns:
            The rows, with the columns and types of the data, and a fresh index.

        Raises:
            ValueError: If nothing was fitted, or a condition names a column or a value that the
                data do not have.
        """
        self._fitted()
        n, seed = check_int("n", n), check_seed(seed)
        asked = self._asked(n, condition)
        out = self._draw(n, seed, nfe, asked, fill=False)
        for code in self._codes:
            if code.name in asked:
                out[code.name] = code.storage.join(*asked[code.name])
        return out

    def impute(self, frame: pd.DataFrame, seed: int = 0, nfe: int = 1) -> pd.DataFrame:
        """Fill in missing cells, each row's from their law given its other cells.

        Args:
            frame: Rows with the columns of the data. Cells of columns that the model leaves out,
                such as texts, stay as they are.
            seed: Seed of the noise.
            nfe: Network calls a row.

        Returns:
            The rows with their own index. Cells that are there are not touched.

        Raises:
            ValueError: If the frame has other columns or types, or values that the data do not have.
        """
        self._fitted()
        check_frame(frame)
        _check_columns(frame, self._names, "the model was fitted to other columns")
        check_seed(seed)
        out = frame.copy()
        lacks = frame[[code.name for code in self._codes]].isna().to_numpy()
        rows = np.flatnonzero(lacks.any(axis=1))
        if not len(rows):
            return out
        known = frame.iloc[rows].reset_index(drop=True)
        asked = {code.name: _typed(code, known[code.name], fill=True) for code in self._codes}
        made = self._draw(len(rows), seed, nfe, asked, fill=True)
        for i, code in enumerate(self._codes):
            holes = lacks[rows, i]
            if holes.any():
                cells = frame[code.name].astype(object).to_numpy().copy()
                cells[rows[holes]] = made.loc[holes, code.name].astype(object).to_numpy()
                filled = pd.Series(cells, index=frame.index, dtype=object)
                out[code.name] = filled.astype(frame[code.name].dtype)
        return out

    def _draw(
        self, n: int, seed: int, nfe: int, asked: Mapping[Any, Cells], *, fill: bool
    ) -> pd.DataFrame:
        """Draw n rows with the cells of ``asked`` given, where ``fill`` all but its missing ones."""
        assert self.model is not None
        values, flags = self._given(n, seed, asked, fill) if asked else (None, None)
        numbers = sum(code.width for code in self._codes)
        blocks = sample_given(self.model, n, nfe=nfe, seed=seed, values=values, flags=flags)
        frames, waiting, start = [], [], 0
        for block in blocks:
            waiting.append(block[:, :numbers].numpy())
            count = sum(map(len, waiting))
            if count >= CHUNK or start + count == n:
                frames.append(self._decode(np.concatenate(waiting), start))
                waiting, start = [], start + count
        out = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        out.index.name, out.columns.name = self._axes
        return out

    def _decode(self, z: np.ndarray, start: int) -> pd.DataFrame:
        """Return the rows of numbers (n, D); the first one is number ``start`` of the sample."""
        columns, at = {}, 0
        for code in self._codes:
            columns[code.name] = code.decode(z[:, at : at + code.width])
            at += code.width
        for left in self._left:
            columns[left.name] = left.make(start, len(z))
        return pd.DataFrame({name: columns[name] for name in self._names})

    # ------------------------------------------------------------------ conditions
    def _asked(self, n: int, condition: Any) -> dict[Any, Cells]:
        """Return the given columns: values (n,), and where they are missing."""
        if condition is None:
            return {}
        if not self.conditions:
            raise ValueError(
                "this model was fitted with conditions=False, so no column can be given: fit one with "
                "conditions=True"
            )
        if not isinstance(condition, (Mapping, pd.DataFrame)):
            raise ValueError(
                'condition must be a dict such as {"species": "Adelie"}, or a frame with a row for each '
                f"sample; got a {type(condition).__name__}"
            )
        known = {code.name: code for code in self._codes}
        asked = {}
        for name in condition:
            if name not in known:
                raise ValueError(
                    f"no condition can be on {name!r}: the columns that were learned are {names(known)}"
                )
            value = condition[name]
            if not isinstance(value, (pd.Series, list, tuple, np.ndarray)):
                value = [value] * n
            if len(value) != n:
                raise ValueError(
                    f"the condition on {name!r} has {len(value)} values for {n} rows: give one for each, "
                    "or one for all"
                )
            given = pd.Series(value).reset_index(drop=True)
            asked[name] = _typed(known[name], given, fill=False)
        return asked

    def _given(
        self, n: int, seed: int, asked: Mapping[Any, Cells], fill: bool
    ) -> tuple[Tensor, Tensor]:
        """Return values (n, D) and flags (n, C) that say what is given."""
        rng = np.random.default_rng([self.seed, seed, 2])
        values: list[np.ndarray] = []
        flags: list[np.ndarray] = []
        for code in self._codes:
            if code.name not in asked:
                values.append(np.zeros((n, code.width), dtype=np.float32))
                flags.append(np.zeros((n, len(code.widths)), dtype=np.float32))
                continue
            cells, missing = asked[code.name]
            z = code.encode_values(cells, missing, rng)
            given = [(~missing).astype(np.float32)]
            if code.missing is not None:
                given.insert(0, np.ones(n, dtype=np.float32))
                if fill:  # a cell that is filled in is not missing
                    there = code.missing.encode(np.zeros(n, dtype=np.int64), rng)
                    z[:, : code.missing.width] = there
            values.append(z)
            flags.append(np.stack(given, axis=1))
        return tuple(torch.from_numpy(np.concatenate(a, axis=1)) for a in (values, flags))  # type: ignore[return-value]

    def _fitted(self) -> None:
        if self.model is None:
            raise ValueError(
                "nothing was fitted yet: call fit(df) first, or TableFlow.load(folder)"
            )

    # ------------------------------------------------------------------ files
    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model into a folder, as ``model.safetensors`` and ``config.json``.

        Args:
            folder: Where the files go; it is made if it is missing.

        Raises:
            ValueError: If nothing was fitted yet.
            OSError: If the folder cannot be written.
        """
        table = self.config()
        assert self.model is not None
        self.model.save_pretrained(folder, table=table)

    def push_to_hub(self, name: str, *, license: str | None = None, **options: Any) -> str:
        """Send the model to a hub, with a card that names its columns.

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
        table = self.config()
        assert self.model is not None
        facts = {"columns": ", ".join(map(str, self._names))} | self.model.facts()
        facts["settings"] = ", ".join(f"{k}={v!r}" for k, v in table["settings"].items())
        use = f'flow = ifl.TableFlow.load("{name}", revision="...")\nrows = flow.sample(500)'
        told = options.get("manifest")
        text = hub.card(name, facts, told, use=use, notes=hub.VALUES, license=license)
        return self.model.push_to_hub(name, card=text, table=table, **options)

    def config(self) -> dict[str, Any]:
        """Return what is kept beside the network, as JSON values: settings, schema, encodings.

        Raises:
            ValueError: If nothing was fitted yet.
        """
        self._fitted()
        assert self.schema is not None
        return {
            "settings": {name: getattr(self, name) for name in SETTINGS},
            "schema": self.schema.to_json(),
            "columns": [code.config() for code in self._codes],
            "left": [left.config() for left in self._left],
            "names": self._names,
            "axes": self._axes,
        }

    def decoder(self) -> tuple[TableDecoder, dict[str, Any]]:
        """Return the decoding of rows as tensors, for ``iflow_lib.export``.

        Returns:
            A module from the numbers of rows (B, D) to its outputs; and what these are, as JSON
            values: of each column where it is found, or how it is written where it was left out.

        Raises:
            ValueError: If nothing was fitted yet.
        """
        self._fitted()
        decoder = TableDecoder(self._codes)
        found = {entry["name"]: entry for entry in [*decoder.columns, *left_out(self._left)]}
        return decoder, {"kind": "table", "columns": [found[name] for name in self._names]}

    @classmethod
    def load(
        cls, folder: str | PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> TableFlow:
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
        table = pretrained.read_config(folder)["info"].get("table")
        if table is None:
            raise ValueError(f"{folder} holds no TableFlow: expected a folder from its save")
        model = FlowMap.from_pretrained(folder)
        flow = cls(Schema.from_json(table["schema"]), **table["settings"])
        flow.model, flow._names = model, table["names"]
        flow._axes = (table["axes"][0], table["axes"][1])
        flow._codes = [ColumnCode.build(config) for config in table["columns"]]
        flow._left = [LeftOut.build(config) for config in table["left"]]
        return flow

    def __repr__(self) -> str:
        """Return what was fitted."""
        if self.model is None:
            return "TableFlow(nothing fitted yet)"
        return (
            f"TableFlow({len(self._names)} columns, {len(self._codes)} of them learned, "
            f"{self.model.parameter_count:,} parameters)"
        )


def default_hidden(numbers: int) -> int:
    """Return the width of a network by the numbers of a row."""
    return 128 if numbers <= 24 else 256


def default_steps(rows: int) -> int:
    """Return the training steps by the number of rows: some seconds, to about two minutes."""
    return 1000 if rows < 1000 else 4000 if rows < 10_000 else 6000


def _owners(codes: list[ColumnCode]) -> list[int]:
    """Return the flag of each number of a row: one for each missing flag, one for each value."""
    widths = [width for code in codes for width in code.widths]
    return np.repeat(np.arange(len(widths)), widths).tolist()


def _plain(name: Any) -> Any:
    """Return the name of an axis if it can be kept in a file, else None."""
    return name if isinstance(name, (str, int)) else None


def _check_columns(frame: pd.DataFrame, expected: list[Any], what: str) -> None:
    """Raise ValueError unless a frame has these columns, in any order."""
    lacks = [name for name in expected if name not in frame.columns]
    more = [name for name in frame.columns if name not in expected]
    if lacks or more:
        parts = [f"this frame lacks {names(lacks)}"] if lacks else []
        parts += [f"has {names(more)} besides"] if more else []
        raise ValueError(f"{what}: {' and '.join(parts)}")


def _held_out(
    frame: Any, columns: list[Any], codes: list[ColumnCode], flags: int, seed: int
) -> Tensor:
    """Return held-out rows as the network sees them, with nothing given; ValueError if they do not fit."""
    check_frame(frame)
    _check_columns(frame, columns, "the held-out rows have other columns than the rows to learn")
    rng = np.random.default_rng([seed, 4])
    parts = []
    for code in codes:
        values, missing = _typed(code, frame[code.name], fill=False, beyond=True)
        parts.append(code.encode_values(values, missing, rng))
    numbers = torch.from_numpy(np.concatenate(parts, axis=1))
    return torch.cat([numbers, torch.zeros(len(numbers), flags)], dim=1)


def _typed(code: ColumnCode, series: pd.Series, *, fill: bool, beyond: bool = False) -> Cells:
    """Return given cells as values of their column.

    Args:
        code: The column.
        series: The cells, in any type that can be read as that of the column.
        fill: Whether missing cells are to be filled in, so that any column may have them.
        beyond: Whether numbers may lie outside the observed range.

    Raises:
        ValueError: If the column never had such a value.
    """
    missing = series.isna().to_numpy(dtype=bool)
    if missing.any() and code.missing is None and not fill:
        raise ValueError(f"column {code.name!r} never was missing: {_support(code)}")
    there = series[~missing]
    one = code.value.decode(np.zeros((1, code.value.width)))
    values = np.zeros(len(series), dtype=one.dtype)
    if not len(there):
        return values, missing
    own = code.storage.join(one, np.zeros(1, dtype=bool)).dtype
    try:
        typed = there if there.dtype == own else _cast(there, own)
        found, lost = code.storage.split(typed)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"column {code.name!r} is of type {own}, and {_shown(there.iloc[0]):.40} is not: give values of that "
            "type"
        ) from error
    covered = code.value.covers(found)
    odd = lost if beyond and isinstance(code.value, Ranks) else lost | ~covered
    if odd.any():
        raise ValueError(
            f"column {code.name!r} never was {_shown(there[odd].iloc[0]):.60}: {_support(code)}"
        )
    values[~missing] = found
    return values, missing


def _shown(value: Any) -> str:
    """Return a value for an error, without numpy's type around it."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _cast(series: pd.Series, dtype: Any) -> pd.Series:
    """Return values in a type; text is not made of numbers, nor dates of whole numbers."""
    if isinstance(dtype, pd.CategoricalDtype):
        return pd.Series(pd.Categorical(series.astype(object), dtype=dtype), index=series.index)
    if pd.api.types.is_datetime64_any_dtype(dtype):
        dates = pd.to_datetime(series, utc=getattr(dtype, "tz", None) is not None)
        return dates.astype(dtype)
    if pd.api.types.is_integer_dtype(dtype):
        numbers = pd.to_numeric(series)
        if not (numbers.dropna() == numbers.dropna().round()).all():
            raise ValueError("no whole numbers")
        return numbers.astype(dtype)
    return series.astype(dtype)


def _support(code: ColumnCode) -> str:
    """Return what a column may be, for an error."""
    if isinstance(code.value, Ranks):
        ends = code.storage.join(code.value.levels[[0, -1]], np.zeros(2, dtype=bool))
        return f"expected values from {ends.iloc[0]} to {ends.iloc[1]}"
    labels = code.storage.labels or []
    return f"expected one of {', '.join(map(repr, labels[:8]))}{', ...' if len(labels) > 8 else ''}"
