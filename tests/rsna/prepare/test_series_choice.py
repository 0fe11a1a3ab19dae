"""Tests of rsna/prepare/series_choice.py: which series of a study is used, and why not the others."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

import preprocessing
from common.preprocessing.series_facts import series_facts
from rsna.prepare import survey
from rsna.prepare.series_choice import RULES, choose_series, without_choice
from rsna_dataset import LABELS, read_metadata
from tests.runs import failure

GOOD = {
    "study_id": "one", "vendor": "ge", "kernel": "soft", "contrast": "unknown", "reconstruction": "original",
    "energy": "single", "orientation": "axial", "head": "yes", "repeats": "no", "series_slices": 30,
    "thickness_mm": 5.0, "slice_spacing_mm": 5.0, "coverage_mm": 150.0, "head_mm": 130.0, "series_number": 2,
}  # fmt: skip
NOTHING_SAID = {
    "vendor": "", "kernel": "unknown", "contrast": "unknown", "reconstruction": "unknown", "orientation": "unknown",
    "head": "unknown", "thickness_mm": np.nan, "slice_spacing_mm": np.nan, "coverage_mm": np.nan, "head_mm": np.nan,
    "series_number": -1,
}  # fmt: skip
NOT_ELIGIBLE = {  # what a radiologist would not read for blood
    "coronal reformat": {"orientation": "coronal"},
    "chest": {"head": "no"},
    "perfusion scan": {"reconstruction": "dynamic"},
    "perfusion scan without its tag": {"repeats": "yes"},
    "MIP": {"reconstruction": "projection"},
    "after contrast": {"contrast": "given"},
    "monoenergetic": {"energy": "virtual"},
    "bone": {"kernel": "bone"},
    "lung": {"kernel": "other"},
}
WORSE = {
    "an agent is named": {"contrast": "doubtful"},
    "its kernel is unknown": {"kernel": "unknown"},
    "half of the head": {"head_mm": 60.0},
    "one of two energies": {"energy": "part"},
    "thin": {"thickness_mm": 1.0, "series_slices": 150},
    "fewer slices": {"series_slices": 27, "head_mm": 128.0},
    "computed later": {"reconstruction": "reformat", "series_number": 9},
    "scanned again": {"series_number": 5},
}


def table(**series: dict) -> pd.DataFrame:
    return pd.DataFrame.from_dict({name: GOOD | facts for name, facts in series.items()}, orient="index")


@pytest.mark.parametrize("what", NOT_ELIGIBLE)
def test_a_series_that_is_no_plain_head_is_not_eligible_alone_or_beside_a_good_one(what: str) -> None:
    alone = choose_series(table(a=NOT_ELIGIBLE[what]), "best")
    assert alone["choice"].tolist() == ["not_eligible"]
    assert without_choice(alone) == {"one": f"{alone['reason'].iloc[0]} (1)"}
    assert alone["reason"].iloc[0] in {rule.reason for rule in RULES}
    both = choose_series(table(a=NOT_ELIGIBLE[what], b={}), "best")
    assert both["choice"].to_dict() == {"a": "not_eligible", "b": "chosen"}
    assert both.loc["b", "reason"] == "the only eligible series"


@pytest.mark.parametrize("what", WORSE)
def test_the_better_of_two_series_is_chosen_whatever_their_order(what: str) -> None:
    for names in (("a", "b"), ("b", "a")):
        found = choose_series(table(**dict(zip(names, ({}, WORSE[what]), strict=True))), "best")
        assert found["choice"].to_dict() == {names[0]: "chosen", names[1]: "not_chosen"}
    alone = choose_series(table(a=WORSE[what]), "best")
    assert alone["choice"].tolist() == ["chosen"]  # of a study that has no other


def test_what_a_file_lacks_is_no_evidence_against_it() -> None:
    found = choose_series(table(a=NOTHING_SAID), "best")
    assert found["choice"].tolist() == ["chosen"]
    assert found.loc["a", "kernel"] == "unknown"


def test_a_series_that_is_not_eligible_changes_no_choice() -> None:
    some = WORSE | {"good": {}}
    for one, other in itertools.combinations(some, 2):
        without = choose_series(table(x=some[one], y=some[other]), "best")
        with_all = choose_series(table(x=some[one], y=some[other], **NOT_ELIGIBLE), "best")
        pd.testing.assert_frame_equal(with_all.loc[["x", "y"]], without)


def test_studies_are_chosen_for_each_alone() -> None:
    found = choose_series(table(a={}, b={"study_id": "two", "kernel": "unknown"}, c={"study_id": "two"}), "best")
    assert found["choice"].to_dict() == {"a": "chosen", "b": "not_chosen", "c": "chosen"}
    assert set(choose_series(table(a={}, **NOT_ELIGIBLE), "all")["choice"]) == {"chosen"}


def test_the_facts_of_a_series_are_those_of_its_slices() -> None:
    count = 12
    rows = pd.DataFrame(
        {
            "vendor": "siemens", "kernel": ["soft"] * 11 + ["bone"], "contrast": "none", "reconstruction": "original",
            "energy": "single", "series_number": 3, "position_mm": np.arange(count) * 8.0, "slice_spacing_mm": 8.0,
            "thickness_mm": [650.0] + [7.5] * 11, "skull_mm2": [100.0] * 4 + [9000.0] * 8,
            "normal_x": 0.0, "normal_y": -np.sin(0.4), "normal_z": np.cos(0.4),
        }
    )  # fmt: skip
    series, studies = np.full(count, "s"), np.full(count, "t")
    facts = series_facts(rows, series, studies).loc["s"]
    assert (facts["kernel"], facts["orientation"], facts["head"], facts["repeats"]) == ("soft", "axial", "yes", "no")
    assert (facts["thickness_mm"], facts["coverage_mm"], facts["head_mm"]) == (7.5, 96.0, 64.0)
    assert series_facts(rows.assign(skull_mm2=100.0), series, studies).loc["s", "head"] == "no"
    assert series_facts(rows.assign(skull_mm2=np.nan), series, studies).loc["s", "head"] == "unknown"
    short = rows.assign(skull_mm2=100.0, position_mm=np.arange(count))
    assert series_facts(short.assign(slice_spacing_mm=1.0), series, studies).loc["s", "head"] == "unknown"
    same = rows.assign(position_mm=np.repeat([0.0, 8.0, 16.0], 4))
    assert series_facts(same, series, studies).loc["s", "repeats"] == "yes"
    turned = rows.assign(normal_y=1.0, normal_z=0.0)
    assert series_facts(turned, series, studies).loc["s", "orientation"] == "coronal"


# --- a hospital's archive ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(hospital_archive: Path) -> pd.DataFrame:
    return pd.read_csv(
        hospital_archive / "archive_truth.csv", dtype={"StudyInstanceUID": str, "SeriesInstanceUID": str}
    )


@pytest.fixture(scope="module")
def dataset(hospital_archive: Path, truth: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive with labels of its studies, and of each slice of the first study's bone series."""
    place = tmp_path_factory.mktemp("series")
    labels = pd.read_csv(hospital_archive / "study_labels.csv", dtype=str)
    bone = truth[(truth["kind"] == "bone") & (truth["study"] == 0)]["SeriesInstanceUID"].item()
    own = [f"{bone}.{number}" for number in range(1, 21)]
    rows = pd.DataFrame(dict.fromkeys(LABELS, "0"), index=own).rename_axis("StudyInstanceUID").reset_index()
    pd.concat([labels, rows]).to_csv(place / "labels.csv", index=False)
    return preprocessing.main(
        [
            f"--pre_source={hospital_archive / 'archive'}",
            f"--pre_labels={place / 'labels.csv'}",
            f"--data_input_folder={place / 'input'}",
            "--data_dataset=hospital",
            "--pre_folds=2",
            "--pre_demographics=1",
            "--n_jobs=1",
        ]
    )


