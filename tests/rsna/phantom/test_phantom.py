"""The phantom: formats, quirks, labels and places of the bleedings, checked with plain pydicom and by hand."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

import rsna_phantom
from rsna.phantom import bleeding, write
from rsna.phantom.anatomy import Head, Waves, sample_slice
from rsna.phantom.plan import DIFFICULTIES, hex_id, plan_studies
from rsna.phantom.scanner import PIXEL_FORMS, PixelForm
from rsna.phantom.study import PhantomSettings, draw_scan, render_study
from tests import PROJECT
from tests.runs import failure

# The competition's identifiers are no DICOM UIDs, and pydicom says so.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")

LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
SMALL = ("--phantom_studies=12", "--phantom_slices=6", "--phantom_image_size=64", "--phantom_difficulty=demo")


def make(folder: Path, *flags: str) -> Path:
    rsna_phantom.main([f"--phantom_folder={folder}", "--n_jobs=1", *SMALL, *flags])
    return folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("phantom") / "input", "--phantom_slices=8")


@pytest.fixture(scope="module")
def truth(phantom: Path) -> pd.DataFrame:
    frame = pd.read_csv(phantom / "phantom_truth.csv", keep_default_na=False, dtype={"hu_crc32": str})
    return frame.set_index(frame["id"].rename(None))


def path_of(phantom: Path, row: pd.Series) -> Path:
    return phantom / f"stage_2_{row['split']}" / f"{row['id']}.dcm"


def read(phantom: Path, row: pd.Series) -> pydicom.Dataset:
    return pydicom.dcmread(path_of(phantom, row))


def stored(dataset: pydicom.Dataset) -> np.ndarray:
    """The stored numbers straight from the file's bytes."""
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns).astype(np.int64)


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


# Files and formats


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "--seed=7", "--phantom_slices=3")
    two = make(tmp_path / "two", "--seed=7", "--phantom_slices=3", "--n_jobs=2")
    other = make(tmp_path / "other", "--seed=8", "--phantom_slices=3")
    assert tree_hash(one) == tree_hash(two)
    assert tree_hash(one) != tree_hash(other)


def test_files_are_named_as_in_the_competition_and_each_is_in_the_truth_file(
    phantom: Path, truth: pd.DataFrame
) -> None:
    assert {p.name for p in phantom.iterdir()} == {
        "stage_2_train",
        "stage_2_test",
        "stage_2_train.csv",
        "stage_2_sample_submission.csv",
        "phantom_truth.csv",
        "phantom.json",
    }
    for split in ("train", "test"):
        names = {p.name for p in (phantom / f"stage_2_{split}").iterdir()}
        assert all(re.fullmatch(r"ID_[0-9a-f]{9}\.dcm", name) for name in names)
        assert names == {f"{name}.dcm" for name in truth.index[truth["split"] == split]}
    assert len(truth) == 12 * 8
    assert truth["id"].is_unique


def test_the_train_csv_holds_every_label_and_the_rows_of_four_ids_twice(phantom: Path, truth: pd.DataFrame) -> None:
    lines = (phantom / "stage_2_train.csv").read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert all(re.fullmatch(r"ID_[0-9a-f]{9}_[a-z]+,[01]", line) for line in lines[1:])
    repeated = [line for line in set(lines) if lines.count(line) == 2]
    ids = {line[:12] for line in repeated}
    assert len(ids) == 4
    assert len(repeated) == 24
    assert ids == set(truth.index[truth["quirks"].str.contains("repeated_rows")])
    labels = dict(line.split(",") for line in lines[1:])
    train = truth[truth["split"] == "train"]
    assert len(labels) == 6 * len(train)
    for name, row in train.iterrows():
        assert [int(labels[f"{name}_{label}"]) for label in LABELS] == [row[label] for label in LABELS]


def test_the_sample_submission_asks_for_every_test_image_once(phantom: Path, truth: pd.DataFrame) -> None:
    frame = pd.read_csv(phantom / "stage_2_sample_submission.csv")
    test = truth.index[truth["split"] == "test"]
    assert list(frame.columns) == ["ID", "Label"]
    assert sorted(frame["ID"]) == sorted(f"{name}_{label}" for name in test for label in LABELS)
    assert (frame["Label"] == 0.5).all()


