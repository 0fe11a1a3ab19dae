"""--net_kind=study: slice network and sequence model as one, from whole series of pictures to slices and studies."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit

import evaluate
import export
import predict
import train
from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args, parse_mode
from common.datasets.sequences import SeriesKey, collate_pictures
from common.models.backbone import create_model
from common.models.exporting import FORMATS
from common.models.freezing import train_mode
from common.models.sequence import build_sequence_model
from common.models.study_layers import StudyNetwork
from common.transforms.device import DevicePart
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.kinds.pictures import load_pipelines
from rsna.kinds.studies import picture_series
from rsna.prediction.options import PredictConfig
from rsna.prediction.trained import Views, load_network, load_views, predict_with_studies, split_rows
from rsna.training.folds import fold_plan
from rsna_dataset import LABELS, RSNADataset, read_fold, read_metadata
from tests.runs import assert_alike, assert_same_run, failure, open_runs

STUDY = [
    "--net_kind=study", "--seq_width=16", "--seq_study=learned", "--study_chunk=8", "--data_image_size=32",
    "--tr_batch_size=2", "--tr_iteration_num=4", "--tr_iteration_valid=4", "--optim_lr=0.01", "--tr_report=0",
    "--n_jobs=1",
]  # fmt: skip


def study_network(chunk: int) -> StudyNetwork:
    torch.manual_seed(0)
    slices = create_model("resnet10t", 6, 3, image_size=32)
    sequence = build_sequence_model("gru", {"seq_width": 16, "seq_study": "learned"}, slices.num_features, 6)
    for parameter in sequence.parameters():  # also those that start at 0
        torch.nn.init.normal_(parameter, std=0.2)
    sequence.dropout.p = 0
    sequence.encoder.cell.dropout = 0
    return StudyNetwork(slices, sequence, chunk)


def series(*lengths: int) -> tuple[torch.Tensor, ...]:
    """Pictures, places in mm, mask and the slices' places in it."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    places = torch.arange(max(lengths)).float().expand(mask.shape) * mask
    return torch.randn(sum(lengths), 3, 32, 32, generator=generator), places, mask, torch.nonzero(mask.flatten())[:, 0]


def gradients(network: StudyNetwork) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_chunks_change_neither_logits_nor_gradients_and_are_what_both_networks_say_one_after_the_other() -> None:
    network, inputs = study_network(100), series(7, 3)
    train_mode(network)
    output = network(*inputs)
    (output.slices[inputs[2]].sum() + output.study.sum()).backward()
    expected = gradients(network)
    chunked = study_network(4)
    train_mode(chunked)
    found = chunked(*inputs)
    (found.slices[inputs[2]].sum() + found.study.sum()).backward()
    torch.testing.assert_close(found.slices[inputs[2]], output.slices[inputs[2]], atol=1e-4, rtol=1e-4)
    assert gradients(chunked).keys() == expected.keys()
    for name, gradient in gradients(chunked).items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-3, rtol=2e-3, msg=name)
    image, places, *_ = inputs
    with torch.no_grad():
        slices = network.slices
        features = slices.forward_head(slices.forward_features(image), pre_logits=True)
        logits, start = slices(image), 0
        for row, length in enumerate((7, 3)):
            part = slice(start, start + length)
            one = [features[None, part], logits[None, part], places[row : row + 1, :length]]
            alone = network.sequence(*one, torch.ones(1, length, dtype=torch.bool))
            torch.testing.assert_close(output.slices[row, :length], alone.slices[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(output.study[row], alone.study[0], atol=1e-4, rtol=1e-4)
            start += length


@pytest.mark.parametrize("frozen", [False, True])
def test_running_statistics_stay_and_a_frozen_network_gets_no_gradient(frozen: bool) -> None:
    network, inputs = study_network(4), series(5, 2)
    if frozen:
        network.slices.requires_grad_(False)
    before = {name: value.clone() for name, value in network.named_buffers()}
    train_mode(network)
    assert network.sequence.training
    assert network.slices.training != frozen
    network(*inputs).study.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    trained = {name.partition(".")[0] for name in gradients(network)}
    assert trained == ({"sequence"} if frozen else {"sequence", "slices"})


def test_in_mixed_precision_the_sequence_model_corrects_logits_that_are_float32() -> None:
    network, inputs = study_network(4), series(5)
    train_mode(network)
    torch.nn.init.zeros_(network.sequence.head.weight)
    torch.nn.init.constant_(network.sequence.head.bias, 2.0**-10)  # less than bfloat16 tells apart of a logit
    network.slices.fc.bias.data += 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(*inputs).slices[0]
    network.sequence.head.bias.data.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # another, since one casts each weight once
        without = network(*inputs).slices[0]
    torch.testing.assert_close(found - without, torch.full_like(found, 2.0**-10), rtol=1e-2, atol=0)


def test_no_activations_of_the_pictures_are_kept_for_the_backward_pass() -> None:
    kept = []
    for chunk in (100, 2):
        network, inputs = study_network(chunk), series(12)
        train_mode(network)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.nbytes) or x, lambda x: x):
            network(*inputs)
        kept.append(sum(sizes))
    alone = copy.deepcopy(network.slices)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        alone(inputs[0])
    assert max(kept) < 0.2 * sum(sizes)


