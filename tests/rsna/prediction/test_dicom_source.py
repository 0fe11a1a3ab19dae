"""Tests of rsna/prediction/dicom_source.py by predict.py --source: DICOM of any origin in, tables and pictures out."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from pydicom.pixels import apply_modality_lut
from scipy.special import expit, logit

import evaluate
import predict
import preprocessing
import train
from common.checkpoint import load_checkpoint
from common.reports.page import NOTICE
from rsna_dataset import LABELS, read_metadata
from tests.commands.test_own_data import archive, slice_of  # noqa: F401 (a fixture)
from tests.common.reports.test_viewer import document_of, elements, unpacked
from tests.dicom_files import head, ids_of_files, write_ct
from tests.runs import failure

SMALL = [
    "--net_model=resnet10t", "--data_image_size=32", "--tr_batch_size=8", "--tr_iteration_num=4",
    "--tr_iteration_valid=4", "--tr_report=0", "--n_jobs=1",
]  # fmt: skip
FILES = {"failed.csv", "series.csv", "slices.csv", "studies.csv", "predictions.json"}


@pytest.fixture(scope="module")
def weights(small_dataset, tmp_path_factory) -> Path:
    """A weight file, of slices with their neighbours, alone in its folder: no dataset, no configuration beside it."""
    results = tmp_path_factory.mktemp("results")
    folder = train.main([*small_dataset.flags, *SMALL, "--data_context=1", f"--output_dir={results}"])
    return Path(shutil.copy(folder / "best.pt", tmp_path_factory.mktemp("weights") / "model.pt"))


def run(source: Path, weights: Path, output: Path, *more: str) -> Path:
    inputs = f"--data_input_folder={output.parent / 'input'}"
    return predict.main(
        [
            f"--source={source}",
            f"--net_weight_file={weights}",
            f"--predict_output={output}",
            inputs,
            "--n_jobs=1",
            *more,
        ]
    )


def ids_in_map(folder: Path) -> dict[str, str]:
    """The id of each file, by the map of the only prediction."""
    [path] = (folder / "input").glob("id_map_predict_*.csv")
    return ids_of_files(path)


def refusal(capsys: pytest.CaptureFixture[str], source: Path, weights: Path, output: Path, code: int = 2) -> str:
    return failure(lambda more: run(source, weights, output, *more), [], capsys, code)


def test_a_slice_gets_the_prediction_that_it_has_in_a_preprocessed_dataset(small_dataset, weights, tmp_path, capsys):
    output = run(small_dataset.source / "stage_2_test", weights, tmp_path / "out")
    slices = pd.read_csv(output / "slices.csv", index_col="id")
    expected = pd.read_csv(
        predict.main([f"--net_weight_file={weights}", f"--output_file={tmp_path / 'submission.csv'}", "--n_jobs=1"]),
        index_col="ID",
    )["Label"]
    rows = read_metadata(small_dataset.folder).query("split == 'test'")
    assert sorted(slices.index) == sorted(rows.index)  # the competition's ids stay
    for name in LABELS:
        np.testing.assert_allclose(slices[name], expected.loc[slices.index + f"_{name}"], rtol=1e-6)
    assert slices["slice_index"].equals(rows.loc[slices.index, "slice_index"])
    studies = pd.read_csv(output / "studies.csv", index_col="study_id")
    assert set(studies.index) == set(rows["study_id"])
    highest = slices.groupby("study_id")[list(LABELS)].max()
    pd.testing.assert_frame_equal(studies[list(LABELS)].sort_index(), highest.sort_index(), check_exact=True)
    assert (slices.loc[studies["highest_slice"], "any"].to_numpy() == studies["any"].to_numpy()).all()
    document = json.loads((output / "predictions.json").read_text())
    assert {study["study_id"] for study in document["studies"]} == set(studies.index)
    assert sum(len(study["slices"]) for study in document["studies"]) == len(slices)
    text = capsys.readouterr().out
    assert all(f"{study}: {row.slices} slices in " in text for study, row in studies.iterrows())


def test_a_volume_in_nifti_gets_the_predictions_of_its_dicom_files(small_dataset, weights, tmp_path):
    files = [pydicom.dcmread(path) for path in sorted((small_dataset.source / "stage_2_test").iterdir())]
    wanted = files[0].SeriesInstanceUID
    series = [file for file in files if file.SeriesInstanceUID == wanted]
    series.sort(key=lambda file: file.ImagePositionPatient[2])
    places = np.array([file.ImagePositionPatient for file in series], np.float64)
    across, down = np.reshape(np.array(series[0].ImageOrientationPatient, np.float64), (2, 3))
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [
            across * series[0].PixelSpacing[1],
            down * series[0].PixelSpacing[0],
            (places[-1] - places[0]) / (len(places) - 1),
            places[0],
        ]
    )
    affine[:2] *= -1  # DICOM's left and back are positive, NIfTI's right and front
    hu = np.stack([file.pixel_array * file.RescaleSlope + file.RescaleIntercept for file in series])
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine), tmp_path / "scan.nii.gz")
    whole = pd.read_csv(run(small_dataset.source / "stage_2_test", weights, tmp_path / "whole") / "slices.csv")
    mine = pd.read_csv(run(tmp_path / "scan.nii.gz", weights, tmp_path / "out") / "slices.csv")
    expected = whole[whole["id"].isin([f"ID_{file.SOPInstanceUID.removeprefix('ID_')}" for file in series])]
    assert len(mine) == len(expected) == len(series)
    columns = ["slice_index", *LABELS]
    np.testing.assert_allclose(
        mine.sort_values("slice_index")[columns], expected.sort_values("slice_index")[columns], rtol=1e-5
    )


def some_series(archive_folder: Path, target: Path, *numbers: str) -> Path:
    """A folder with some series of the archive's second study: 02 is the one to read, 03 bone, 05 with contrast."""
    for number in numbers:
        shutil.copytree(archive_folder / "archive" / "0001" / number, target / "b" / number)
    return target


