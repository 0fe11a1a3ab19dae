"""rsna/prepare/adapters: published datasets by name, each on a tree in its published layout with planted counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import preprocessing
from rsna_dataset import LABELS, STUDY_LABELS, read_metadata
from tests.commands.test_own_data import slice_of
from tests.dicom_files import head, write_ct
from tests.runs import failure

SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))
# study number: the kinds and any that each of three readers saw
VOTES = {
    0: ({"IPH", "ICH"}, {"IPH", "ICH"}, {"SDH", "ICH"}),  # any and intraparenchymal
    1: ({"SDH", "ICH"}, set(), set()),  # nothing
    2: (set(), set(), set()),
    3: ({"EDH", "ICH"}, {"SAH", "ICH"}, {"IVH", "ICH"}),  # any without a kind
    4: ({"SDH", "ICH"}, {"SDH", "ICH"}, {"SDH", "ICH"}),  # any and subdural
    5: (set(), set(), set()),
    99: (set(), set(), set()),  # has no files
}
MAJORITY = {0: {"intraparenchymal", "any"}, 1: set(), 2: set(), 3: {"any"}, 4: {"subdural", "any"}, 5: set()}


def reads(votes: dict[int, tuple[set[str], ...]] = VOTES) -> str:
    kinds = ["ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "Fracture"]  # in the order of the published file
    lines = ["name,Category," + ",".join(f"R{reader}:{kind}" for reader in (1, 2, 3) for kind in kinds)]
    for number, seen in votes.items():
        cells = [str(int(kind in reader)) for reader in seen for kind in kinds]
        lines.append(f"CQ500-CT-{number},B{1 + number % 2}," + ",".join(cells))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def cq500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cq500")
    for number in range(6):
        folder = root / "source" / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT 5mm"
        folder.mkdir(parents=True)
        for place in range(3):
            write_ct(folder / f"CT{place:06}.dcm", slice_of(number, place, PatientID=f"CQ500-CT-{number}"))
    (root / "source" / "reads.csv").write_text(reads())
    return root


def prepare(root: Path, dataset: str, *flags: str) -> Path:
    place = [f"--data_input_folder={root / 'input'}", f"--pre_source={root / 'source'}", f"--pre_dataset={dataset}"]
    return preprocessing.main([*place, f"--data_dataset={dataset}", "--n_jobs=1", "--pre_folds=2", *flags])


def by_place(root: Path, dataset: str) -> pd.DataFrame:
    """The metadata by the source's file, with the frame."""
    metadata = read_metadata(root / "input" / "datasets" / dataset)
    ids = pd.read_csv(root / "input" / f"id_map_{dataset}.csv", dtype=str, keep_default_na=False).set_index("id")
    return metadata.assign(file=ids.loc[metadata.index, "file"])