@pytest.fixture(scope="module")
def trained(finished: Path, small_dataset, tmp_path_factory) -> Path:
    """An experiment that goes on from the slice network of fold 0."""
    start = f"--net_weight_file={finished / 'fold_0' / 'best.pt'}"
    place = f"--output_dir={tmp_path_factory.mktemp('results')}"
    return train.main([*small_dataset.flags, *STUDY, start, place, "--experiment_id=study", "--data_context=0"])


def test_each_series_is_seen_once_for_its_slices_and_its_study(trained: Path, small_dataset) -> None:
    network = load_network(trained / "best.pt")
    metadata = read_metadata(small_dataset.folder, described=True)
    rows = metadata.loc[read_fold(small_dataset.folder, "phantom", 0).query("sample_type == 'valid'").index]
    seen: list[int] = []
    network.network.model.register_forward_hook(lambda model, inputs, output: seen.append(len(output.study)))
    slices, studies = predict_with_studies(network, rows)
    assert sum(seen) == rows["series_id"].nunique()
    written = read_predictions(trained / "predictions_valid.csv")
    np.testing.assert_allclose(slices, written.loc[slices.index, list(LABELS)], atol=1e-6)
    assert sorted(studies.index) == sorted(rows["study_id"].unique())


def test_views_are_predicted_one_by_one_and_their_mean_is_taken_of_slices_and_of_studies(
    trained, small_dataset, capsys
):
    network = load_network(trained / "best.pt")
    rows = split_rows(network, "valid")
    asked = [f"--net_weight_file={trained / 'best.pt'}", "--tta=train_intermediate_128.json", "--tta_views=2"]
    seen = {}
    for method in ("mean", "logit"):
        views = load_views(network, parse_mode(PredictConfig, [*asked, f"--tta_mean={method}"]))
        seen[method] = predict_with_studies(network, rows, views, workers=0)
    alone = [predict_with_studies(network, rows, Views([view], "mean"), workers=0) for view in views.pipelines]
    for table in (0, 1):
        first, second = (found[table].to_numpy() for found in alone)
        assert np.abs(first - second).max() > 1e-4
        np.testing.assert_allclose(seen["mean"][table], (first + second) / 2, atol=1e-9)
        np.testing.assert_allclose(seen["logit"][table], expit((logit(first) + logit(second)) / 2), atol=1e-9)
    evaluate.main(["--experiment_id=study", f"--output_dir={trained.parent}", "--eval_draws=100", *asked[1:]])
    assert "tta" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("transform", ["valid_intermediate.json", "train_intermediate.json"])
def test_pictures_that_the_device_transforms_are_those_that_the_loading_process_makes(transform, small_dataset) -> None:
    flags = [*small_dataset.flags, *STUDY, "--net_pretrained=1", f"--data_train_transform={transform}"]
    config = parse_args(TrainConfig, flags)
    rows = read_fold(small_dataset.folder, "phantom", 0).query("sample_type == 'train'")
    pipeline, _ = load_pipelines(small_dataset.folder, config)
    host, device = (
        picture_series(config, small_dataset.folder, rows, placed, 0.5) for placed in (pipeline, DevicePart(pipeline))
    )
    keys = [SeriesKey(1, 3, 0), SeriesKey(0, 3, 0)]
    expected, drawn = (collate_pictures([data[key] for key in keys]) for data in (host, device))
    assert drawn.inputs["image"].dtype == torch.int16
    found = drawn.finished()
    assert found.image_id == expected.image_id
    assert torch.equal(found.target, expected.target)
    assert found.lengths == expected.lengths == (host.lengths[1], host.lengths[0])
    for name in ("position_mm", "mask", "places"):
        assert torch.equal(found.inputs[name], expected.inputs[name])
    difference = (found.inputs["image"] - expected.inputs["image"]).abs()
    assert float(difference.quantile(0.999) if difference.numel() < 2**24 else difference.mean()) < 0.02


