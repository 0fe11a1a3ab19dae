"""Tests of rsna_export.py by export.py: a trained network in ONNX Runtime beside predict.py."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from scipy.special import expit

import export
import predict
import train
from common.albumentations import fixed_windows
from common.dicom.pictures import resize_area
from config import parse_windows
from rsna_dataset import LABELS

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


def test_the_file_stands_beside_the_weights_and_the_dataset_must_be_there(weights, tmp_path, capsys):
    path = export.main([f"--net_weight_file={weights}", "--export_format=torch_export", "--n_jobs=1"])
    assert path == weights.with_suffix(".pt2")
    with pytest.raises(SystemExit) as ended:
        export.main([f"--net_weight_file={weights}", f"--data_input_folder={tmp_path}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
