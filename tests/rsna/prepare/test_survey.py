"""preprocessing.py --check=1: what it tells of a source is what a conversion makes of it, and it writes nothing."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from pydicom.data import get_testdata_file

import preprocessing
import rsna.prepare.survey
from rsna_dataset import LABELS, read_metadata
from tests.commands.test_own_data import slice_of, studies_of, wide, write_ct
from tests.conftest import SmallDataset


@pytest.fixture(autouse=True)
def however_slow_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsna.prepare.survey, "SURVEY_SECONDS", float("inf"))


def looked_at(capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> tuple[str, str]:
    """Run the check and return what it printed, and its error."""
    capsys.readouterr()
    arguments = ["--check=1", "--n_jobs=1", *flags]
    if code:
        with pytest.raises(SystemExit) as ended:
            preprocessing.main(arguments)
        assert ended.value.code == code
    else:
        preprocessing.main(arguments)
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == bool(code)
    return printed.out, "".join(errors)


def counts(line: str) -> dict[str, int]:
    """The counts by reason that stand in a line's last brackets."""
    return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)[,)]", line)}


def test_the_check_tells_of_other_peoples_files_what_a_conversion_makes_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all files that pydicom brings along, in an archive, with labels by the absolute paths that they have here."""
    folder = Path(get_testdata_file("CT_small.dcm", download=False)).parent
    with zipfile.ZipFile(tmp_path / "real.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.glob("*.dcm")):
            archive.write(path, path.name)
    rows = pd.DataFrame([[folder / name, 0, 0, 0, 0, 1, 1] for name in ("CT_small.dcm", "693_J2KI.dcm")],
                        columns=["Path", *(name.title() for name in LABELS)])  # fmt: skip
    rows.to_csv(tmp_path / "labels.csv", index=False, sep=";", encoding="utf-8-sig")
    flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={tmp_path / 'real.zip'}",
             f"--pre_labels={tmp_path / 'labels.csv'}", "--pre_folds=2"]  # fmt: skip
    out, error = looked_at(capsys, *flags, code=1)
    assert not (tmp_path / "input").exists()
    advised = re.search(r"\(--pre_max_failed=([\d.]+) would\)", error)[1]

    dataset = preprocessing.main([*flags, f"--pre_max_failed={advised}", "--n_jobs=1"])
    metadata, failed = read_metadata(dataset), pd.read_csv(dataset / "failed.csv")
    lines = {line.partition(":")[0].strip(): line for line in out.splitlines()}
    assert lines["CT slices"] == f"CT slices: {len(metadata)}"
    told = counts(lines["no slices (they never count as failures)"]), counts(lines["failures"])
    assert sum(told[0].values()) > 50
    expected = failed["reason"].value_counts().to_dict()
    assert {name: told[0].get(name, 0) + told[1].get(name, 0) for name in expected} == expected
    persons = {name: int(count) for name, count in re.findall(r"(patients|studies|series) (\d+)", out)}
    names = {"patients": "patient_id", "studies": "study_id", "series": "series_id"}
    assert persons == {what: metadata[name].replace("", None).nunique() for what, name in names.items()}
    assert f"labels: 2 keys in {tmp_path / 'labels.csv'}; 2 of {len(metadata)} slices have labels (2 by image)" in out
    assert "subdural 100.0%" in out
    assert "--pre_folds=2 is possible, with 2 groups" in out
    stored = sum(path.stat().st_size for path in (dataset / "images").iterdir())
    files = int(re.search(r"DICOM files, (\d+) files", out)[1])
    told_mb = float(re.search(r"takes about ([\d.]+) MB", out)[1])
    assert told_mb * 1e6 == pytest.approx(stored + 1000 * files, abs=5e4)  # told to a tenth


def test_what_would_end_a_conversion_ends_the_check_after_all_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = studies_of(tmp_path / "export", lambda study, place: f"MRN-{study // 3}")
    flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={tmp_path / 'export'}", *labels]
    out, error = looked_at(capsys, *flags, code=2)
    assert "there are only 2 groups" in error
    assert "--pre_folds=2 works" in error
    assert out.endswith("nothing was written\n")
    assert "a new dataset in" in out
    out, _ = looked_at(capsys, *flags, "--pre_folds=2")
    assert "patients 2, studies 6, series 6" in out
    wide(tmp_path / "labels.csv", "StudyInstanceUID", {f"1.2.999.{n}": "0,0,0,0,0,0" for n in range(3)})
    out, error = looked_at(capsys, *flags, "--pre_folds=2", code=1)
    assert "3 keys fit no slice (rows 2, 3, 4)" in out
    assert "none of the slices has labels" in error
    write_ct(tmp_path / "export/IM9", slice_of(0, 0, SOPInstanceUID="1.2.826.77.0.1.1"))  # another file's
    assert "CT slices: 13" in looked_at(capsys, *flags[:2])[0]
    monkeypatch.setattr(rsna.prepare.survey, "BATCH_FILES", 3)
    monkeypatch.setattr(
        rsna.prepare.survey, "SURVEY_SECONDS", 0
    )  # over before it begins: the second batch tells the time
    assert "6 files were read, spread over all" in looked_at(capsys, *flags[:2])[0]
    assert not (tmp_path / "input").exists()


def test_of_a_large_source_some_files_are_read_and_all_labels_are_compared(
    small_dataset: SmallDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsna.prepare.survey, "SURVEY_FILES", 60)
    state = sorted(path for path in small_dataset.input_folder.rglob("*"))
    out, _ = looked_at(capsys, *small_dataset.flags, f"--pre_source={small_dataset.source}")
    assert "60 files were read, spread over all" in out
    assert "phantom files of stage 2" in out
    train = sorted((small_dataset.source / "stage_2_train").glob("*.dcm"))
    labelled = set(pd.read_csv(small_dataset.source / "stage_2_train.csv")["ID"].str.rpartition("_")[0])
    known = sum(path.stem in labelled for path in train)
    assert f"labels: {len(labelled):,} images" in out
    assert f"{known:,} of all {len(train):,} training files have labels, {len(labelled) - known:,} labelled" in out
    patients = read_metadata(small_dataset.folder)["patient_id"].nunique()
    assert f"at least patients {patients}, studies 12" in out  # 60 slices spread over twelve studies miss none
    assert sorted(path for path in small_dataset.input_folder.rglob("*")) == state


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--pre_verify=1", "--pre_verify=1 doesn't go with --check=1"),
        ("--pre_audit=1", "--pre_audit=1 doesn't go with --check=1"),
        ("--pre_scheduler=dask", "--pre_scheduler=dask doesn't go with --check=1"),
        ("--pre_source=nowhere", "no such folder, archive or file"),
    ],
)
def test_what_does_nothing_beside_a_check_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, part: str
) -> None:
    assert part in looked_at(capsys, f"--data_input_folder={tmp_path}", flag, code=2)[1]