def test_series_that_are_not_eligible_change_no_prediction(hospital_archive, weights, tmp_path, capsys):
    whole = hospital_archive / "archive" / "0001"
    alone = run(some_series(hospital_archive, tmp_path / "alone", "02"), weights, tmp_path / "out")
    among = run(whole, weights, tmp_path / "whole")
    assert "1 of 7 series chosen" in "".join(capsys.readouterr())
    for name, index in (("studies.csv", "study_id"), ("slices.csv", "id")):
        one, other = (pd.read_csv(folder / name, index_col=index)[list(LABELS)] for folder in (alone, among))
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-9)
        assert len(one) == (1 if name == "studies.csv" else 20)
    series = pd.read_csv(among / "series.csv")
    assert series["choice"].value_counts().to_dict() == {"not_eligible": 5, "chosen": 1, "not_chosen": 1}
    [study] = json.loads((among / "predictions.json").read_text())["studies"]
    assert {row["series_id"]: row["choice"] for row in study["series"]} == dict(
        zip(series["series_id"], series["choice"], strict=True)
    )
    [page] = among.glob("study_*.html")
    unused = dict(document_of(page)["unused"])
    others = series[series["choice"] != "chosen"].set_index("series_id")
    assert unused.keys() == set(others.index)
    for name, row in others.iterrows():
        assert unused[name].startswith(
            f"{row['choice'].replace('_', ' ')}: {row['reason']}; {row['series_slices']} slices"
        )
    two = some_series(hospital_archive, tmp_path / "two", "02", "03")
    every = run(two, weights, tmp_path / "all", "--pre_series=all")
    assert pd.read_csv(every / "studies.csv")["series"].item() == 2
    assert document_of(next(every.glob("study_*.html")))["unused"] == []


