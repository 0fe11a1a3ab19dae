"""Missing labels and labels of whole studies, from a label table to training, evaluation and reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import evaluate
import preprocessing
import train
from common.checkpoint import load_checkpoint
from common.datasets.sequences import SequenceDataset, collate_sequences
from common.evaluation.metrics import prevalences_of
from common.models.backbone import create_model
from common.models.sequence import build_sequence_model
from common.networks.network import Batch
from rsna.forms import read_label_file, read_predictions
from rsna.kinds.series import RSNASequenceNetwork, study_labels_of
from rsna_dataset import LABELS, STUDY_LABELS, read_fold, read_metadata, study_targets
from rsna_network import RSNANetwork
from tests.commands.test_own_data import slice_of
from tests.dicom_files import write_ct
from tests.runs import failure

TRAIN = [
    "--net_model=resnet10t", "--data_image_size=32", "--tr_batch_size=4", "--tr_iteration_num=4",
    "--tr_iteration_valid=2", "--tr_report=0", "--n_jobs=1", "--data_dataset=own",
]  # fmt: skip
BLEEDING, HEALTHY, VAGUE = (4, 5), (6, 7), 8  # patients whose studies are labelled; the label of the last is any alone


def sop(patient: int, place: int) -> str:
    return f"1.2.826.77.{patient}.1.{place}"


def table() -> str:
    """Slices of patients 0 to 3, without some labels, and whole studies of the others."""
    lines = ["StudyInstanceUID," + ",".join(LABELS)]
    for patient in range(4):
        for number in range(3):
            bleeds = int(patient < 2 and number == 1)
            lines.append(f"{sop(patient, number)}," + (f"0,0,0,,{bleeds},{bleeds}" if patient != 2 else ",0,0,,0,"))
    lines += [f"1.2.826.77.{p},0,1,0,0,0,1" for p in BLEEDING]
    lines += [f"1.2.826.77.{p},,,,,,0" for p in HEALTHY]
    return "\n".join([*lines, f"1.2.826.77.{VAGUE},,,,,,1"]) + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset ``own`` of nine patients, three slices each."""
    root = tmp_path_factory.mktemp("labels")
    (root / "export").mkdir()
    for patient in range(9):
        for number in range(3):
            write_ct(root / "export" / f"{patient}_{number}.dcm", slice_of(patient, number))
    (root / "labels.csv").write_text(table())
    prepare(root)
    return root


def prepare(root: Path, labels: str = "labels.csv", dataset: str = "own") -> Path:
    return preprocessing.main(
        [f"--data_input_folder={root / 'input'}", f"--pre_source={root / 'export'}", f"--data_dataset={dataset}",
         f"--pre_labels={root / labels}", "--n_jobs=1", "--pre_folds=2", "--pre_audit=1"]
    )  # fmt: skip


def in_source(place: Path, dataset: str = "own") -> pd.DataFrame:
    """The metadata by patient and slice."""
    folder = place / "input" / "datasets" / dataset
    metadata = read_metadata(folder)
    ids = pd.read_csv(place / "input" / f"id_map_{dataset}.csv", dtype=str, keep_default_na=False).set_index("id")
    names = ids.loc[metadata.index, "file"].str.extract(r"(\d)_(\d)\.dcm")
    return metadata.set_index([names[0].astype(int).to_numpy(), names[1].astype(int).to_numpy()])


def test_an_empty_cell_is_a_missing_label_unless_it_follows_from_the_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = ["id," + ",".join(LABELS), "a,,,,,,0", "b,1,,0,,,", "c,0,0,0,0,0,", "d,,,,,,1", "e,,,,,,", "a,0,,,,,"]
    path.write_text("\n".join(rows) + "\n")
    found = read_label_file(path)[list(LABELS)]
    nan = np.nan
    expected = {
        "a": [0] * 6,
        "b": [1, nan, 0, nan, nan, 1],
        "c": [0, 0, 0, 0, 0, nan],  # a bleeding may have no kind
        "d": [nan] * 5 + [1],
        "e": [nan] * 6,
    }
    pd.testing.assert_frame_equal(found, pd.DataFrame.from_dict(expected, orient="index", columns=list(LABELS)),
                                  check_names=False)  # fmt: skip
    path.write_text("\n".join(["id," + ",".join(LABELS[:5]), "a,0,0,,0,0", "b,0,1,,0,0", "c,0,0,0,0,0"]) + "\n")
    assert read_label_file(path)["any"].isna().tolist() == [True, False, False]
    path.write_text("\n".join(["id," + ",".join(LABELS), "a,0,0,0,0,0,1"]) + "\n")
    assert set(read_label_file(path).dtypes[list(LABELS)]) == {np.dtype(np.int8)}