def test_headers_hold_the_competitions_fields_and_no_instance_number(phantom: Path, truth: pd.DataFrame) -> None:
    for _, row in truth.iterrows():
        if "cut" in row["quirks"]:
            continue
        dataset = read(phantom, row)
        assert dataset.Modality == "CT"
        assert (dataset.SOPInstanceUID, dataset.PatientID) == (row["id"], row["patient_id"])
        assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (row["study_id"], row["series_id"])
        assert re.fullmatch("ID_[0-9a-f]{8}", row["patient_id"])
        assert re.fullmatch("ID_[0-9a-f]{10}", row["study_id"])
        assert dataset.BitsAllocated == 16
        assert dataset.HighBit == dataset.BitsStored - 1
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert "InstanceNumber" not in dataset
        assert "PatientName" not in dataset
        assert [float(v) for v in dataset.PixelSpacing] == [row["spacing_mm"]] * 2
        assert (dataset.Rows, dataset.Columns) == (row["rows"], row["columns"])


def test_patients_keep_to_one_split_and_some_have_several_studies(truth: pd.DataFrame) -> None:
    assert truth.groupby("patient_id")["split"].agg(lambda splits: len(set(splits)) == 1).all()
    assert truth.groupby("patient_id")["study_id"].agg(lambda studies: len(set(studies)) > 1).any()
    assert set(truth["split"]) == {"train", "test"}


def test_slice_counts_are_spread_as_in_the_data() -> None:
    counts = [plan.slices for plan in plan_studies(4000, 0, "real")]
    assert 33 <= np.median(counts) <= 34
    assert abs(np.percentile(counts, 95) - 44) <= 1
    assert max(counts) <= 60


def test_a_million_ids_are_all_different() -> None:
    ids = [hex_id(3, "image", number, 9) for number in range(200_000)]
    assert len(set(ids)) == len(ids)
    assert sorted(ids) != ids


# Quirks, in the files


def test_hounsfield_units_decode_exactly_by_the_header_and_datas_rules(phantom: Path, truth: pd.DataFrame) -> None:
    for _, row in truth.iterrows():
        if "cut" in row["quirks"]:
            continue
        dataset = read(phantom, row)
        raw, intercept = stored(dataset), int(dataset.RescaleIntercept)
        if "wrap" in row["quirks"]:  # DATA: add 1000, values >= 4096 minus 4096, intercept -1000
            raw = raw + 1000
            raw[raw >= 4096] -= 4096
            hu = raw - 1000
        else:
            hu = np.where(raw == -2000, -1024, raw + intercept) if "padding" in row["quirks"] else raw + intercept
        assert f"{zlib.crc32(hu.astype('<i2').tobytes()):08x}" == row["hu_crc32"], row["pixel_form"]
        assert hu.min() >= -1024
        assert hu.max() <= 3095


def test_every_pixel_form_of_the_data_occurs_in_training_files(phantom: Path, truth: pd.DataFrame) -> None:
    found = set()
    for _, row in truth[~truth["quirks"].str.contains("cut")].iterrows():
        d = read(phantom, row)
        form = f"{d.BitsStored}/{d.PixelRepresentation}/{d.RescaleIntercept:g}"
        assert form == row["pixel_form"]
        assert ("wrap" in row["quirks"]) == (form in ("12/0/0", "12/0/1"))
        assert not (row["split"] == "test" and "wrap" in row["quirks"])
        found.add(form)
    assert found == {"12/0/-1024", "16/1/-1024", "12/0/-1000", "16/1/0", "12/1/0", "12/0/0", "12/0/1"}


def test_wrapped_files_hold_air_near_3096(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.contains("wrap")]
    assert len(rows) > 0
    for _, row in rows.iterrows():
        raw = stored(read(phantom, row))
        assert raw.min() >= 0
        assert raw.max() <= 4095
        air = (raw > 3060) & (raw < 3140)
        assert air.mean() > 0.2