@pytest.fixture(scope="module")
def series(dataset: Path, truth: pd.DataFrame) -> pd.DataFrame:
    """The rows of series.csv, with what each series is."""
    id_map = pd.read_csv(dataset.parent.parent / "id_map_hospital.csv", dtype=str, keep_default_na=False)
    names = id_map.drop_duplicates("SeriesInstanceUID").set_index("SeriesInstanceUID")["series_id"]
    found = pd.read_csv(dataset / "series.csv", keep_default_na=False).set_index("series_id")
    named = truth.assign(series_id=truth["SeriesInstanceUID"].map(names)).dropna(subset="series_id")
    return found.join(named.set_index("series_id")[["study", "kind", "expected"]])


def test_the_right_series_is_chosen_for_each_vendor(series: pd.DataFrame) -> None:
    assert series["choice"].to_dict() == series["expected"].to_dict()
    assert len(series) == 4 * 7  # scout, map and dose page give no slices
    chosen = series[series["choice"] == "chosen"]
    assert sorted(chosen["vendor"]) == ["canon", "ge", "philips", "siemens"]
    assert set(chosen["kind"]) == {"soft"}
    assert (series["reason"] != "").all()


def test_the_label_of_a_study_reaches_the_chosen_series_alone(dataset: Path, series: pd.DataFrame) -> None:
    rows = read_metadata(dataset)
    kind = rows["series_id"].map(series["kind"])
    bone = (kind == "bone") & (rows["series_id"].map(series["study"]) == 0)
    assert set(rows.loc[(kind == "soft") | bone, "split"]) == {"train"}  # slices with labels of their own stay
    assert set(rows.loc[(kind != "soft") & ~bone, "split"]) == {"not_chosen"}
    assert rows.loc[rows["split"] == "not_chosen", list(LABELS)].isna().all(axis=None)
    folds = pd.concat(pd.read_csv(dataset / f"dataset_hospital_fold_{fold}.csv") for fold in range(2))
    assert set(folds["id"]) == set(rows.index[rows["split"] == "train"])