def test_cq500s_studies_have_the_majority_of_their_three_readers(
    cq500: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(cq500, "cq500", "--pre_audit=1")
    said = "".join(capsys.readouterr())
    rows = by_place(cq500, "cq500")
    assert len(rows) == 18
    numbers = rows["file"].str.extract(r"CQ500CT(\d+) ")[0].astype(int)
    for number, positive in MAJORITY.items():
        own = rows[numbers == number]
        for name, label in zip(LABELS, own[list(STUDY_LABELS)].to_numpy().T, strict=True):
            assert label.tolist() == [float(name in positive)] * 3
        missing = own[list(LABELS)].isna().to_numpy()  # a study's 1 is the label of no slice, its 0 that of each
        assert missing.tolist() == [[name in positive for name in LABELS]] * 3
    published = json.loads((folder / "dataset.json").read_text())["published"]
    assert published["name"] == "cq500"
    # subdural: of 7 studies one has a single vote of three, one two... by the definition, written out
    counts = np.array([sum("SDH" in reader for reader in seen) for seen in VOTES.values()])
    agreed = ((counts**2 + (3 - counts) ** 2 - 3) / 6).mean()
    share = counts.sum() / (3 * len(counts))
    by_chance = share**2 + (1 - share) ** 2
    assert published["agreement"]["subdural"] == pytest.approx((agreed - by_chance) / (1 - by_chance))
    assert "CC BY-NC-SA 4.0" in (page := (folder / "audit.html").read_text())
    assert f"subdural {published['agreement']['subdural']:.2f}" in page
    unmatched = pd.read_csv(folder / "unmatched_rows.csv")
    assert unmatched[unmatched["table"] == "labels"]["row"].tolist() == [len(VOTES) + 1]
    assert "CC BY-NC-SA 4.0" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (reads().replace("CQ500-CT-4", "CQ500-CT-3"), "row 6: a study stands there twice"),
        (reads().replace("B1,1,1", "B1,2,1", 1), "row 2: R1:ICH is not 0 or 1"),
        (reads().replace("CQ500-CT-2", "two"), "row 4: its name has not the form"),
        (None, "there is no"),
    ],
)
def test_a_fault_in_cq500s_votes_is_one_line(
    cq500: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.dcm").write_bytes(next(cq500.rglob("*.dcm")).read_bytes())
    if text is not None:
        (tmp_path / "source" / "reads.csv").write_text(text)
    flags = [f"--data_input_folder={tmp_path}", f"--pre_source={tmp_path / 'source'}", "--pre_dataset=cq500"]
    assert said in failure(preprocessing.main, flags, capsys, 2 if text is None else 1)


def test_a_named_dataset_takes_its_labels_from_its_own_folder_alone(
    cq500: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(preprocessing.main, ["--pre_dataset=cq500"], capsys, 2)
    assert "--pre_source" in line
    flags = [f"--pre_source={cq500}", "--pre_dataset=cq500", f"--pre_labels={cq500 / 'source' / 'reads.csv'}"]
    assert "--pre_labels" in failure(preprocessing.main, flags, capsys, 2)


KINDS = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]
COLUMNS = ["PatientNumber", "SliceNumber", *KINDS, "No_Hemorrhage", "Fracture_Yes_No"]
BLEEDING = {(49, 2): "Subdural", (49, 3): "Subdural", (50, 1): "Epidural", (51, 4): "Intraventricular"}


@pytest.fixture(scope="module")
def ct_ich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients 49 (stored from the lowest slice), 50 and 51 (from the highest), and 52 with a slice too few."""
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path_factory.mktemp("ct_ich")
    lines = [",".join(COLUMNS)]
    for folder in ("ct_scans", "masks"):
        (root / "source" / folder).mkdir(parents=True)
    for patient in (49, 50, 51, 52, 53):
        count = 4 - (patient == 52)
        volume = np.stack([head(10 * patient + number) for number in range(1, count + 1)], axis=-1)
        affine = np.diag([-0.5, -0.5, 5.0 if patient in (49, 53) else -5.0, 1.0])
        name = f"{patient:03}.nii" + ".gz" * (patient == 53)
        nibabel.Nifti1Image(volume, affine).to_filename(root / "source" / "ct_scans" / name)
        mask = np.where(volume > 75, 255, 0).astype(np.uint8)
        nibabel.Nifti1Image(mask, affine).to_filename(root / "source" / "masks" / name)
        for number in range(1, 5):
            seen = [int(BLEEDING.get((patient, number)) == kind) for kind in KINDS]
            lines.append(",".join(map(str, [patient, number, *seen, int(not any(seen)), 0])))
    (root / "source" / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(lines) + "\n")
    return root


def test_ct_ichs_slices_have_their_labels_whichever_end_a_file_begins_at(
    ct_ich: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(ct_ich, "ct_ich")
    said = capsys.readouterr().err
    rows = by_place(ct_ich, "ct_ich")
    assert len(rows) == 19
    assert (rows["split"] == "train").sum() == 16
    assert (rows.loc[rows["file"].str.contains("052"), "split"] == "test").all()
    assert "1 volumes have other slices" in said
    assert "PhysioNet" in said
    found = set()
    for image_id, row in rows[rows["any"] == 1].iterrows():
        picture = np.load(folder / "images" / f"{image_id}.npy")
        patient = int(row["file"].split("/")[-1][:3])
        # the picture tells which slice it is, whatever its place is called
        values = np.sort(picture, None)
        (number,) = [n for n in range(1, 5) if np.array_equal(values, np.sort(head(10 * patient + n), None))]
        (kind,) = [name for name in LABELS[:-1] if row[name] == 1]
        found.add(((patient, number), kind.capitalize()))
    assert found == set(BLEEDING.items())


def test_a_fault_in_ct_ichs_table_is_one_line(ct_ich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ct_ich / "source" / "hemorrhage_diagnosis_raw_ct.csv").read_text()
    for changed, said in (
        (text.replace("49,2,0,0,0,0,1,0,0", "49,2,0,0,0,0,1,1,0"), "row 3: stands there twice, or No_Hemorrhage"),
        (text.replace("49,2,0", "49,2,7"), "row 3: a label is not 0 or 1"),
    ):
        (tmp_path / "hemorrhage_diagnosis_raw_ct.csv").write_text(changed)
        (tmp_path / "a.dcm").write_bytes(b"")
        flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={tmp_path}", "--pre_dataset=ct_ich"]
        assert said in failure(preprocessing.main, flags, capsys, 1)
