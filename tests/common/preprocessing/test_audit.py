"""common/preprocessing/audit.py: what the verdict sees in a dataset's tables."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from common.preprocessing.audit import AuditedDataset, audit_page

LABELS = ("epidural", "any")
SERIES, SLICES = 6, 10


@pytest.fixture
def data(tmp_path: Path) -> AuditedDataset:
    """A dataset with nothing to remark on: six patients with a series of ten slices each; images exist."""
    count = SERIES * SLICES
    series = np.repeat([f"S{n}" for n in range(SERIES)], SLICES)
    metadata = pd.DataFrame(
        {
            "split": "train",
            "patient_id": np.char.replace(series, "S", "P"),
            "study_id": np.char.replace(series, "S", "T"),
            "group_id": np.char.replace(series, "S", "P"),
            "series_id": series,
            "slice_index": np.tile(np.arange(SLICES), SERIES),
            "position_mm": np.tile(np.arange(SLICES) * 5.0, SERIES),
            "geometry": "",
            "row_spacing_mm": 0.5,
            "column_spacing_mm": 0.5,
            "thickness_mm": 5.0,
            "rows": 8,
            "columns": 8,
            "pixel_form": "12/0/1/-1024",
            "mended": "",
            "hu_min": -1000,
            "hu_max": 1500,
            "hu_mean": np.linspace(-600, -300, count),
            "solid": 0.4,
            "picture_hash": [f"h{n}" for n in range(count)],
            "crop_rows": 8,
            "crop_columns": 8,
            "epidural": np.tile(np.arange(SLICES) % 2.0, SERIES),
            "any": np.tile(np.arange(SLICES) % 2.0, SERIES),
        },
        index=pd.Index([f"ID_{n:02d}" for n in range(count)], name="id"),
    )
    for image_id in metadata.index:
        np.save(tmp_path / f"{image_id}.npy", np.full((8, 8), 40, np.int16))
    fold = metadata[["group_id", *LABELS]].assign(sample_type=np.where(series == "S0", "valid", "train"))
    failed = pd.DataFrame({"id": [], "file": [], "reason": [], "message": []}, dtype=str)
    return AuditedDataset(
        "x", "made for a test", metadata, failed, {"fold 0": fold}, LABELS, None, tmp_path, ".npy", True
    )


def verdict(data: AuditedDataset) -> dict[str, bool]:
    """The sentences of the verdict and whether each asks for a look."""
    rows = re.findall(r'<li><span class="mark (look|fine)">[^<]*</span>(.*?)</li>', audit_page(data))
    return {re.sub("<[^>]+>", "", text).replace("&#x27;", "'"): kind == "look" for kind, text in rows}


def looks(data: AuditedDataset) -> list[str]:
    return [text for text, look in verdict(data).items() if look]


def change(data: AuditedDataset, image_ids: list[str], **values: object) -> AuditedDataset:
    table = data.metadata.copy()
    for name, value in values.items():
        table[name] = table[name].astype(object) if isinstance(value, str) else table[name]
        table.loc[image_ids, name] = value
    return replace(data, metadata=table)


def test_a_clean_dataset_has_only_its_few_positives_to_look_at(data) -> None:
    assert looks(data) == ["Fewer than 50 positive images of epidural, any: metrics of these are mostly chance."]
    assert len(verdict(data)) > 15


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"mended": "padding;wrap_doubtful"}, "may hold wrapped values (wrap_doubtful) and were left alone: 1 (ID_07)"),
        ({"hu_min": 40, "hu_max": 40}, "Constant images: 1 (ID_07)"),
        ({"solid": 0.001}, "Images of hardly anything but air: 1 (ID_07)"),
        ({"hu_max": 90}, "nothing above 200 HU (a wrong rescale, or no head): 1 (ID_07)"),
        ({"hu_min": -100}, "nothing below -800 HU (a wrong rescale?): 1 (ID_07)"),
        ({"row_spacing_mm": np.nan}, "don't say their pixel spacing: 1 (ID_07)"),
        ({"position_mm": np.nan}, "don't say where they lie: 1 (ID_07)"),
        ({"geometry": "other_orientation;gap"}, "1.5 times the distance of the slices around it: 1 (S0)"),
        ({"position_mm": 30.0}, "Slices at a repeated position: 1 (ID_07)"),
        ({"any": 0.0, "epidural": 1.0}, "any contradicts the others: 1 (ID_07)"),
        ({"any": np.nan}, "Training images without labels: 1 (ID_07)"),
        ({"split": "test"}, "Patients in both train and test: 1 (P0)"),
        ({"patient_id": ""}, "1 images have no patient id"),
    ],
)
def test_one_fault_is_seen_with_its_image(data, values: dict[str, object], part: str) -> None:
    found = looks(change(data, ["ID_07"], **values))
    assert any(part in text for text in found), found


def test_equal_pictures_of_two_patients_and_their_other_labels_are_seen(data) -> None:
    same = change(data, ["ID_05", "ID_16"], picture_hash="same")
    found = looks(same)
    assert any(
        text.startswith("Images identical to another patient's") and "2 (ID_05, ID_16)" in text for text in found
    )
    assert any("Pixel-identical images with different labels: 2 (ID_05, ID_16)" in text for text in found)
    empty = change(same, ["ID_05", "ID_16"], solid=0.001)
    assert not any("identical" in text for text in looks(empty))


def test_groups_are_told_by_cause(data) -> None:
    """Three patients by a shared study, two by a picture; a study without PatientID; one image with neither."""
    table = data.metadata.copy()
    table.loc[table["series_id"].isin(["S1", "S2"]), "study_id"] = "T0"
    table.loc[["ID_35", "ID_45"], "picture_hash"] = "same"
    table.loc[table["series_id"] == "S5", "patient_id"] = ""
    table.loc["ID_59", "study_id"] = ""
    groups = {"P0": "P0", "P1": "P0", "P2": "P0", "P3": "P3", "P4": "P3", "": "T5"}
    table["group_id"] = table["patient_id"].map(groups)
    table.loc["ID_59", "group_id"] = "ID_59"
    changed = replace(data, metadata=table)
    cells = {
        row[0]: row[1:]
        for row in (
            re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line)
            for line in re.findall(r"<tr>.*?</tr>", audit_page(changed))
        )
        if row
    }
    assert cells["all groups"] == ["4", "", "", "60"]
    assert cells["of a study, for want of a PatientID"] == ["1", "", "", "9"]
    assert cells["of one image, which names neither"] == ["1", "", "", "1"]
    assert cells["joined by a study"] == ["1", "3", "3", "30"]
    assert cells["joined by a picture"] == ["1", "2", "2", "20"]
    assert cells["joined by either"] == ["2", "5", "3", "50"]
    assert any(text.startswith("Images of patients who share a study") for text in looks(changed))


def test_a_patient_id_of_nearly_all_studies_is_seen(data) -> None:
    table = pd.concat([data.metadata] * 2).set_axis([f"ID_{n:03d}" for n in range(120)])
    table["study_id"] = np.repeat([f"T{n}" for n in range(12)], 10)
    table["picture_hash"] = table.index
    ids = ["ANONYMOUS"] * 110 + ["P"] * 10
    many = replace(data, metadata=table.assign(patient_id=ids, group_id=ids))
    assert any("92% of the images, of 11 studies, are one group (ANONYMOUS)" in text for text in looks(many))


def test_failures_are_counted_by_reason(data) -> None:
    failed = pd.DataFrame(
        {"id": list("abc"), "file": "f", "reason": ["rescale", "truncated", "rescale"], "message": "m"}
    )
    assert "3 of 63 files gave no image (rescale 2, truncated 1): see failed.csv" in looks(replace(data, failed=failed))


def test_prevalences_are_held_against_the_published_ones(data) -> None:
    far = replace(data, published={"epidural": 0.0041, "any": 0.45})
    assert "Prevalences far from the published ones: epidural 50.00% against 0.41%" in looks(far)


def test_a_torn_patient_and_an_uneven_fold_are_seen(data) -> None:
    fold = data.folds["fold 0"].copy()
    fold.iloc[0, fold.columns.get_loc("sample_type")] = "train"
    found = looks(replace(data, folds={"fold 0": fold}))
    assert any("Patients on both sides of a fold: 1 (P0)" in text for text in found)
    assert any("Folds are uneven" in text and "fold 0: any" in text for text in found)


def test_an_unlabelled_dataset_can_be_audited(data) -> None:
    bare = replace(data, metadata=data.metadata.drop(columns=list(LABELS)), labels=(), folds={})
    assert any("unlabelled" in text for text in looks(bare))


def test_windowed_and_missing_images_don_t_stop_it(data) -> None:
    for path in data.images.iterdir():
        np.save(path, np.zeros((8, 8, 3), np.uint8))
    assert "The first window" in audit_page(replace(data, is_hu=False))
    for path in data.images.iterdir():
        path.unlink()
    assert "Outliers" in audit_page(data)


def test_an_id_in_the_verdict_opens_its_picture_and_no_other_word_does(data) -> None:
    changed = change(data, ["ID_07"], hu_min=40, hu_max=40)
    fold = changed.folds["fold 0"].copy()
    fold.iloc[10, fold.columns.get_loc("sample_type")] = "valid"  # a slice of S1
    np.save(data.images / "ID_15.npy", np.full((8, 8), -1000, np.int16))  # in the middle of S1
    html = audit_page(replace(changed, folds={"fold 0": fold}))
    first = html[html.index('<section id="verdict">') :].partition("</section>")[0]
    assert set(re.findall(r'<a href="(#[^"]+)">', first)) == {"#picture-ID_07", "#picture-P1"}
    for name, level in (("ID_07", 40), ("P1", -1000)):
        figure = html[html.index(f'<figure id="picture-{name}">') :].partition("</figure>")[0]
        picture = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", figure)[1])
        grey = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert grey.shape[0] >= 300  # large enough to look at
        assert abs(float(grey.mean()) - (level + 1000) / 2000 * 255) < 2
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {link for link in re.findall(r'href="#([^"]+)"', html) if link != "all"} <= set(ids)
    assert "<script" not in html