def test_the_audit_shows_each_reason_with_series_and_pictures(dataset: Path, series: pd.DataFrame) -> None:
    preprocessing.main([f"--data_input_folder={dataset.parent.parent}", "--data_dataset=hospital", "--pre_audit=1"])
    page = (dataset / "audit.html").read_text()
    for (choice, reason), part in series.groupby(["choice", "reason"]):
        assert f"{choice}: {reason}" in page
        assert all(f"{name}: {choice}, {reason}; " in page for name in part.index)  # four of each, with their slices
    assert "Every study has a series to use." in page


def test_free_text_of_headers_is_in_no_output(dataset: Path, hospital_archive: Path) -> None:
    words = set()
    for path in sorted((hospital_archive / "archive" / "0000").glob("*/IM0001")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        words |= {str(header.get(name, "")) for name in ("SeriesDescription", "ContrastBolusAgent", "Manufacturer")}
    words = {word for word in words if len(word) > 5}  # shorter ones stand in pictures' bytes by chance
    assert {"Head 5.0", "OMNIPAQUE 350", "GE MEDICAL SYSTEMS"} <= words
    outputs = [path for path in dataset.rglob("*") if path.is_file() and path.parent.name != "images"]
    for path in outputs:
        content = path.read_bytes().upper()
        assert not [word for word in words if word.upper().encode() in content], path.name


def test_ages_are_in_the_metadata_only_as_asked(dataset: Path, small_dataset) -> None:
    ages = pd.read_csv(dataset / "metadata.csv")["age"]
    assert ages.str.fullmatch(r"\d0-\d9|90\+").all()
    assert "age" not in pd.read_csv(small_dataset.folder / "metadata.csv", nrows=1)
    assert set(pd.read_csv(small_dataset.folder / "series.csv")["choice"]) == {"chosen"}  # the competition's form: all


def test_the_check_tells_which_series_would_be_chosen(hospital_archive: Path, tmp_path: Path, capsys) -> None:
    study = hospital_archive / "archive" / "0001"
    preprocessing.main(
        [f"--pre_source={study}", f"--data_input_folder={tmp_path}", "--data_dataset=x", "--check=1", "--n_jobs=1"]
    )
    assert "series: 1 of 7 series chosen" in capsys.readouterr().out
    only_bone = tmp_path / "bone"
    only_bone.symlink_to(study / "03")
    preprocessing.main(
        [f"--pre_source={only_bone}", f"--data_input_folder={tmp_path}", "--data_dataset=x", "--check=1", "--n_jobs=1"]
    )
    printed = capsys.readouterr().out
    assert "1 studies have no series to use: study_" in printed
    assert "bone kernel (1)" in printed


def test_the_check_of_a_part_calls_no_study_without_a_series_nor_without_its_bleeding(
    hospital_archive: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large source a few files are read, and a study's series to use may be among the others."""
    monkeypatch.setattr(survey, "SURVEY_FILES", 2)
    only_bone = tmp_path / "bone"
    only_bone.symlink_to(hospital_archive / "archive" / "0001" / "03")
    uid = pydicom.dcmread(next(path for path in only_bone.iterdir() if path.is_file())).StudyInstanceUID
    labels = tmp_path / "labels.csv"
    labels.write_text(f"StudyInstanceUID,{','.join(LABELS)}\n{uid},0,0,0,0,1,1\n")
    flags = [f"--pre_source={only_bone}", f"--pre_labels={labels}", f"--data_input_folder={tmp_path}"]
    with suppress(SystemExit):  # a single study makes no folds
        preprocessing.main([*flags, "--data_dataset=x", "--check=1", "--n_jobs=1"])
    printed = capsys.readouterr().out
    assert "2 files were read, spread over all" in printed
    assert "have no series to use" not in printed
    (line,) = [line for line in printed.splitlines() if "positive by study" in line]
    assert line.endswith("subarachnoid 0.0%, subdural 100.0%, any 100.0%")


def test_an_unknown_way_to_choose_is_refused(capsys) -> None:
    assert "--pre_series" in failure(lambda more: preprocessing.main(["--pre_series=worst", *more]), [], capsys)