def test_it_is_evaluated_and_predicts_slices_and_studies(trained: Path, finished, small_dataset, tmp_path, capsys):
    capsys.readouterr()
    evaluate.main(["--experiment_id=study", f"--output_dir={trained.parent}", "--eval_draws=100"])
    assert "reproduces the logged" in capsys.readouterr().out
    written = read_predictions(trained / "predictions_valid.csv")
    fold = read_fold(small_dataset.folder, "phantom", 0)
    assert set(written.index) == set(fold.index[fold["sample_type"] == "valid"])
    path = predict.main([f"--net_weight_file={trained / 'best.pt'}", f"--output_file={tmp_path / 'p.csv'}"])
    expected = read_predictions(path)
    studies = pd.read_csv(tmp_path / "p_studies.csv", index_col="study_id")
    place = f"--data_input_folder={tmp_path / 'nothing'}"
    source = [f"--source={small_dataset.source / 'stage_2_test'}", f"--predict_output={tmp_path / 'out'}", place]
    output = predict.main([f"--net_weight_file={trained / 'best.pt'}", *source, "--n_jobs=1"])
    slices = pd.read_csv(output / "slices.csv", index_col="id")[list(LABELS)]
    np.testing.assert_allclose(slices, expected.loc[slices.index], atol=1e-5)
    of_files = pd.read_csv(output / "studies.csv", index_col="study_id")[list(LABELS)]
    np.testing.assert_allclose(of_files, studies.loc[of_files.index, list(LABELS)], atol=1e-5)
    source[1:] = [f"--predict_output={tmp_path / 'mapped'}", place, "--calibrate=1"]
    mapped = predict.main([f"--net_weight_file={trained / 'best.pt'}", *source, "--n_jobs=1"])
    temperatures = json.loads((trained / "calibration.json").read_text())
    for table, index, key in (
        ("slices.csv", "id", "temperatures"),
        ("studies.csv", "study_id", "study_temperatures"),
    ):
        before, after = (pd.read_csv(folder / table, index_col=index) for folder in (output, mapped))
        for name in LABELS:
            np.testing.assert_allclose(after[name], expit(logit(before[name]) / temperatures[key][name]), rtol=1e-4)
    models = json.loads((output / "predictions.json").read_text())["models"]
    assert models["slices"][0]["model"] == "resnet10t and gru"
    assert models["study"] == "sequence model (learned)"
    start = load_checkpoint(finished / "fold_0" / "best.pt")["model"]
    now = load_checkpoint(trained / "best.pt")["model"]
    assert not torch.equal(now["slices.fc.weight"], start["fc.weight"])  # it learnt too


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torch_export"])
def test_an_exported_file_says_of_padded_pictures_what_predict_says(
    trained, small_dataset, tmp_path, file_format, capsys
):
    """All inputs are made here, from the image files and the metadata."""
    made = ["--export_format", file_format, f"--export_file={tmp_path / 'study'}", "--n_jobs=1"]
    path = export.main([f"--net_weight_file={trained / 'best.pt'}", *made])
    assert "padded together and each alone, the logits differ from torch's by" in capsys.readouterr().out
    network = load_network(trained / "best.pt")
    rows = split_rows(network, "valid")
    slices, studies = predict_with_studies(network, rows, workers=0)
    metadata = read_metadata(small_dataset.folder).loc[rows.index]
    series = sorted((part.sort_values("position_mm") for _, part in metadata.groupby("series_id")), key=len)
    first, last = series[0], series[-1]
    assert len(first) < len(last)
    dataset = RSNADataset(small_dataset.folder, metadata, network.pipeline, 32, 0, 0)
    shape = (2, len(last))
    given = {
        "image": torch.full((*shape, *dataset[0].image.shape), 7.0),
        "position_mm": torch.full(shape, 7.0),
        "mask": torch.zeros(shape, dtype=torch.bool),
    }
    for row, part in enumerate((first, last)):
        for place, name in enumerate(part.index):
            given["image"][row, place] = torch.from_numpy(dataset[metadata.index.get_loc(name)].image)
        given["position_mm"][row, : len(part)] = torch.tensor(
            (part["position_mm"] - part["position_mm"].mean()).to_numpy()
        )
        given["mask"][row, : len(part)] = True
    slice_logits, study_logits = FORMATS[file_format].open(path)(list(given.values()))
    for row, part in enumerate((first, last)):
        found = expit(slice_logits[row, : len(part)].detach().numpy())
        np.testing.assert_allclose(found, slices.loc[part.index, list(LABELS)], atol=1e-4)
        of_study = studies.loc[part["study_id"].iloc[0], list(LABELS)]
        np.testing.assert_allclose(expit(study_logits[row].detach().numpy()), of_study, atol=1e-4)
    assert not slice_logits[~given["mask"]].any()