def test_a_studys_1_is_the_label_of_no_slice_and_its_0_that_of_each(place: Path) -> None:
    rows = in_source(place)
    labels, studies = rows[list(LABELS)], rows[list(STUDY_LABELS)]
    assert labels.loc[(0, 1), "subdural"] == labels.loc[(0, 1), "any"] == 1
    assert labels.loc[2, ["epidural", "any"]].isna().all(axis=None)
    assert labels.loc[[0, 1, 2, 3], "subarachnoid"].notna().sum() == 7  # where any is 0
    for patient in BLEEDING:
        assert labels.loc[patient, ["intraparenchymal", "any"]].isna().all(axis=None)
        assert (labels.loc[patient, ["epidural", "intraventricular", "subarachnoid", "subdural"]] == 0).all(axis=None)
        assert (studies.loc[patient, ["study_intraparenchymal", "study_any"]] == 1).all(axis=None)
    assert (labels.loc[list(HEALTHY)] == 0).all(axis=None)
    assert labels.loc[VAGUE].isna().all(axis=None)
    assert studies.loc[VAGUE, "study_any"].tolist() == [1, 1, 1]
    assert (rows["split"] == "train").all()
    folder = place / "input" / "datasets" / "own"
    fold = read_fold(folder, "own", 0)
    pd.testing.assert_frame_equal(fold[list(LABELS)].sort_index(), read_metadata(folder)[list(LABELS)].sort_index())
    truth = study_targets(fold, fold["study_id"].to_numpy(dtype=str))
    by_patient = truth.loc[[rows.loc[(patient, 0), "study_id"] for patient in range(9)], "any"]
    assert by_patient.tolist() == pytest.approx([1, 1, np.nan, 0, 1, 1, 0, 0, 1], nan_ok=True)
    assert "nan%" not in (folder / "audit.html").read_text()


def test_a_slices_own_1_counts_more_than_its_studys_0(place: Path) -> None:
    (place / "both.csv").write_text(table() + f"{sop(6, 2)},0,0,0,0,1,1\n")
    prepare(place, "both.csv", "both")
    rows = in_source(place, "both")
    assert rows.loc[6, "any"].tolist()[2] == 1
    assert np.isnan(rows.loc[6, "any"].to_numpy()[:2]).all()
    assert (rows.loc[6, "study_subdural"] == 1).all()
    assert (rows.loc[6, "epidural"] == 0).all()


