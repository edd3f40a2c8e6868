"""Models for other runtimes: one file that makes samples of noise, and a JSON file beside it.

The file holds the whole way from noise to samples in one call: the jumps, the scale of the data, and
for a ``TableFlow`` or ``SeriesFlow`` the decoding of numbers into values. What ONNX has no form for,
such as texts and dates, is said in the JSON file: examples/sample_onnx.py applies it with numpy.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import warnings
from os import PathLike
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .hub import local_folder
from .io import sha256, write_together
from .model import FlowMap
from .paths import Path, PoissonFlow
from .pretrained import read_config
from .registry import first_line
from .sampling import AverageVelocity, planned_sampler
from .utils import __version__

if TYPE_CHECKING:
    from .frames import SeriesFlow, TableFlow

#: Formats by name, with the ending of their files.
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
#: The layout of the JSON file.
LAYOUT = 1
#: How far onnxruntime may be from PyTorch, in standard deviations of each output, and in which share
#: of decoded values, where a difference of rounding turns one value of a grid into the next.
TOLERANCE, TURNED = 1e-4, 0.01
#: Samples that are compared.
COMPARED = 256
#: The most bytes of weights: a protobuf file holds at most 2 GiB.
LARGEST = 1 << 31


class NoiseToSamples(nn.Module):
    """What is exported: a call from noise to samples.

    Args:
        model: The model.
        nfe: Network calls per sample, see ``sample``.
        method: See ``sample``.
        decoder: What turns the values of a row or window into its outputs; None leaves them.

    Attributes:
        inputs: Shape of one example of each input, by name.
        outputs: Names of the outputs.

    Raises:
        ValueError: As ``planned_sampler``.
    """

    def __init__(
        self, model: FlowMap, nfe: int | None, method: str, decoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.method, self.sampler = planned_sampler(self.model, nfe, method)
        self.calls = self.sampler.plan.evaluations
        self.decoder, self.outputs = decoder, ["x"] if decoder is None else list(decoder.outputs)  # type: ignore[arg-type]
        self.end = float(model.path.scale(torch.zeros(1)))
        # the layout of frames.WithGiven: what is made, what is told (a calendar), and a flag for each
        *lead, last = model.data_shape
        self.flags = int(getattr(model.net, "flags", 0))
        self.made = int(getattr(decoder, "channels", last - self.flags))
        told = last - self.flags - self.made
        self.inputs: dict[str, list[int]] = {"noise": [*lead, self.made]}
        if told:
            self.inputs["calendar"] = [*lead, told]
        if model.classes:
            self.inputs["labels"] = []

    def forward(
        self, noise: Tensor, labels: Tensor | None = None, calendar: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Make samples.

        Args:
            noise: Draws of the path's noise, (B, ...), float32.
            labels: Classes (B,), int64, -1 where none is told, for a model with classes.
            calendar: What is told of the moment of each step, (B, T, K), for a model with a calendar.

        Returns:
            The outputs, each (B, ...).
        """
        x = self.model.path.tau_max * noise
        if self.flags:
            told = [] if calendar is None else [calendar]
            free = self.flags - len(told)  # the last flag is that of the calendar
            flags = noise.new_zeros((*noise.shape[:-1], free))
            one = noise.new_ones((*noise.shape[:-1], len(told)))
            x = torch.cat([x, *told, flags, one], -1)
        *_, x = self.sampler.points(AverageVelocity(self.model, labels), x)
        x = self.end * x[..., : self.made]
        if self.model.scaling is not None:
            x = self.model.scaling.undo(x)
        return (x,) if self.decoder is None else self.decoder(x)

    def example(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """Return inputs for n samples: noise by a seed, the first class, and a calendar of zeros."""
        generator = torch.Generator().manual_seed(seed)
        given = {"noise": self.model.path.noise((n, *self.inputs["noise"]), generator=generator)}
        if "labels" in self.inputs:
            given["labels"] = torch.zeros(n, dtype=torch.int64)
        if "calendar" in self.inputs:
            given["calendar"] = torch.zeros(n, *self.inputs["calendar"])
        return given


def export(
    model: FlowMap | TableFlow | SeriesFlow,
    out: str | PathLike[str],
    *,
    nfe: int | None = None,
    method: str = "auto",
    format: str = "onnx",
) -> dict[str, Any]:
    """Write a model for another runtime, and what is to be known of it into a JSON file beside it.

    The exported model takes any number of samples. Its inputs are ``noise``, (B, ...) float32;
    ``labels``, (B,) int64, where the model has classes or entities; and ``calendar``, (B, T, K)
    float32, where it was told one. Its outputs are ``x`` of a ``FlowMap``, in the units of the data;
    ``numbers``, ``whole`` and ``missing`` of a ``TableFlow``; ``values`` of a ``SeriesFlow``.
    Conditions, imputation and forecasts stay with the model itself.

    An ONNX file is run once by onnxruntime before it is written, and compared with the model.

    Args:
        model: The model.
        out: The file, ``model.onnx``, or ``model.pt2`` for "torch". ``model.json`` is written
            beside it. An earlier export of the same columns is replaced.
        nfe: Network calls per sample. They are unrolled, so a file is for one number of them.
        method: As for ``sample``.
        format: "onnx", or "torch" for an exported program, which ``torch.export.load`` reads.

    Returns:
        What the JSON file says.

    Raises:
        ValueError: If the model cannot be exported, the file has another ending or holds something
            else, or onnxruntime does not agree.
        ImportError: If a package of the extra ``export`` is missing.
        OSError: If a file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    out = FilePath(out)
    if out.suffix != FORMATS[format]:
        raise ValueError(
            f"the file of an export as {format} must end in {FORMATS[format]}, got {str(out)!r}"
        )
    if format == "onnx":
        _need_packages()
    graph, about = _graph(model, nfe, method)
    _check_place(out, about)
    if sum(p.numel() * p.element_size() for p in graph.parameters()) >= LARGEST:
        raise ValueError(
            "the weights take 2 GiB or more, too many for one file: save the model itself"
        )
    content = _to_onnx(graph) if format == "onnx" else _to_torch(graph)
    about = {**about, "file": out.name, "sha256": sha256(content)}
    text = json.dumps(about, indent=1, allow_nan=False) + "\n"
    write_together({out: content, out.with_suffix(".json"): text})
    return about


def open_model(
    folder: str | PathLike[str], revision: str | None = None
) -> FlowMap | TableFlow | SeriesFlow:
    """Load a model of any kind, by what its files say.

    Args:
        folder: A folder that a model was saved into, or ``user/model``.
        revision: Of a repository, see ``FlowMap.from_pretrained``.

    Returns:
        A ``TableFlow``, a ``SeriesFlow`` or a ``FlowMap``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged.
        OSError: If a repository cannot be fetched.
        ImportError: If it is one and huggingface_hub is missing.
    """
    folder = local_folder(folder, revision)
    info = read_config(folder)["info"]
    if not {"table", "series"} & set(info):
        return FlowMap.from_pretrained(folder)
    from .frames import SeriesFlow, TableFlow

    return TableFlow.load(folder) if "table" in info else SeriesFlow.load(folder)


def _need_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f'exporting to ONNX needs {name}: pip install "iflow-lib[export]"')


def _graph(model: Any, nfe: int | None, method: str) -> tuple[NoiseToSamples, dict[str, Any]]:
    """Return what is exported of a model, and what is said about it."""
    if isinstance(model, FlowMap):
        graph, told = NoiseToSamples(model, nfe, method), {"kind": "samples"}
        told |= {"shape": graph.inputs["noise"]}  # type: ignore[dict-item]
        flow = model
    else:
        from .frames import SeriesFlow, TableFlow

        if not isinstance(model, (TableFlow, SeriesFlow)):
            raise ValueError(
                f"export takes a FlowMap, a TableFlow or a SeriesFlow, not a {type(model).__name__}"
            )
        decoder, told = model.decoder()
        assert model.model is not None
        flow = model.model
        graph = NoiseToSamples(flow, nfe, method, decoder)
    about = {
        "layout": LAYOUT,
        "made_by": f"iflow_lib {__version__}",
        **told,
        "method": graph.method,
        "nfe": graph.calls,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "noise": _law(flow.path),
        "classes": flow.classes,
        "knows_no_class": flow.knows_no_class is not False,
    }
    return graph.eval(), about


def _law(path: Path) -> dict[str, Any]:
    """Return the law of the noise: standard normal, or Student's t of PFGM++."""
    if isinstance(path, PoissonFlow) and type(path).noise is PoissonFlow.noise:
        return {"law": "student", "degrees": path.aug_dim}
    if type(path).noise is Path.noise:
        return {"law": "normal"}
    raise ValueError(
        f"the path {path.name} draws noise of its own law, which the file cannot tell: export a model "
        "on another path"
    )


def _check_place(out: FilePath, about: dict[str, Any]) -> None:
    """Raise ValueError if the files are there, and are not an earlier export of the same columns."""
    beside = out.with_suffix(".json")
    for file in (out, beside):
        if file.is_dir():
            raise ValueError(f"{file} is a folder: give the name of a file")
    there = [file for file in (out, beside) if file.exists()]
    if not there:
        return
    try:
        earlier = json.loads(beside.read_text(encoding="utf-8"))
        ours, name, made = "iflow_lib" in earlier["made_by"], earlier["file"], _makes(earlier)
    except (OSError, ValueError, KeyError, TypeError):
        ours, name, made = False, "", ""
    if ours and name != out.name and beside in there:
        raise ValueError(f"{beside} belongs to {name}: choose another name for {out.name}")
    if not ours or len(there) < 2:
        raise ValueError(f"{there[0]} is there and is no earlier export: choose another file")
    if made != _makes(about):
        raise ValueError(
            f"{out} was exported for other columns, {made}, and this model makes {_makes(about)}: "
            "choose another file, or remove it first"
        )


def _makes(about: dict[str, Any]) -> str:
    """Return what an export makes, in words."""
    if about["kind"] == "samples":
        return f"samples of shape {tuple(about['shape'])}"
    columns = about["columns"] if about["kind"] == "table" else about["channels"]
    return ", ".join(str(column["name"]) for column in columns)


def _traced(graph: NoiseToSamples) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return example inputs, and which of their dimensions are free."""
    batch = torch.export.Dim("batch")
    given = graph.example(4)
    return given, {name: {0: batch} for name in given}


def _first_and_rest(given: dict[str, Tensor]) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    rest = {name: value for name, value in given.items() if name != "noise"}
    return (given["noise"],), rest


def _untraceable(graph: NoiseToSamples, error: Exception) -> ValueError:
    name = type(graph.model.net).__name__
    return ValueError(
        f"the network {name} cannot be exported: its forward must be a fixed chain of tensor "
        f"operations ({first_line(error)[:200]})"
    )


def _to_torch(graph: NoiseToSamples) -> bytes:
    """Return an exported program as the bytes of a file."""
    given, free = _traced(graph)
    noise, rest = _first_and_rest(given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph, noise, rest, dynamic_shapes=free, strict=False)
    except Exception as error:  # a user's network may do anything
        raise _untraceable(graph, error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _to_onnx(graph: NoiseToSamples) -> bytes:
    """Return an ONNX model as the bytes of a file, which onnxruntime has run."""
    given, free = _traced(graph)
    noise, rest = _first_and_rest(given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                noise,
                kwargs=rest,
                dynamic_shapes=free,
                input_names=list(given),
                output_names=graph.outputs,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise _untraceable(graph, error) from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # they name files of this machine
        node.doc_string = ""
    content = proto.SerializeToString()
    _compare(graph, content)
    return content


def _compare(graph: NoiseToSamples, content: bytes) -> None:
    """Raise ValueError unless onnxruntime makes the same samples as PyTorch."""
    import onnxruntime

    given = graph.example(COMPARED, seed=1)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = session.run(graph.outputs, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        ours = graph(**given)
    allowed = 0.0 if graph.decoder is None else TURNED
    for name, a, b in zip(graph.outputs, ours, theirs):
        off = _differs(a.numpy(), b, graph)
        if off.mean() > allowed:
            raise ValueError(
                f"onnxruntime differs from PyTorch in {off.mean():.1%} of {name!r}, so nothing was written: "
                "try another version of onnxruntime, or format torch"
            )


def _differs(ours: np.ndarray, theirs: np.ndarray, graph: NoiseToSamples) -> np.ndarray:
    """Return which values differ by more than the tolerance, in deviations of their column."""
    if ours.dtype.kind != "f":
        return ours != theirs
    scaling = graph.model.scaling
    if graph.decoder is not None:
        deviation = ours.reshape(-1, ours.shape[-1]).std(0)
    else:
        deviation = ours.std() if scaling is None else scaling.std.numpy()
    return ~((np.abs(ours - theirs) <= TOLERANCE * deviation) | (ours == theirs))
