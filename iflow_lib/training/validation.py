"""``Validation``: a distance to held-out data during a training, the best model, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import TensorData, as_dataset
from ..model import FlowMap
from ..objectives.network_state import model_device
from ..sampling import sample
from ..scaling import Standardization
from ..utils import check_int, check_seed
from .callbacks import Callback, Training
from .history import check_column
from .runtime import own_random_numbers

Metric = Callable[[Tensor, Tensor], float]
Encode = Callable[[Any], TensorData]
Draw = Callable[[FlowMap, TensorData, int, "int | None", int, bool], Tensor]

#: Distances by name; smaller is better in all of them.
METRICS: dict[str, Metric] = {
    "energy": metrics.energy_distance,
    "mmd": metrics.mmd,
    "sliced_w2": metrics.sliced_w2,
    "w2": metrics.w2,
}
#: Network calls a sample for a model that learned a velocity only, which has no one-step samples.
VELOCITY_NFE = 16
#: Settings without which values do not compare: a continued run must have the same.
COMPARED = ("metric", "every", "n", "nfe", "seed", "larger_is_better", "held_out")


class Validation(Callback):
    """Measure every so many steps how far samples are from held-out data, and keep the best model.

    The samples are those of the averaged weights, from the same noise each time, and are compared
    with the same held-out examples each time: what changes between two values is the model. The
    history gets the columns "validation" and "validation_best_step", the step of the best value so
    far, and so does every logger; the manifest says which step was best. Training sees nothing of
    it: with ``keep_best=False`` and without ``patience`` the weights are those of a run without.

    The learning rate falls to zero over all steps of the run, and a run that is stopped early has
    not come there: patience saves time, and the last steps often are the best.

    Args:
        data: Held-out data in the original units, in any form that ``fit`` takes, with two
            examples or more; for ``TableFlow`` and ``SeriesFlow`` a data frame, as their ``fit``
            takes it. A ``TensorData`` may be in the scale of the training data, if it has their
            scaling.
        every: Steps between two measurements. There is also one after the last step.
        metric: "energy", the energy distance (Szekely and Rizzo 2013), "mmd", "sliced_w2" or "w2",
            all in the scale of the network, where each standardized column counts alike; or a
            function ``metric(samples, held_out) -> float`` of two tensors (n, ...) and (m, ...) in
            the original units.
        patience: Measurements without a better value after which the training stops, or None.
        keep_best: Whether ``fit`` returns the averaged weights of the best measurement, and not
            those of the last step. A checkpoint has both.
        n: Samples, and at most as many held-out examples, chosen by ``seed``.
        nfe: Network calls a sample. None takes 1, or 16 for a model that learned a velocity.
        seed: Seed of the noise and of the choice of examples.
        larger_is_better: Whether a function rises with the quality.
        name: Name of the column in the history.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "validation"

    def __init__(
        self,
        data: Any,
        every: int = 500,
        metric: str | Metric = "energy",
        *,
        patience: int | None = None,
        keep_best: bool = True,
        n: int = 1000,
        nfe: int | None = None,
        seed: int = 0,
        larger_is_better: bool = False,
        name: str = "validation",
    ) -> None:
        self.every, self.n = check_int("every", every), check_int("n", n, 2)
        self.patience = None if patience is None else check_int("patience", patience)
        self.nfe = None if nfe is None else check_int("nfe", nfe)
        self.seed, self.name = check_seed(seed), name
        check_column(name)
        if not callable(metric) and metric not in METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(METRICS)}, or a function of samples and held-out data, "
                f"got {metric!r}"
            )
        if larger_is_better and not callable(metric):
            raise ValueError(f"{metric} is a distance, so that larger is not better")
        self.metric, self.larger_is_better = metric, bool(larger_is_better)
        self.keep_best, self.data = bool(keep_best), data
        #: How examples are made of the data, and how samples are drawn.
        self.encode: Encode = as_dataset
        self.draw: Draw = draw_like
        self.held_out: TensorData
        self._begin({})

    def _begin(self, state: dict[str, Any]) -> None:
        #: The best value so far, and its step; None before the first measurement.
        self.best: float | None = state.get("best")
        self.best_step: int | None = state.get("best_step")
        self.measured_step, self.without = state.get("measured_step", 0), state.get("without", 0)
        mark = "weights."
        weights = {k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)}
        self.weights: dict[str, Tensor] = weights if self.keep_best else {}

    def start(self, training: Training, state: dict[str, Any]) -> None:
        """Begin, or go on from a checkpoint.

        Raises:
            ValueError: If the data are no examples of this model, or values of the checkpoint were
                measured in another way, so that they do not compare.
        """
        self.held_out = _some(self.encode(self.data), self.n, self.seed)
        model, shape = training.average, tuple(self.held_out.x.shape[1:])
        if shape != model.data_shape:
            raise ValueError(
                f"the held-out data have examples of shape {shape}, and the network takes "
                f"{model.data_shape}"
            )
        _check_scaling(self.held_out.scaling, model.scaling)
        mine = self._compared()
        theirs = state.get("settings", mine)
        other = [name for name in mine if theirs.get(name) != mine[name]]
        if other:
            there, here = ({k: d.get(k) for k in other} for d in (theirs, mine))
            raise ValueError(
                f"the checkpoint has {there}, here it is {here}: give the same, or another out_dir"
            )
        self._begin(state)
        if self.keep_best and self.best is not None and not self.weights:
            raise ValueError(
                "the run began with keep_best=False, so its checkpoint has no best weights: give that, "
                "or another out_dir"
            )

    def after_step(self, training: Training) -> None:
        """Measure, if it is time to."""
        step, last = training.step, training.manifest["config"]["steps"]
        if step == self.measured_step or (step % self.every and step != last):
            return
        # in one process; all others wait for the value, and go on alike
        value = training.processes.on_first(lambda: self.measure(training.average))
        sign = -1 if self.larger_is_better else 1
        if self.best is None or sign * value < sign * self.best:
            self.best, self.best_step, self.without = value, step, 0
            if self.keep_best:
                kept = training.average.state_dict()
                self.weights = {k: v.detach().to("cpu", copy=True) for k, v in kept.items()}
        else:
            self.without += 1
        self.measured_step = step
        training.record(self.name, value)
        assert self.best_step is not None
        training.record(f"{self.name}_best_step", self.best_step)
        if self.patience is not None and self.without >= self.patience and step < last:
            times = "time" if self.patience == 1 else "times"
            training.stop(
                f"{self.name} was no better {self.patience} {times} in a row; it was best at step "
                f"{self.best_step:,}"
            )

    def measure(self, model: FlowMap) -> float:
        """Return the distance of samples of a model from the held-out data.

        Args:
            model: The model; it is left as it is, and so are torch's random numbers.

        Raises:
            ValueError: If the metric gives no number.
            FloatingPointError: If the number is not finite.
        """
        known, own, scaling = self.held_out, callable(self.metric), model.scaling
        data = known.x.cpu()
        if own and known.scaling is not None:
            data = known.scaling.undo(data)
        elif not own and known.scaling is None and scaling is not None:
            data = scaling.apply(data)
        nfe = self.nfe
        if nfe is None and model.learned == "velocity":
            nfe = VELOCITY_NFE
        metric = self.metric if callable(self.metric) else METRICS[self.metric]
        with torch.no_grad(), own_random_numbers(self.seed, model_device(model)):
            x = self.draw(model, known, self.n, nfe, self.seed, own)
            value = metric(x, data)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"metric must return one number, got a {type(value).__name__}"
            ) from None
        if not math.isfinite(number):
            raise FloatingPointError(f"the metric is {number}: expected a finite number")
        return number

    def end(self, training: Training) -> None:
        """Put the best weights into the model that ``fit`` returns."""
        if self.weights:
            training.average.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """Return the best value, its step and its weights, and how long none was better."""
        kept = {f"weights.{name}": value for name, value in self.weights.items()}
        names = ("best", "best_step", "measured_step", "without")
        return {"settings": self._compared(), **{k: getattr(self, k) for k in names}, **kept}

    def describe(self) -> dict[str, Any]:
        """Return the settings, the best value and its step."""
        return {
            **self._compared(),
            "patience": self.patience,
            "keep_best": self.keep_best,
            "best": self.best,
            "best_step": self.best_step,
        }

    def _compared(self) -> dict[str, Any]:
        """The settings by which values are measured, as JSON values."""
        metric = self.metric
        if callable(metric):
            metric = getattr(metric, "__qualname__", type(metric).__name__)
        own = {"metric": metric, "held_out": self.held_out.fingerprint}
        return {name: own[name] if name in own else getattr(self, name) for name in COMPARED}


