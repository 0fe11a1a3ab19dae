"""Tests of rsna/prediction/export.py by export.py: a trained network in ONNX Runtime beside predict.py."""

from __future__ import annotations

import base64
import json
import struct
import zipfile

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from scipy.special import expit

import export
import predict
import train
from common.albumentations import fixed_windows
from common.checkpoint import load_checkpoint
from common.cli.values import parse_windows
from common.dicom.pictures import resize_area
from rsna_dataset import LABELS
from tests.runs import failure

SMALL = [
    "--net_model=resnet10t", "--data_image_size=32", "--tr_batch_size=8", "--tr_iteration_num=4",
    "--tr_iteration_valid=4", "--tr_report=0", "--n_jobs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(small_dataset, tmp_path_factory):
    return train.main([*small_dataset.flags, *SMALL, f"--output_dir={tmp_path_factory.mktemp('results')}"]) / "best.pt"


def test_onnx_runtime_predicts_what_predict_does_from_the_metadata_alone(small_dataset, weights, tmp_path, capsys):
    path = export.main([f"--net_weight_file={weights}", f"--export_file={tmp_path / 'm.onnx'}", "--n_jobs=1"])
    assert "differ from torch's by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])
    assert known["labels"] == list(LABELS)
    assert known["notice"] == "Not a medical device; not for diagnosis."
    (normalize,) = known["transform"]["transform"]["transforms"]
    predictions = pd.read_csv(
        predict.main([f"--net_weight_file={weights}", "--split=valid", f"--output_file={tmp_path / 'p.csv'}"]),
        index_col="id",
    )
    for image_id in predictions.index[:3]:
        stored = np.load(small_dataset.folder / "images" / f"{image_id}.npy")
        reduced = resize_area(stored, known["image_size"])
        windowed = fixed_windows(parse_windows(known["windows"]))(image=reduced)["image"]
        picture = (windowed - np.array(normalize["mean"])) / np.array(normalize["std"])
        given = picture.transpose(2, 0, 1)[None].astype(np.float32)
        (logits,) = session.run(None, {"image": given})
        np.testing.assert_allclose(expit(logits[0]), predictions.loc[image_id], atol=1e-4)


def test_a_network_of_neighbouring_slices_is_exported_with_all_its_channels(small_dataset, tmp_path):
    flags = [*small_dataset.flags, *SMALL, "--data_context=1", f"--output_dir={tmp_path}"]
    path = export.main([f"--net_weight_file={train.main(flags) / 'best.pt'}", "--n_jobs=1"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 9, 32, 32]


def test_onnx_runtime_says_of_padded_series_what_predict_says_of_slices_and_studies(
    with_features, small_dataset, tmp_path, capsys
):
    """All inputs are made here, from the files and the metadata in the exported one."""
    flags = ["--net_kind=sequence", f"--seq_features={with_features}", "--seq_width=16", "--seq_study=learned"]
    steps = ["--tr_batch_size=2", "--tr_iteration_num=20", "--tr_iteration_valid=20", "--optim_lr=0.02"]
    place = [f"--output_dir={tmp_path}", "--tr_report=0", "--n_jobs=1"]
    weights = train.main([*small_dataset.flags, *flags, *steps, *place]) / "best.pt"
    capsys.readouterr()
    path = export.main([f"--net_weight_file={weights}", "--n_jobs=1"])
    assert "padded together and each alone, the logits differ from torch's by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])
    assert {item.name: item.shape for item in session.get_inputs()} == {
        "features": ["batch", "slices", known["num_features"]], "logits": ["batch", "slices", 6],
        "position_mm": ["batch", "slices"], "mask": ["batch", "slices"],
    }  # fmt: skip
    assert set(known["inputs"]) == {item.name for item in session.get_inputs()}
    assert list(known["outputs"]) == [item.name for item in session.get_outputs()]
    slices = pd.read_csv(predict.main([f"--net_weight_file={weights}", "--split=valid"]), index_col="id")
    studies = pd.read_csv(tmp_path / "1" / "predictions_valid_studies.csv", index_col="study_id")
    folder = with_features / "features" / "train"
    features, logits = (np.load(folder / name) for name in ("features.npy", "logits.npy"))
    row_of = {name: row for row, name in enumerate(pd.read_csv(folder / "rows.csv")["id"])}
    metadata = pd.read_csv(small_dataset.folder / "metadata.csv", index_col="id").loc[slices.index]
    series = [part.sort_values("position_mm") for _, part in metadata.groupby("series_id")]
    longest = max(map(len, series))
    assert min(map(len, series)) < longest
    given = {
        "features": np.full((len(series), longest, features.shape[1]), 7, np.float32),
        "logits": np.full((len(series), longest, 6), 7, np.float32),
        "position_mm": np.full((len(series), longest), 7, np.float32),
        "mask": np.zeros((len(series), longest), bool),
    }
    for number, part in enumerate(series):
        rows, inside = [row_of[name] for name in part.index], slice(len(part))
        given["features"][number, inside] = features[rows]
        given["logits"][number, inside] = logits[rows]
        given["position_mm"][number, inside] = part["position_mm"] - part["position_mm"].mean()
        given["mask"][number, inside] = True
    slice_logits, study_logits = session.run(None, given)
    for number, part in enumerate(series):
        found = expit(slice_logits[number, : len(part)])
        np.testing.assert_allclose(found, slices.loc[part.index, list(LABELS)], atol=1e-5)
        expected = studies.loc[part["study_id"].iloc[0], list(LABELS)].astype(float)
        np.testing.assert_allclose(expit(study_logits[number]), expected, atol=1e-5)
    assert (slice_logits[~given["mask"]] == 0).all()


def torch_metadata(path):
    extra = {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["metadata.json"])


def numbers(text):
    """Hashes as docs/predicting.md says that they stand in metadata.json."""
    return [value for (value,) in struct.iter_unpack("<Q", base64.b64decode(text))]


def test_a_file_without_lineage_holds_nothing_of_what_it_learnt_from_and_says_so(weights, tmp_path, capsys):
    hashes = [struct.pack("<Q", int(value) % 2**64) for value in load_checkpoint(weights)["lineage"]["pictures"]]
    for form in ("torch_export", "checkpoint"):
        path = tmp_path / form
        flags = [f"--net_weight_file={weights}", f"--export_format={form}", f"--export_file={path}", "--lineage=0"]
        export.main(flags)
        assert "without lineage: the file doesn't say what it learnt from" in capsys.readouterr().out
        with zipfile.ZipFile(path) as archive:
            content = b"".join(map(archive.read, archive.namelist()))
        assert b"lineage" not in content
        assert not [value for value in hashes if value in content]
    assert "lineage" not in load_checkpoint(path)
    assert "lineage" not in torch_metadata(tmp_path / "torch_export")


def test_the_file_stands_beside_the_weights_and_the_dataset_must_be_there(weights, small_dataset, tmp_path, capsys):
    path = export.main([f"--net_weight_file={weights}", "--export_format=torch_export", "--n_jobs=1"])
    assert path == weights.with_suffix(".pt2")
    assert "with lineage: hashes of" in capsys.readouterr().out
    # It tells the same as the checkpoint; of other programs' forms this program judges and starts from none.
    checkpoint = load_checkpoint(weights)["lineage"]
    told = torch_metadata(path)["lineage"]
    assert numbers(told["pictures"]) == checkpoint["pictures"].numpy().view(np.uint64).tolist() != []
    names = {key: values.numpy().view(np.uint64).tolist() for key, values in checkpoint["names"].items()}
    assert {key: numbers(text) for key, text in told["names"].items()} == names
    assert told["unknown"] == []
    for main, more in ((predict.main, ["--split=valid"]), (train.main, [*small_dataset.flags, *SMALL])):
        line = failure(main, [f"--net_weight_file={path}", *more], capsys, 1)
        assert "best.pt2: a zip file, but not of torch" in line
    with pytest.raises(SystemExit) as ended:
        export.main([f"--net_weight_file={weights}", f"--data_input_folder={tmp_path}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