def test_padding_lies_outside_the_circle_only(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.contains("padding") & ~truth["quirks"].str.contains("cut")]
    assert len(rows) > 0
    assert (rows["split"] == "train").any()
    for _, row in rows.iterrows():
        raw = stored(read(phantom, row))
        y, x = np.ogrid[: raw.shape[0], : raw.shape[1]]
        radius = np.hypot(y - (raw.shape[0] - 1) / 2, x - (raw.shape[1] - 1) / 2)
        assert (raw[radius > min(raw.shape) / 2 + 0.01] == -2000).all()
        assert (raw[radius < min(raw.shape) / 2 - 0.01] > -2000).all()


def test_two_window_values_stand_where_the_truth_says(phantom: Path, truth: pd.DataFrame) -> None:
    two = truth["quirks"].str.contains("two_windows")
    assert 0 < two.sum() < len(truth)
    for (_, row), expected in zip(truth.iterrows(), two, strict=True):
        if "cut" in row["quirks"]:
            continue
        dataset = read(phantom, row)
        values = dataset.WindowCenter
        assert isinstance(values, pydicom.multival.MultiValue) == expected
        if expected:
            assert [v.original_string for v in values] == ["00036", "00080"]
            assert [v.original_string for v in dataset.WindowWidth] == ["00080", "00200"]


def test_other_sizes_keep_the_datas_proportions(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.contains("other_size")]
    assert len(set(rows["study_id"])) == 1
    sizes = {(round(r * 64 / 512), round(c * 64 / 512)) for r, c in ((638, 490), (768, 768), (408, 374), (666, 512))}
    assert set(zip(rows["rows"], rows["columns"], strict=True)) <= sizes
    assert (truth.drop(rows.index)[["rows", "columns"]] == 64).all(axis=None)


def test_one_file_is_cut_as_the_competitions_is(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.split(";").map(lambda q: "cut" in q)]
    assert len(rows) == 1
    content = path_of(phantom, rows.iloc[0]).read_bytes()
    declared = 64 * 64 * 2
    start = content.index(bytes.fromhex("e07f1000") + b"OW") + 8
    assert int.from_bytes(content[start : start + 4], "little") == declared
    assert len(content) - start - 4 == declared * 153_710 // 524_288


def test_one_series_repeats_a_position_with_other_noise(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.contains("repeated_position")]
    assert len(rows) == 2
    first, second = (read(phantom, row) for _, row in rows.iterrows())
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.ImagePositionPatient == second.ImagePositionPatient
    assert first.PixelData != second.PixelData


def test_one_pair_of_patients_has_identical_pixels(phantom: Path, truth: pd.DataFrame) -> None:
    rows = truth[truth["quirks"].str.contains("identical_pixels")]
    assert rows["patient_id"].nunique() == 2
    (_, first), (_, second) = rows.groupby("patient_id")
    for (_, a), (_, b) in zip(first.iterrows(), second.iterrows(), strict=True):
        assert read(phantom, a).PixelData == read(phantom, b).PixelData
        assert a["id"] != b["id"]
        assert [a[label] for label in LABELS] == [b[label] for label in LABELS]
    others = truth[~truth.index.isin(rows.index) & (truth["hu_crc32"] != "")]
    assert others["hu_crc32"].is_unique


def test_slice_order_follows_from_position_and_orientation_and_not_from_names(
    phantom: Path, truth: pd.DataFrame
) -> None:
    shuffled, tilted = 0, 0
    for _, rows in truth.groupby("series_id"):
        along = []
        for _, row in rows.sort_values("slice_index").iterrows():
            if "cut" in row["quirks"]:
                continue
            dataset = read(phantom, row)
            orientation = [float(v) for v in dataset.ImageOrientationPatient]
            normal = np.cross(orientation[:3], orientation[3:])
            tilted += abs(normal[1]) > 0.05
            along.append(float(np.dot(normal, [float(v) for v in dataset.ImagePositionPatient])))
            assert along[-1] == pytest.approx(row["position_mm"], abs=1e-3)
        assert (np.diff(along) > -1e-4).all()
        shuffled += not rows.sort_values("id")["slice_index"].is_monotonic_increasing
    assert shuffled >= 10
    assert tilted > 0