def draw_like(
    model: FlowMap, like: TensorData, n: int, nfe: int | None, seed: int, original_scale: bool
) -> Tensor:
    """Draw samples as ``Validation`` compares them with held-out data.

    Args:
        model: The model.
        like: The held-out examples: of a network with classes, sample i has the class of example i,
            or of example i - m, ... where there are m.
        n: Number of samples.
        nfe: Network calls a sample, or None for those of ``sample``.
        seed: Seed of the noise.
        original_scale: Whether a standardization is undone.

    Returns:
        The samples (n, ...).
    """
    labels = None
    if model.classes and like.labels is not None:
        labels = like.labels[torch.arange(n) % len(like)]
    return sample(model, n, nfe, seed=seed, labels=labels, original_scale=original_scale).x


def _some(data: TensorData, n: int, seed: int) -> TensorData:
    """At most n of the examples, chosen by chance, in their order."""
    if len(data) < 2:
        raise ValueError(f"{len(data)} held-out example is too few: give 2 at least, better 1,000")
    chance = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.rows(chance[:n].sort().values)


def _check_scaling(held_out: Standardization | None, model: Standardization | None) -> None:
    """Raise ValueError if held-out data are in another scale than the data of the training."""
    if held_out is None:
        return
    same = model is not None and all(
        torch.equal(getattr(held_out, part), getattr(model, part)) for part in ("mean", "std")
    )
    if not same:
        raise ValueError(
            "the held-out data have a scale of their own: give them in the original units, as they were "
            "before standardize"
        )