@pytest.mark.slow
def test_a_frozen_slice_network_stays_as_it_was(finished, small_dataset, tmp_path) -> None:
    start = finished / "fold_0" / "best.pt"
    flags = [f"--net_weight_file={start}", "--net_freeze=backbone", f"--output_dir={tmp_path}"]
    now = load_checkpoint(train.main([*small_dataset.flags, *STUDY, *flags]) / "best.pt")["model"]
    before = load_checkpoint(start)["model"]
    assert all(torch.equal(now[f"slices.{name}"], value) for name, value in before.items())
    assert now["sequence.head.weight"].abs().max() > 0


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(finished, small_dataset, tmp_path) -> None:
    start = f"--net_weight_file={finished / 'fold_0' / 'best.pt'}"
    with open_runs(tmp_path, [*small_dataset.flags, *STUDY, start, "--tr_checkpoint_minutes=1e-9"]) as runs:
        assert runs.start("whole")["code"] == 0
        assert runs.start("killed", signal=signal.SIGKILL, place="iteration", at=3)["code"] == -signal.SIGKILL
        answer = runs.go_on("killed")
        assert answer["code"] == 0, answer["output"]
        assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_as_one_that_takes_all_their_series_at_once(finished, small_dataset, tmp_path) -> None:
    start = f"--net_weight_file={finished / 'fold_0' / 'best.pt'}"
    # Adam's step of a gradient that is nearly nothing has its sign, which the order of a float32 sum decides.
    exact = (
        "--optim=sgd",
        "--seq_drop=0",
        "--tr_iteration_log=1",
        "--tr_accumulation_step=2",
        "--seq_study_weight=0.5",
    )
    with open_runs(tmp_path, [*small_dataset.flags, *STUDY, start, *exact]) as runs:
        answer = runs.start("one", "--tr_batch_size=2")
        assert answer["code"] == 0, answer["output"]
        answer = runs.start("two", "--tr_batch_size=1", processes=2)
        assert answer["codes"] == [0, 0], answer["output"]
        assert answer["outputs"][1] == ""
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_weights_of_another_fold_are_refused_before_anything_is_written(finished, small_dataset, tmp_path, capsys):
    start = f"--net_weight_file={finished / 'fold_1' / 'best.pt'}"
    assert "who validate fold 0 of phantom" in failure(
        train.main, [*small_dataset.flags, *STUDY, start, f"--output_dir={tmp_path}"], capsys
    )
    assert list(tmp_path.iterdir()) == []


def test_each_fold_of_a_cross_validation_starts_from_the_slice_network_of_its_own(
    finished, small_dataset, tmp_path, capsys
):
    flags = [*small_dataset.flags, *STUDY, f"--net_weight_file={finished}", "--data_fold=0,1,2"]
    config = parse_args(TrainConfig, flags)
    for fold in (0, 2):
        command = fold_plan(config, tmp_path, fold).command
        assert f"--net_weight_file={finished.resolve() / f'fold_{fold}' / 'best.pt'}" in command
    assert "has no fold 4; it has 0, 1, 2" in failure(
        train.main, [*flags[:-1], "--data_fold=0,4", f"--output_dir={tmp_path}"], capsys
    )
    assert list(tmp_path.iterdir()) == []


def test_what_a_network_over_whole_series_cannot_do_is_one_line(small_dataset, capsys) -> None:
    new = ["--net_kind=study", "--net_pretrained=1"]
    for flags, part in [
        (["--net_kind=study"], "starts from a slice network"),
        ([*new, "--seq_features=1"], "--seq_features means nothing"),
        ([*new, "--data_sampler=hard"], "--data_sampler means nothing"),
        ([*new, *small_dataset.flags, "--data_transform_device=cuda"], "--data_transform_device=cuda needs a GPU"),
        (["--study_chunk=4"], "--study_chunk means nothing to --net_kind=slice"),
    ]:
        assert part in failure(train.main, flags, capsys)