def test_a_study_without_an_eligible_series_says_why_and_is_no_silent_negative(
    hospital_archive, weights, tmp_path, capsys
):
    source = some_series(hospital_archive, tmp_path / "source", "03", "05")
    shutil.copytree(hospital_archive / "archive" / "0002" / "02", source / "good")
    output = run(source, weights, tmp_path / "out")
    reason = "no eligible series: bone kernel (1), contrast given (1)"
    studies = pd.read_csv(output / "studies.csv").set_index("study_id")
    [without] = studies.index[studies["any"].isna()]
    assert len(studies) == 2
    assert studies.loc[without, list(LABELS)].isna().all()
    assert studies.loc[without, "reason"] == reason
    assert studies.loc[without, "patient_id"].startswith("patient_")
    documents = {study["study_id"]: study for study in json.loads((output / "predictions.json").read_text())["studies"]}
    assert (documents[without]["probabilities"], documents[without]["reason"]) == (None, reason)
    assert f"{without}: not predicted, {reason}" in "".join(capsys.readouterr())
    only = some_series(hospital_archive, tmp_path / "only", "03")
    message = refusal(capsys, only, weights, tmp_path / "none", code=1)
    assert "no study has a series to predict" in message
    assert pd.read_csv(tmp_path / "none" / "studies.csv")["any"].isna().all()


def test_every_output_says_that_this_is_no_medical_device(small_dataset, weights, tmp_path, capsys):
    source = tmp_path / "one.zip"
    first = sorted((small_dataset.source / "stage_2_test").iterdir())[0]
    with zipfile.ZipFile(source, "w") as packed:
        packed.write(first, "a/first.dcm")
        packed.writestr("notes.txt", "none")
    output = run(source, weights, tmp_path / "out")
    assert NOTICE in capsys.readouterr().out
    for name in ("slices.csv", "studies.csv", "failed.csv"):
        table = pd.read_csv(output / name)
        assert len(table) == 1
        assert (table["notice"] == NOTICE).all()
    assert json.loads((output / "predictions.json").read_text())["notice"] == NOTICE
    pictures = [path for path in output.iterdir() if path.suffix == ".png"]
    pages = [path for path in output.iterdir() if path.suffix == ".html"]
    assert NOTICE in pages[0].read_text()
    assert {path.name for path in output.iterdir()} == FILES | {path.name for path in pictures + pages}
    picture = cv2.imread(str(pictures[0]))
    assert (picture[-28:, 10:300].max(axis=2) > 150).sum() > 100  # the notice's letters in its last lines


def test_a_hospitals_export_gives_no_name_number_date_or_uid_away(archive, weights, tmp_path, capsys, caplog):  # noqa: F811
    output = run(archive, weights, tmp_path / "out")
    studies = pd.read_csv(output / "studies.csv")
    assert sorted(studies["slices"]) == [1, 3, 3, 3, 3]
    failed = pd.read_csv(output / "failed.csv").set_index("id")["reason"]
    ids = ids_in_map(tmp_path)
    assert failed.to_dict() == {
        ids["AUTORUN.INF"]: "not_dicom",
        ids["README.txt"]: "not_dicom",
        ids["report.dcm"]: "not_ct",
        ids["scout"]: "localizer",
    }
    printed = capsys.readouterr()
    texts = [re.sub(rb'<script type="text/plain"[^<]*', b"", path.read_bytes()) for path in output.iterdir()] + [
        "\n".join([printed.out, printed.err, caplog.text, *map(str, output.iterdir())]).encode()
    ]
    for telling in (b"Mustermann", b"4711", b"1.2.826"):
        assert not any(telling in text for text in texts), telling
    again = run(archive, weights, tmp_path / "again")
    assert set(pd.read_csv(again / "studies.csv")["study_id"]) == set(studies["study_id"])  # the key stays


