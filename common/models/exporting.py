"""Exports a model for other programs, as ONNX or torch.export's own form. The file is checked, or not written."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UsageError, WorkError
from common.files import atomic_path
from common.models.backbone import one_line

TOLERANCE = 1e-4
METADATA = "metadata.json"  # its name within the file
Shapes = Mapping[str, Mapping[int, str]]  # input -> its dimensions that may have any size, with their names
Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class FormatRow:
    """A file format: the ``packages`` it needs, how to ``write`` it, and how to ``open`` it to run."""

    name: str
    suffix: str
    summary: str
    packages: tuple[str, ...]
    write: Callable[[torch.export.ExportedProgram, Path, Shapes, Sequence[str], str], None]
    open: Callable[[Path], Runner]


def export_model(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    file_format: str,
    metadata: Mapping[str, Any],
    free: Shapes | None = None,
    outputs: Sequence[str] = ("logits",),
    others: Sequence[Mapping[str, Tensor]] = (),
) -> float:
    """Write ``model`` and return the largest difference of the file's outputs from torch's.

    ``inputs`` are real ones of at least two rows, by name, in the order of the model's arguments. ``free`` names the
    dimensions of each input that may have another size; None: the first of each, ``batch``. ``outputs`` names what the
    model returns: a tensor for one name, a tuple for several. The file is read back and run on the inputs, on their
    first row alone and on ``others``, inputs of other sizes. Only then is it put in its place. It holds ``metadata``,
    of JSON's types, as ``metadata.json``.

    Raises UsageError for missing packages and a model that can't be exported, WorkError if an output differs by more
    than 1e-4.
    """
    row = FORMATS[file_format]
    missing = [name for name in row.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--export_format={file_format} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    plain = copy.deepcopy(model).cpu().float().eval()
    tensors = tuple(tensor.cpu() for tensor in inputs.values())
    shapes = free or {key: {0: "batch"} for key in inputs}
    dimensions = {name: torch.export.Dim(name, min=1) for places in shapes.values() for name in places.values()}
    dynamic = tuple({place: dimensions[name] for place, name in shapes[key].items()} for key in inputs)
    with _quiet(), _plain_attention(), torch.no_grad():
        try:
            program = torch.export.export(plain, tensors, dynamic_shapes=dynamic)
        except Exception as error:  # the tracer may meet anything in a model
            raise UsageError(f"{type(model).__name__}: torch.export can't export it ({one_line(error)})") from error
        for node in program.graph.nodes:  # a trace names paths of this machine
            node.meta.pop("stack_trace", None)
        with atomic_path(path) as temporary:
            row.write(program, temporary, shapes, outputs, json.dumps(metadata))
            checks = [tensors, [tensor[:1] for tensor in tensors]]
            checks += [[other[name].cpu() for name in inputs] for other in others]
            run = row.open(temporary)
            difference = float(torch.stack([_difference(plain, run, check) for check in checks]).max())
            if not difference <= TOLERANCE:  # NaN too
                raise WorkError(
                    f"{path}: not written: its outputs differ from torch's by {difference:.3g}, more than {TOLERANCE:g}"
                )
    return difference


def _difference(model: nn.Module, run: Runner, tensors: Sequence[Tensor]) -> Tensor:
    """Return the largest difference of any output; NaN if one is NaN."""
    expected = _several(model(*tensors))
    differences = [(one - other).abs().max() for one, other in zip(run(tensors), expected, strict=True)]
    return torch.stack(differences).max()


def _several(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks on their own workings off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let transformers compute by plain steps, which exporters know, instead of torch's fused ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, shapes: Shapes, outputs: Sequence[str], metadata: str
) -> None:
    made = torch.onnx.export(program, input_names=list(shapes), output_names=outputs, dynamo=True, verbose=False)
    graph = made.model.graph
    symbols = {
        str(value.shape[place]): name
        for value, places in zip(graph.inputs, shapes.values(), strict=True)
        for place, name in places.items()
    }
    for value in (*graph.inputs, *graph.outputs):
        for place, size in enumerate(value.shape):
            if str(size) in symbols:
                value.shape[place] = symbols[str(size)]
    made.model.metadata_props[METADATA] = metadata
    made.save(str(path))


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, given)]

    return run


def _write_program(
    program: torch.export.ExportedProgram, path: Path, _: Shapes, __: Sequence[str], metadata: str
) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: metadata})


def _open_program(path: Path) -> Runner:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda tensors: _several(module(*tensors))


FORMATS: dict[str, FormatRow] = {
    row.name: row
    for row in (
        FormatRow("onnx", ".onnx", "ONNX", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
        FormatRow("torch_export", ".pt2", "torch.export's program", (), _write_program, _open_program),
    )
}