class Linear(nn.Module):
    """Logits of slices from their mean, so that every logit has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1).mean(dim=1, keepdim=True))


def test_study_labelled_positives_have_no_gradient_in_the_loss_of_slices(place: Path) -> None:
    rows = read_fold(place / "input" / "datasets" / "own", "own", 0)
    positive = rows[(rows["study_any"] == 1) & (rows["study_id"] == in_source(place).loc[(VAGUE, 0), "study_id"])]
    target = torch.from_numpy(positive[list(LABELS)].to_numpy(np.float32))
    batch = Batch({"image": torch.randn(len(positive), 1, 4, 4)}, target, list(positive.index))
    network = RSNANetwork(Linear(), torch.device("cpu"))
    output = network.training_step(network.model, batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in network.model.parameters())
    known = rows[rows["any"] == 0].iloc[:3]
    batch = Batch(batch.inputs, torch.from_numpy(known[list(LABELS)].to_numpy(np.float32)), list(known.index))
    network.training_step(network.model, batch).loss.backward()
    assert all((parameter.grad != 0).any() for parameter in network.model.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_studys_label_trains_the_logit_of_the_study_alone(place: Path, weight: float) -> None:
    rows = read_fold(place / "input" / "datasets" / "own", "own", 0)
    study = in_source(place).loc[(VAGUE, 0), "study_id"]
    rows = rows[rows["study_id"] == study].assign(**dict.fromkeys(STUDY_LABELS[:5], np.nan))
    torch.manual_seed(0)
    model = build_sequence_model("gru", {"seq_width": 8, "seq_study": "noisy_or", "seq_drop": 0.0}, 5, 6)
    random = np.random.default_rng(0)
    data = SequenceDataset(
        rows.index, rows["study_id"], np.arange(3.0), np.arange(3), rows[list(LABELS)].to_numpy(np.float32),
        np.arange(3), random.normal(size=(3, 5)), random.normal(size=(3, 6)), 0.0, 0, study_labels_of(rows),
    )  # fmt: skip
    network = RSNASequenceNetwork(model, torch.device("cpu"), study_weight=weight)
    batch = collate_sequences([data[0]])
    output = network.training_step(network.model, batch)
    output.loss.backward()
    logit = network.model(*network.inputs_of(batch)).study[0, 5]
    # any weighs 2 of 7, and the five kinds of the study are missing
    assert output.loss.item() == pytest.approx(weight * 2 / 7 * nn.functional.softplus(-logit).item(), rel=1e-5)
    gradient = network.model.head.weight.grad
    assert (gradient[:5] == 0).all()
    assert bool((gradient[5] != 0).any()) == (weight > 0)


def test_slices_and_studies_train_and_are_judged_together_each_at_its_level(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [f"--data_input_folder={place / 'input'}", f"--output_dir={place / 'results'}"]
    train.main([*TRAIN, *common, "--experiment_id=mixed", "--data_sampler=balanced", "--tr_report=1"])
    folder = place / "results" / "mixed"
    valid = read_fold(place / "input" / "datasets" / "own", "own", 0)
    valid = valid[valid["sample_type"] == "valid"]
    frame = read_predictions(folder / "predictions_valid.csv").loc[valid.index]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min(line["valid/weighted_log_loss"] for line in logged if "valid/weighted_log_loss" in line)
    weights, total, cells = dict.fromkeys(LABELS, 1) | {"any": 2}, 0.0, 0.0
    for name in LABELS:
        known = valid[name].notna()
        p, y = frame.loc[known, name], valid.loc[known, name]
        total += weights[name] * -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        cells += weights[name] * known.sum()
    assert best == pytest.approx(total / cells, abs=1e-6)
    capsys.readouterr()
    evaluate.main([f"--experiment_id={folder.name}", f"--output_dir={folder.parent}", "--n_jobs=1"])
    said = capsys.readouterr().out
    assert "nan" not in said
    document = json.loads((folder / "evaluation.json").read_text())
    slices = {row["label"]: row for row in document["slice_level"]}
    assert slices["weighted"]["log_loss"] == pytest.approx(total / cells, rel=1e-9)
    assert slices["epidural"]["images"] == valid["epidural"].notna().sum()
    studies = {row["label"]: row for row in document["study_level"]}
    truth = study_targets(valid, valid["study_id"].to_numpy(dtype=str))
    assert studies["any"]["positive_patients"] == (truth["any"] == 1).sum()
    assert studies["any"]["patients"] == truth["any"].notna().sum()
    page = re.sub(r"base64,[^\"']*", "", (folder / "report.html").read_text())
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


@pytest.fixture(scope="module")
def of_studies(place: Path) -> list[str]:
    """Flags for the dataset ``studies``, in which whole studies are labelled and no slice is; patients 0 to 3 bleed."""
    lines = [f"1.2.826.77.{p}," + ("0,1,0,0,0,1" if p % 2 else "0,0,0,,1,1") for p in range(4)]
    lines += [f"1.2.826.77.{p},0,0,0,0,0,0" for p in range(4, 9)]
    (place / "studies.csv").write_text("\n".join([table().splitlines()[0], *lines]) + "\n")
    prepare(place, "studies.csv", "studies")
    torch.manual_seed(0)
    torch.save(create_model("resnet10t", 6, 3, image_size=32).state_dict(), place / "start.pt")
    return [f"--data_input_folder={place / 'input'}", f"--output_dir={place / 'results'}", "--data_dataset=studies"]


STUDY = ["--net_kind=study", "--seq_width=8", "--seq_study=noisy_or", "--tr_batch_size=2", "--tr_early_stop=9"]


def loss_of(judged: pd.DataFrame, truth: pd.DataFrame) -> float:
    """The weighted log loss over the labelled cells, written out."""
    total = cells = 0.0
    for name in LABELS:
        for study, label in truth[name].dropna().items():
            p, weight = judged.loc[study, name], 2 if name == "any" else 1
            total, cells = total - weight * np.log(p if label else 1 - p), cells + weight
    return total / cells


def study_table(place: Path) -> pd.DataFrame:
    """The labels of the table by the studies' pseudonyms."""
    rows = in_source(place, "studies")
    labels = pd.read_csv(place / "studies.csv", index_col="StudyInstanceUID")
    return labels.set_axis([rows.loc[(patient, 0), "study_id"] for patient in range(9)])