def test_what_is_no_slice_is_not_predicted_and_stands_in_no_picture(weights, tmp_path, capsys, caplog):
    source = tmp_path / "source"
    source.mkdir()
    for place in range(3):
        write_ct(source / f"{place}.dcm", slice_of(0, place))
    for name, header in {
        "map": {"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]},
        "burned_in": {"BurnedInAnnotation": "YES"},
        "secondary_capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SeriesInstanceUID": "1.2.9"},
    }.items():
        write_ct(source / f"{name}.dcm", slice_of(0, 7, SOPInstanceUID=f"1.2.3.{len(name)}", **header))
    output = run(source, weights, tmp_path / "out")
    assert len(pd.read_csv(output / "slices.csv")) == 3
    assert sorted(pd.read_csv(output / "failed.csv")["reason"]) == ["burned_in", "map", "secondary_capture"]
    assert len(list(output.glob("*.png"))) == 1
    assert "3 files gave no image, 3 of them no CT slices" in caplog.text


def test_each_series_of_a_study_has_its_picture_and_its_own_order(weights, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for place in range(3):  # positions against the names' order
        write_ct(source / f"a{place}", slice_of(1, place, ImagePositionPatient=[0, 0, -place]))
        write_ct(
            source / f"b{place}",
            slice_of(1, place + 5, SeriesInstanceUID="1.2.826.77.1.9", SOPInstanceUID=f"1.2.9.{place}"),
        )
    output = run(source, weights, tmp_path / "out", "--pre_series=all")
    study = pd.read_csv(output / "studies.csv").iloc[0]
    assert (study["series"], study["slices"]) == (2, 6)
    names = sorted(path.name for path in output.glob("*.png"))
    assert names == [f"{study['study_id']}_1.png", f"{study['study_id']}_2.png"]
    slices = pd.read_csv(output / "slices.csv", index_col="id")
    ids = ids_in_map(tmp_path)
    first = slices.loc[[ids[name] for name in ("a0", "a1", "a2")]]
    assert first["slice_index"].tolist() == [2, 1, 0]
    assert first["position_mm"].is_monotonic_decreasing


def test_pictures_are_stored_as_the_trainings_were(small_dataset, tmp_path):
    """A dataset of windows, reduced and cropped: the weight file alone knows how to make such pictures."""
    flags = [f"--data_input_folder={tmp_path / 'input'}", "--data_dataset=small"]
    form = ["--pre_size=32", "--pre_window=40/80,80/200,40/380", "--pre_type=uint8", "--pre_crop=head", "--n_jobs=1"]
    preprocessing.main([*flags, f"--pre_source={small_dataset.source}", *form])
    folder = train.main([*flags, *SMALL, f"--output_dir={tmp_path / 'results'}"])
    expected = pd.read_csv(predict.main([f"--net_weight_file={folder / 'best.pt'}", "--n_jobs=1"]), index_col="ID")[
        "Label"
    ]
    shutil.rmtree(tmp_path / "input" / "datasets")
    output = run(small_dataset.source / "stage_2_test", folder / "best.pt", tmp_path / "out")
    slices = pd.read_csv(output / "slices.csv", index_col="id")
    np.testing.assert_allclose(slices["any"], expected.loc[slices.index + "_any"], rtol=1e-6)
    for study, rows in slices.groupby("study_id"):  # people see the picture as scanned all the same
        assert_page_holds(output / f"{study}.html", [hounsfield_of(small_dataset.source, name) for name in rows.index])


def hounsfield_of(source: Path, name: str) -> np.ndarray:
    """HU of a phantom's test file by pydicom alone."""
    dataset = pydicom.dcmread(source / "stage_2_test" / f"{name}.dcm")
    return apply_modality_lut(dataset.pixel_array, dataset)


def assert_page_holds(page: Path, images: list[np.ndarray]) -> None:
    """Hold the HU in a page's first series, decoded, against images in the order of slices."""
    held = elements(page)
    assert sorted(held) == sorted(f"p0-{place}" for place in range(len(images)))
    same = [np.array_equal(unpacked(held[f"p0-{place}"], image.shape), image) for place, image in enumerate(images)]
    assert all(same), same


def test_a_studys_page_holds_its_series_as_scanned_and_names_the_sides_of_the_patient(weights, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for place in range(3):
        for patient, study, row in ((1, "1.2.3", [1, 0, 0]), (1, "1.2.4", [-1, 0, 0]), (2, "1.2.5", [1, 0, 0])):
            more = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": f"{study}.{place}"}
            more |= {"ImageOrientationPatient": [*row, 0, 1, 0], "ImagePositionPatient": [row[0] * -60, -40, 5 * place]}
            write_ct(source / f"{study}_{place}", slice_of(patient, place, **more))
    output = run(source, weights, tmp_path / "out")
    ids, slices = ids_in_map(tmp_path), pd.read_csv(output / "slices.csv", index_col="id")
    pages = {}
    for study, patient in (("1.2.3", 1), ("1.2.4", 1), ("1.2.5", 2)):
        names = [ids[f"{study}_{place}"] for place in range(3)]
        pages[study] = output / f"{slices['study_id'][names[0]]}.html"
        due = {slices["slice_index"][name]: head(10 * patient + place) for place, name in enumerate(names)}
        assert_page_holds(pages[study], [due[place] for place in range(3)])
    documents = {study: document_of(page) for study, page in pages.items()}
    assert [one["edges"] for one in documents["1.2.3"]["series"][0]["slices"]] == [["A", "L", "P", "R"]] * 3
    assert [one["edges"] for one in documents["1.2.4"]["series"][0]["slices"]] == [["A", "R", "P", "L"]] * 3
    first = documents["1.2.3"]["series"][0]
    assert first["direction"].startswith("The first slice is the one nearest the feet")
    assert [one["corner_mm"] for one in first["slices"]] == [[-60, -40, 5 * place] for place in range(3)]
    assert [one["position_mm"] for one in first["slices"]] == [0, 5, 10]
    table = pd.read_csv(output / "slices.csv").query(f"study_id == '{pages['1.2.3'].stem}'")
    for name in LABELS:
        np.testing.assert_allclose(first["probabilities"][name], table[name], atol=5e-7)
    assert documents["1.2.3"]["others"] == [[pages["1.2.4"].stem, pages["1.2.4"].name]]
    assert documents["1.2.5"]["others"] == []
    found = json.loads((output / "predictions.json").read_text())["studies"]
    assert {study["page"] for study in found} == {page.name for page in pages.values()}
    without = run(source, weights, tmp_path / "without", "--predict_viewer=0")
    assert not list(without.glob("*.html"))


def test_files_without_uids_give_files_that_are_seen(weights, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for place in range(2):
        nothing = dict.fromkeys(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), "")
        write_ct(source / f"{place}.dcm", slice_of(0, place, **nothing))
    output = run(source, weights, tmp_path / "out")
    assert {path.name for path in output.iterdir()} == FILES | {"study_unknown.png", "study_unknown.html"}
    due = {ids_in_map(tmp_path)[f"{place}.dcm"]: head(place) for place in range(2)}
    order = pd.read_csv(output / "slices.csv")["id"]
    assert_page_holds(output / "study_unknown.html", [due[name] for name in order])
    assert document_of(output / "study_unknown.html")["others"] == []


def test_an_older_weight_file_needs_the_trainings_dataset(small_dataset, weights, tmp_path, capsys):
    contents = load_checkpoint(weights)
    del contents["images"]
    torch.save(contents, tmp_path / "old.pt")
    source = small_dataset.source / "stage_2_test"
    assert "an older weight file" in refusal(capsys, source, tmp_path / "old.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_calibrated_predictions_are_those_of_the_temperatures_that_evaluate_fitted(
    small_dataset, weights, tmp_path, capsys
):
    results = tmp_path / "results"
    folder = train.main([*small_dataset.flags, *SMALL, f"--output_dir={results}"])
    flags = [f"--net_weight_file={folder / 'best.pt'}", "--split=valid", "--n_jobs=1"]
    plain = pd.read_csv(predict.main([*flags, f"--output_file={tmp_path / 'plain.csv'}"]), index_col="id")
    assert "evaluate.py" in failure(predict.main, [*flags, "--calibrate=1"], capsys)
    evaluate.main([f"--output_dir={results}", f"--experiment_id={folder.name}", "--eval_draws=100", "--n_jobs=1"])
    temperatures = json.loads((folder / "calibration.json").read_text())["temperatures"]
    mapped = pd.read_csv(predict.main([*flags, "--calibrate=1", f"--output_file={tmp_path / 'c.csv'}"]), index_col="id")
    for name in LABELS:
        np.testing.assert_allclose(mapped[name], expit(logit(plain[name]) / temperatures[name]), rtol=1e-9)
    written = (folder / "predictions_valid.csv").read_bytes()
    assert predict.main([*flags, "--calibrate=1"]) == folder / "predictions_valid_calibrated.csv"
    assert (folder / "predictions_valid.csv").read_bytes() == written  # which ensembles take as honest
    document = json.loads((folder / "calibration.json").read_text()) | {"iteration": 3}
    (folder / "calibration.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit):
        predict.main([*flags, "--calibrate=1"])
    assert "of iteration 3, not to" in capsys.readouterr().err


def test_what_can_not_be_predicted_is_one_line(small_dataset, weights, tmp_path, capsys):
    output = tmp_path / "out"
    line = refusal(capsys, tmp_path / "nowhere", weights, output)
    assert line == f"error: --source={tmp_path / 'nowhere'}: no such folder, archive or file"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(capsys, empty, weights, output).endswith("holds no files")
    assert not output.exists()
    (empty / "text.txt").write_text("no image")
    line = refusal(capsys, empty, weights, output, 1)
    assert "none of 1 files gave an image" in line
    assert (output / "failed.csv").is_file()
    assert refusal(capsys, empty, weights, output, 1) == line  # what failed is in nobody's way
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "failed.csv").write_text("of the user")
    assert "is not empty; name a new folder" in refusal(capsys, empty, weights, tmp_path / "other")
    assert "no such weight file" in refusal(capsys, empty, tmp_path / "none.pt", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ([], "--net_weight_file is missing"),
        (["--net_weight_file=x.pt", "--source=x"], "belong together"),
        (["--net_weight_file=x.pt", "--predict_output=x"], "--predict_output needs --source"),
        (["--net_weight_file=x.pt", "--calibrate=1", "--tta=train_demo.json"], "doesn't go with --tta"),
        (["--net_weight_file=x.pt", "--source=x", "--predict_output=x", "--data_dataset=x"], "--data_dataset doesn't"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, flags, part):
    assert part in failure(predict.main, flags, capsys)


def test_a_way_to_compute_that_is_asked_for_or_measured_changes_little_and_is_said(
    small_dataset, weights, tmp_path, capsys
):
    source, found, said = small_dataset.source / "stage_2_test", {}, {}
    for way in ("training", "bfloat16", "auto"):
        output = run(source, weights, tmp_path / way, f"--net_compute={way}")
        found[way] = pd.read_csv(output / "slices.csv", index_col="id")[list(LABELS)]
        (said[way],) = json.loads((output / "predictions.json").read_text())["models"]["slices"]
    assert (said["training"]["precision"], said["training"]["channels_last"]) == ("float32", False)
    assert (said["bfloat16"]["precision"], said["bfloat16"]["channels_last"]) == ("bfloat16", True)
    difference = (found["bfloat16"] - found["training"]).abs().to_numpy()
    assert 0 < difference.max() < 0.02
    chosen = re.search(r"computes in the way (\w+)", capsys.readouterr().err)[1]
    again = pd.read_csv(run(source, weights, tmp_path / "again", f"--net_compute={chosen}") / "slices.csv")
    pd.testing.assert_frame_equal(again.set_index("id")[list(LABELS)], found["auto"], check_exact=True)
    assert said["auto"]["precision"] == ("bfloat16" if chosen == "bfloat16" else "float32")