@pytest.mark.parametrize("count", [10, 11, 13, 40])
def test_every_form_and_quirk_is_planned_whatever_the_seed(count: int) -> None:
    for seed in range(40):
        plans = [p for p in plan_studies(count, seed, "real") if p.split == "train"]
        assert {p.form for p in plans} == set(PIXEL_FORMS)
        assert sum(p.cut for p in plans) == 1
        assert sum(p.identical_to is not None for p in plans) == 2
        for name in ("padding", "two_windows", "repeated_position", "size"):
            assert any(getattr(p, name) for p in plans), (seed, name)
        assert all(p.form == PixelForm(16, 1, -1024) for p in plans if p.padding)
        first = [p.first_slice for p in plan_studies(count, seed, "real")]
        assert first == list(np.cumsum([0, *(p.slices for p in plan_studies(count, seed, "real"))])[:-1])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_the_share_of_test_studies_is_as_asked_and_the_train_ones_hold_every_quirk(share: float) -> None:
    plans = plan_studies(40, 0, "real", test_share=share)
    trains = [plan for plan in plans if plan.split == "train"]
    assert len(plans) - len(trains) == round(40 * share)
    assert {plan.form for plan in trains} == set(PIXEL_FORMS)
    assert not {p.patient for p in trains} & {p.patient for p in plans if p.split == "test"}


# Labels, prevalence, difficulty


def test_labels_follow_from_the_lesions_volumes(truth: pd.DataFrame) -> None:
    kinds = LABELS[:-1]
    for kind in kinds:
        area = truth[f"{kind}_mm3"] / truth["thickness_mm"]
        assert ((area >= 40.1) <= (truth[kind] == 1)).all()
        assert ((area <= 39.9) <= (truth[kind] == 0)).all()
    assert (truth["any"] == truth[kinds].max(axis=1)).all()
    assert set(truth["difficulty"]) == {"demo"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("difficulty", "low", "high"),
    [
        ("real", (0.002, 0.034, 0.025, 0.034, 0.045, 0.11), (0.012, 0.065, 0.05, 0.065, 0.085, 0.18)),
        ("demo", (0.04, 0.06, 0.05, 0.07, 0.09, 0.33), (0.13, 0.17, 0.15, 0.2, 0.22, 0.48)),
    ],
)
def test_prevalences_lie_near_the_named_ones(difficulty: str, low: tuple, high: tuple) -> None:
    settings = PhantomSettings(3, 32, difficulty)
    plans = plan_studies(150, 3, difficulty, slices=16)
    rows = []
    for plan in plans:
        for picture in render_study(plan, settings):
            rows.append([picture.area_mm2.get(kind, 0) >= bleeding.MIN_AREA_MM2 for kind in bleeding.KINDS])
    share = [*np.array(rows).mean(axis=0).tolist(), np.array(rows).any(axis=1).mean()]
    assert (np.array(share) >= low).all(), share
    assert (np.array(share) <= high).all(), share


def test_demo_and_real_differ_in_bleedings_and_in_nothing_else() -> None:
    for real, demo in zip(plan_studies(30, 5, "real"), plan_studies(30, 5, "demo"), strict=True):
        for name in ("split", "slices", "form", "patient"):
            assert getattr(real, name) == getattr(demo, name)
    clean = [dataclasses.replace(plan_studies(30, 5, d)[0], kinds=()) for d in DIFFICULTIES]
    pictures = [
        next(iter(render_study(plan, PhantomSettings(5, 64, d), {10}))).hu
        for plan, d in zip(clean, DIFFICULTIES, strict=True)
    ]
    np.testing.assert_array_equal(*pictures)


# Places and shapes of the bleedings, without noise


def slice_at(head: Head, z: float) -> bleeding.Slice:
    axis = (np.arange(192, dtype=np.float32) - 95.5) * np.float32(1.2)
    x, y = np.meshgrid(axis, axis)
    return sample_slice(head, (x, y, np.full_like(x, z)), (0.0, 0.0, 1.0), 5.0, 1.2)