def test_labels_of_studies_alone_train_choose_and_judge_a_network_by_studies(
    place: Path, of_studies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"--net_weight_file={place / 'start.pt'}"
    folder = train.main([*TRAIN, *of_studies, *STUDY, start, "--experiment_id=alone", "--tr_report=1"])
    assert "valid/study_weighted_log_loss" in capsys.readouterr().err
    fold = read_fold(place / "input" / "datasets" / "studies", "studies", 0)
    truth = study_table(place).loc[fold.loc[fold["sample_type"] == "valid", "study_id"].unique()]
    assert truth["any"].nunique() == 2
    judged = pd.read_csv(folder / "predictions_valid_studies.csv", index_col="study_id")
    slices = read_predictions(folder / "predictions_valid.csv")
    never = np.log(1 - slices[list(LABELS)]).groupby(fold.loc[slices.index, "study_id"]).sum()
    np.testing.assert_allclose(judged.loc[never.index], 1 - np.exp(never), atol=1e-5)  # noisy-or of its slices
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert not {key for line in logged for key in line if key.startswith("valid/") and "study" not in key}
    values = [line["valid/study_weighted_log_loss"] for line in logged if "valid/study_weighted_log_loss" in line]
    assert min(values) == pytest.approx(loss_of(judged, truth), rel=1e-6)
    best = load_checkpoint(folder / "best.pt")["metrics"]
    assert best["valid/study_weighted_log_loss"] == min(values)
    table = pd.read_csv(folder.parent / "leaderboard.csv").set_index("experiment")
    assert table.loc["alone", "weighted_log_loss"] == min(values)
    assert f"fold 0: {len(truth)} studies of {len(truth)} patients" in table.loc["alone", "group"]
    assert table.loc["alone", "of_constant"] > 0  # judged.json is of the same value
    page = re.sub(r"base64,[^\"']*", "", (folder / "report.html").read_text())
    assert "Only studies have labels" in page
    assert "weighted log loss by study" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    evaluate.main(["--experiment_id=alone", *of_studies[1:2], "--n_jobs=1"])
    said = capsys.readouterr().out
    assert "reproduces the logged valid/study_weighted_log_loss" in said
    assert "only studies have labels" in said
    document = json.loads((folder / "evaluation.json").read_text())
    assert (document["level"], document["slice_level"], document["strata"]) == ("studies", [], [])
    weighted = pd.read_csv(folder / "evaluation.csv", index_col="label").loc["weighted"]
    assert weighted["log_loss"] == pytest.approx(loss_of(judged, truth), rel=1e-6)
    shares = study_table(place).loc[fold.loc[fold["sample_type"] == "train", "study_id"].unique()]
    constant = pd.DataFrame([prevalences_of(shares)] * len(truth), truth.index, list(LABELS))
    assert weighted["constant_log_loss"] == pytest.approx(loss_of(constant, truth), rel=1e-6)


@pytest.mark.slow
def test_folds_without_a_slice_label_are_put_together_by_study(place: Path, of_studies: list[str]) -> None:
    flags = [*TRAIN[:3], "--tr_iteration_num=2", *TRAIN[4:], *STUDY, f"--net_weight_file={place / 'start.pt'}"]
    folder = train.main([*flags, *of_studies, "--experiment_id=folds", "--data_fold=all"])
    document = json.loads((folder / "cross_validation.json").read_text())
    judged = pd.read_csv(folder / "predictions_oof_studies.csv", index_col="study_id")
    truth = study_table(place)
    assert sorted(judged.index) == sorted(truth.index)
    assert document["level"] == "study"
    assert document["pooled"]["weighted_log_loss"] == pytest.approx(loss_of(judged, truth), rel=1e-6)


def test_what_labels_of_studies_cannot_do_is_one_line(
    place: Path, of_studies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(train.main, [*TRAIN, *of_studies, "--tr_batch_size=2"], capsys, 2)
    assert "has a label 1 of its own" in line
    assert "--pre_labels" in line
    assert "--net_kind=study" in line
    start = f"--net_weight_file={place / 'start.pt'}"
    line = failure(train.main, [*TRAIN, *of_studies, *STUDY, start, "--seq_study_weight=0"], capsys, 2)
    assert "--seq_study_weight" in line


def test_a_dataset_of_before_whose_slices_have_their_studies_labels_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(place, "labels.csv", "earlier")
    for path in [folder / "metadata.csv", *folder.glob("dataset_*.csv")]:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = rows.assign(**{name: rows[name].replace("", "0") for name in LABELS}).drop(columns=list(STUDY_LABELS))
        rows.to_csv(path, index=False)
    info = json.loads((folder / "dataset.json").read_text())
    del info["missing_labels"]
    (folder / "dataset.json").write_text(json.dumps(info))
    line = failure(train.main, [*TRAIN, f"--data_input_folder={place / 'input'}", "--data_dataset=earlier",
                                f"--output_dir={place / 'results'}"], capsys, 1)  # fmt: skip
    assert "run python preprocessing.py again" in line
