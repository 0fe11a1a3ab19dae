"""Tests of common/models/exporting.py: files that other programs read, run by ONNX Runtime and by torch.export."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from common.errors import UsageError, WorkError
from common.models.exporting import FORMATS, METADATA, export_model
from common.models.sequence import build_sequence_model
from common.models.sequence_layers import ForExport
from common.training.hardware import set_computation


class OverSlices(nn.Module):
    """A model of a study's slices: features (B, L, F) and their mask (B, L) to logits (B, L, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(4, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, features, mask):
        mixed = self.mix((features * mask[..., None]).transpose(1, 2)).relu().transpose(1, 2)
        return self.head(mixed)


def convolution():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_an_onnx_file_gives_in_onnx_runtime_what_torch_gives_for_any_batch(tmp_path, pictures):
    model, path = convolution().eval(), tmp_path / "model.onnx"
    difference = export_model(model, {"image": pictures}, path, "onnx", {"labels": ["a", "b"]})
    assert difference < 1e-5
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 12, 12]
    for batch in (1, 7):
        given = np.random.default_rng(batch).normal(size=(batch, 3, 12, 12)).astype(np.float32)
        (found,) = session.run(["logits"], {"image": given})
        np.testing.assert_allclose(found, model(torch.from_numpy(given)).detach(), atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == {"labels": ["a", "b"]}


def test_a_program_of_torch_export_gives_what_torch_gives(tmp_path, pictures):
    model, path = convolution().eval(), tmp_path / "model.pt2"
    assert export_model(model, {"image": pictures}, path, "torch_export", {"a": 1}) < 1e-6
    extra = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    given = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(program.module()(given), model(given))
    assert json.loads(extra[METADATA]) == {"a": 1}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_model_over_slices_takes_studies_of_any_length(tmp_path, file_format):
    torch.manual_seed(0)
    model = OverSlices().eval()
    inputs = {"features": torch.randn(2, 9, 4), "mask": torch.ones(2, 9)}
    places = {0: "batch", 1: "slices"}
    path = tmp_path / "model"
    export_model(model, inputs, path, file_format, {}, {"features": places, "mask": places})
    run = FORMATS[file_format].open(path)
    other = [torch.randn(1, 31, 4), torch.ones(1, 31)]
    torch.testing.assert_close(run(other)[0], model(*other).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "study", "inputs"),
    [
        ("gru", "learned", "both"),
        ("lstm", "noisy_or", "features"),
        ("transformer", "max", "logits"),
        ("conv", "learned", "logits"),
    ],
)
def test_every_sequence_model_gives_of_any_series_what_torch_gives(tmp_path, name, study, inputs, file_format):
    torch.manual_seed(0)
    options = {"seq_width": 16, "seq_study": study, "seq_inputs": inputs}
    model = build_sequence_model(name, options, 7, 6).eval()
    for parameter in model.parameters():  # also those that start at 0
        nn.init.normal_(parameter, std=0.2)

    def series(*lengths):
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        made = {"features": torch.randn(*shape, 7), "logits": torch.randn(*shape, 6), "position_mm": torch.randn(shape)}
        return made | {"mask": mask}

    places = {0: "batch", 1: "slices"}
    path, given = tmp_path / "model", series(9, 4)
    outputs = ("slice_logits", "study_logits")
    free = dict.fromkeys(given, places)
    assert export_model(ForExport(model), given, path, file_format, {}, free, outputs, [series(3)]) < 1e-5
    run = FORMATS[file_format].open(path)
    for lengths in [(1,), (61, 2, 30), (3, 1)]:
        other = series(*lengths)
        slices, study_logits = run(list(other.values()))
        expected = model(*other.values())  # with packed sequences
        mask = other["mask"]
        torch.testing.assert_close(slices[mask], expected.slices[mask].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(study_logits, expected.study.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_path_of_this_machine_stands_in_the_file(tmp_path, pictures, file_format):
    path = tmp_path / "model"
    export_model(convolution(), {"image": pictures}, path, file_format, {})
    content = path.read_bytes()
    assert b".py" not in content
    assert str(tmp_path).encode() not in content


def test_the_model_and_the_precision_of_products_are_left_as_they_were(tmp_path, pictures):
    set_computation(torch.device("cpu"), tf32=False, deterministic=False)
    before = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
    model = convolution().train().double()
    export_model(model, {"image": pictures}, tmp_path / "model", "torch_export", {})
    assert model.training
    assert next(model.parameters()).dtype == torch.float64
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before


def test_a_file_that_gives_other_numbers_is_never_written(tmp_path, pictures, monkeypatch):
    row = FORMATS["torch_export"]
    wrong = {**vars(row), "open": lambda path: lambda tensors: [row.open(path)(tensors)[0] + 2e-4]}
    monkeypatch.setitem(FORMATS, "torch_export", type(row)(**wrong))
    with pytest.raises(WorkError, match=r"not written: its outputs differ from torch's by 0\.0002"):
        export_model(convolution(), {"image": pictures}, tmp_path / "model.pt2", "torch_export", {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_gives_other_numbers_for_inputs_of_another_size_is_never_written(tmp_path, monkeypatch):
    row = FORMATS["torch_export"]

    def wrong_at_nine(path):
        run = row.open(path)
        return lambda tensors: [run(tensors)[0] + (tensors[0].shape[1] == 9)]

    monkeypatch.setitem(FORMATS, "torch_export", type(row)(**{**vars(row), "open": wrong_at_nine}))
    four, nine = ({"features": torch.randn(2, size, 4), "mask": torch.ones(2, size)} for size in (4, 9))
    free = {key: {0: "batch", 1: "slices"} for key in four}
    path = tmp_path / "model.pt2"
    with pytest.raises(WorkError, match="not written: its outputs differ from torch's by 1,"):
        export_model(OverSlices().eval(), four, path, "torch_export", {}, free, others=[nine])
    assert list(tmp_path.iterdir()) == []
    export_model(OverSlices().eval(), four, path, "torch_export", {}, free)
    assert path.is_file()


def test_a_missing_package_and_a_model_that_can_not_be_exported_are_one_line(tmp_path, pictures, monkeypatch):
    class Undecided(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match=r"Undecided: torch\.export can't export it") as caught:
        export_model(Undecided(), {"image": pictures}, tmp_path / "model.pt2", "torch_export", {})
    assert "\n" not in str(caught.value)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UsageError, match="needs onnxscript: pip install onnxscript"):
        export_model(convolution(), {"image": pictures}, tmp_path / "model.onnx", "onnx", {})
    assert list(tmp_path.iterdir()) == []