@functools.cache
def through(kind: str, seed: int) -> list[tuple[bleeding.Slice, np.ndarray, np.ndarray]]:
    """Slices through a bleeding of a kind: fields, coverage, and HU beside the same slice without it."""
    rng = np.random.default_rng(seed)
    head = Head.draw(np.random.default_rng(seed + 100))
    head = dataclasses.replace(head, choroid=(0.0, 0.0), pineal=0.0)
    found = bleeding.draw_bleeding(kind, head, 0.7, 65.0, rng)
    result = []
    for z in np.arange(-50, 70, 5.0):
        clean, slice_ = slice_at(head, float(z)), slice_at(head, float(z))
        cover = bleeding.paint(slice_, found).get(kind)
        if cover is not None and cover.sum() * 1.2**2 >= bleeding.MIN_AREA_MM2:
            result.append((clean, cover, slice_.hu))
    return result


@pytest.mark.parametrize("kind", bleeding.KINDS)
def test_a_bleeding_goes_through_several_slices_and_is_as_dense_as_blood(kind: str) -> None:
    lengths = []
    for seed in range(4):
        slices = through(kind, seed)
        lengths.append(len(slices))
        for _, cover, hu in slices:
            full = (cover > 0.99) & (hu < 300)
            if full.sum() > 5:
                assert 40 <= np.median(hu[full]) <= 90
    assert min(lengths) >= 2
    assert np.mean(lengths) >= 4


@pytest.mark.parametrize("kind", ["epidural", "subdural"])
def test_epidural_and_subdural_blood_lies_against_the_skull_or_the_falx(kind: str) -> None:
    for seed in range(4):
        for clean, cover, _ in through(kind, seed):
            bone = cv2.dilate((clean.hu > 300).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            falx = np.abs(clean.x) < 4
            blobs, labels = cv2.connectedComponents((cover > 0.3).astype(np.uint8))
            for blob in range(1, blobs):
                part = labels == blob
                if part.sum() > 12:
                    assert (part & (bone | falx)).any()


def test_an_epidural_bleeding_is_a_lens_and_a_subdural_a_long_crescent() -> None:
    def ratio(kind: str) -> float:
        values = []
        for seed in range(4):
            for _, cover, _ in through(kind, seed):
                area = (cover > 0.5).astype(np.uint8)
                if area.sum() > 100:
                    (_, _), (a, b), _ = cv2.minAreaRect(cv2.findNonZero(area))
                    thick = cv2.distanceTransform(area, cv2.DIST_L2, 5).max() * 2
                    values.append(max(a, b) / thick)
        return float(np.median(values))

    assert ratio("epidural") < 5 < ratio("subdural")


def test_intraventricular_blood_stays_in_the_ventricles() -> None:
    for seed in range(4):
        for clean, cover, _ in through("intraventricular", seed):
            there = cover > 0.5
            assert (clean.hu[there & (clean.hu < 80)] < 25).mean() > 0.75  # fluid before
            assert (clean.ventricle[there] > -1.2).all()
            assert (clean.vault[there] > 5).all()


def test_a_layer_of_blood_in_the_ventricles_lies_at_the_back() -> None:
    head = Head.draw(np.random.default_rng(2))
    layer = bleeding.Bleeding(
        "intraventricular", "layer", (20.0, 45.0, 10), (60, 60, 22), 65.0, Waves.draw(np.random.default_rng(0), 3, 14)
    )
    slice_ = slice_at(head, 8.0)
    cover = bleeding.paint(slice_, [layer])["intraventricular"]
    assert slice_.y[cover > 0.5].min() > 42


def test_subarachnoid_blood_follows_sulci_and_cisterns() -> None:
    for seed in range(4):
        for clean, cover, _ in through("subarachnoid", seed):
            there = cover > 0.5
            assert (clean.cistern[there] > -2.2).all()
            width = cv2.distanceTransform(there.astype(np.uint8), cv2.DIST_L2, 5)
            assert np.median(width[there]) < 4  # strands, not a lump


def test_intraparenchymal_blood_lies_in_the_brain_with_darker_oedema_around() -> None:
    darker = []
    for seed in range(4):
        for clean, cover, hu in through("intraparenchymal", seed):
            there = cover > 0.5
            if not there.any():
                continue
            assert (clean.brain[there] > 0).all()
            ring = cv2.dilate(there.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & (cover < 0.02)
            ring &= (clean.hu > 22) & (clean.hu < 45)
            if ring.sum() > 10:
                darker.append((clean.hu - hu)[ring].mean())
    assert np.mean(darker) > 1.5


def test_the_ends_of_a_bleeding_are_fainter_than_its_middle() -> None:
    faint = 0
    for seed in range(4):
        slices = through("intraparenchymal", seed)
        middle = slices[len(slices) // 2][1].max()
        faint += min(slices[0][1].max(), slices[-1][1].max()) < 0.75 * middle
    assert faint >= 2


def test_a_mimic_is_seen_in_no_more_than_two_slices_and_gives_no_label() -> None:
    head = Head.draw(np.random.default_rng(0))
    seen = 0
    for seed in range(5):
        mimic = bleeding.draw_mimic(head, np.random.default_rng(seed))
        covers = [bleeding.paint(slice_at(head, float(z)), [mimic]) for z in np.arange(-50, 75, 5.0)]
        assert all(set(found) <= {bleeding.MIMIC} for found in covers)
        count = sum(found[bleeding.MIMIC].sum() * 1.44 > bleeding.MIN_AREA_MM2 for found in covers if found)
        assert count <= 2
        seen += count
    assert seen > 0


def test_a_head_holds_the_tissues_of_a_head() -> None:
    head = Head.draw(np.random.default_rng(4))
    hu = slice_at(head, 12.0).hu
    assert hu[0, 0] == pytest.approx(-1000)
    for low, high, least in ((-1010, -900, 0.3), (700, 1600, 0.03), (24, 42, 0.15), (0, 12, 0.002), (-110, -70, 0.005)):
        assert ((hu > low) & (hu < high)).mean() > least, (low, high)
    base = slice_at(head, -40.0).hu
    inside = base[60:130, 60:130]
    assert (inside < -500).any()  # sinuses hold air
    assert (inside > 700).any()  # petrous bone


def test_old_brains_hold_more_fluid() -> None:
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(40):
        head = Head.draw(np.random.default_rng(seed))
        if head.age < 40 or head.age > 75:
            slice_ = slice_at(head, 10.0)
            brain = slice_.brain > 2
            shares[head.age > 75].append(float((slice_.hu[brain] < 15).mean()))
    assert np.mean(shares[True]) > 2 * np.mean(shares[False])


# Options and interruptions


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--phantom_studies=4"], ["--phantom_studies=4", "9 training studies"]),
        (["--phantom_studies=12", "--phantom_test_share=0.6"], ["--phantom_studies=12", "9 training studies"]),
        (["--phantom_difficulty=hard"], ["--phantom_difficulty", "demo"]),
        (["--phantom_image_size=8"], ["--phantom_image_size"]),
        (["--phantom_slices=99"], ["--phantom_slices"]),
        (["--phantom_slices=1"], ["--phantom_slices=1", "2 or more"]),
        (["--phantom_study=12"], ["--phantom_studies"]),
        (["--phantom_contact_sheet=sheet.xyz"], ["--phantom_contact_sheet=sheet.xyz", ".png"]),
        (["--phantom_contact_sheet=/proc/sheet.png"], ["--phantom_contact_sheet=/proc/sheet.png", "can't be written"]),
    ],
)
def test_a_bad_option_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        rsna_phantom.main([f"--phantom_folder={tmp_path / 'new'}", *flags])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        make(tmp_path)
    assert stop.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        make(tmp_path / "file")
    assert stop.value.code == 2


def test_only_if_missing_keeps_a_complete_phantom_of_the_same_options(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "--phantom_slices=2")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    make(folder, "--phantom_slices=2", "--phantom_only_if_missing=1")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    make(folder, "--phantom_slices=2", "--phantom_only_if_missing=1", "--seed=1")
    assert json.loads((folder / "phantom.json").read_text())["seed"] == 1


def test_a_run_that_broke_off_leaves_nothing_that_looks_complete_and_the_next_one_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "_write_tables", stop)
        with pytest.raises(SystemExit):
            make(folder, "--phantom_slices=2")
    assert not folder.exists()
    make(folder, "--phantom_slices=2", "--phantom_only_if_missing=1")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    whole = make(tmp_path / "whole", "--phantom_slices=2")
    assert tree_hash(folder) == tree_hash(whole)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    command = [sys.executable, str(PROJECT / "rsna_phantom.py"), f"--phantom_folder={folder}", "--phantom_studies=60"]
    process = subprocess.Popen([*command, "--n_jobs=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".p.partial" / "stage_2_train"
    while process.poll() is None and not (partial.is_dir() and len(list(partial.iterdir())) > 40):
        pass
    process.kill()
    process.wait()
    assert partial.is_dir()
    assert not folder.exists()


def test_two_runs_do_not_fill_the_same_folder_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with write._new_folder(tmp_path / "p"), pytest.raises(SystemExit) as stop:
        make(tmp_path / "p")
    assert stop.value.code == 1
    assert "another run" in capsys.readouterr().err


def test_the_contact_sheet_is_a_picture_of_studies_by_slices(tmp_path: Path) -> None:
    make(tmp_path / "p", f"--phantom_contact_sheet={tmp_path / 'sheet.png'}")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (10 * 192, 10 * 192, 3) or sheet.shape[0] == 10 * 192
    assert 10 < sheet.mean() < 160


def test_two_studies_of_a_patient_show_the_same_head() -> None:
    plans = plan_studies(40, 0, "real")
    settings = PhantomSettings(0, 64, "real")
    by_patient = pd.Series([p.patient for p in plans]).value_counts()
    several = int(by_patient.index[0])
    scans = [draw_scan(p, settings) for p in plans if p.patient == several]
    assert len(scans) > 1
    assert len({scan.head.half_width for scan in scans}) == 1


# Masks


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("masked") / "input", "--phantom_slices=8", "--phantom_masks=1")


def test_masks_are_only_written_when_asked_for_and_change_no_other_file(phantom: Path, masked: Path) -> None:
    assert not (phantom / "phantom_truth").exists()
    for path in (path for path in phantom.rglob("*") if path.is_file() and path.name != "phantom.json"):
        assert (masked / path.relative_to(phantom)).read_bytes() == path.read_bytes()


def test_each_readable_slice_has_a_mask_whose_areas_are_those_of_the_truth_file(
    masked: Path, truth: pd.DataFrame
) -> None:
    readable = truth[~truth["quirks"].str.contains(r"\bcut\b")]
    assert {path.stem for path in (masked / "phantom_truth").iterdir()} == set(readable.index)
    for kind_bit, kind in enumerate(LABELS[:5]):
        areas, drawn = [], []
        for image_id, row in readable.iterrows():
            mask = np.load(masked / "phantom_truth" / f"{image_id}.npy")
            assert mask.dtype == np.uint8
            assert mask.shape == (row["rows"], row["columns"])
            areas.append(((mask >> kind_bit) & 1).sum() * row["spacing_mm"] ** 2)
            drawn.append(row[f"{kind}_mm3"] / row["thickness_mm"])
        areas, drawn = np.array(areas), np.array(drawn)
        assert not areas[drawn == 0].any()
        # Half a pixel along the border is in or out. Thin blood fills no pixel of 4 mm by half.
        assert np.corrcoef(areas, drawn)[0, 1] > 0.8, kind


def test_blood_lies_where_the_mask_says_and_is_denser_than_what_surrounds_it(masked: Path, truth: pd.DataFrame) -> None:
    differences = []
    plain = ~truth["quirks"].str.contains(r"\b(?:cut|wrap)\b")
    for image_id in truth.index[(truth["intraparenchymal"] == 1) & plain]:
        mask = np.load(masked / "phantom_truth" / f"{image_id}.npy") & 2
        dataset = read(masked, truth.loc[image_id])
        hu = stored(dataset) + int(dataset.RescaleIntercept)
        around = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - mask
        brain = (around > 0) & (hu > 0) & (hu < 100)
        if mask.any() and brain.any():
            differences.append(np.median(hu[mask > 0]) - np.median(hu[brain]))
    assert len(differences) >= 2
    assert min(differences) > 8


def test_masks_dont_go_with_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--phantom_folder={tmp_path / 'input'}", "--phantom_archive=1", "--phantom_masks=1"]
    assert "--phantom_masks=1 doesn't go with --phantom_archive=1" in failure(rsna_phantom.main, flags, capsys)
