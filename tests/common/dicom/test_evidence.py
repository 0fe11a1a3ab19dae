"""What counts as a CT slice: signs in headers as real archives have them, in both readers, and what becomes of them."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
)

import preprocessing
from common.dicom.errors import FAULTS, NO_SLICE, DicomError
from common.dicom.evidence import RULES
from common.dicom.hounsfield import hounsfield
from common.dicom.plain import read_plain
from common.dicom.reading import quiet_pydicom, read_any, read_dicom
from common.preprocessing.convert import convert_tasks
from common.preprocessing.failures import NO_SLICES
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import ImageForm, Task
from rsna_dataset import read_metadata
from tests.common.dicom.test_dicom_syntaxes import enhanced, item
from tests.dicom_encoders import content_of
from tests.dicom_files import new_ct, write_ct

SLICE = ""
ORIGINAL, DERIVED = ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]


def scan(rows: int = 48, outside: int | None = None) -> np.ndarray:
    """A head in HU, int16: a skull and brain in air; what lies outside the circle is ``outside``."""
    y, x = np.ogrid[:rows, :rows]
    radius = np.hypot(y - rows / 2 + 0.5, x - rows / 2 + 0.5) / rows
    noise = np.random.default_rng(rows).integers(-8, 9, (rows, rows))
    picture = np.select([radius < 0.30, radius < 0.36], [35, 900], -1000) + noise
    if outside is not None:
        picture[radius > 0.5] = outside
    return picture.astype(np.int16)


def ct(stored: np.ndarray | None = None, *, meta: str | None = None, **header: object) -> FileDataset:
    """A whole slice, with other elements in its header; None removes one. ``meta``: the class in the file's meta."""
    dataset = new_ct(scan() if stored is None else stored, intercept=0)
    for keyword, value in header.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = meta or header.get("SOPClassUID") or CTImageStorage
    return dataset


def reason_of(content: bytes, folder: Path) -> str:
    """Why a file gives no image, "" where it gives one: by the function that every command converts with."""
    path = folder / "file.dcm"
    path.write_bytes(content)
    task = Task("image", "source", "", len(content), 0, path, folder)
    (record,) = convert_tasks([task], ImageForm(0, (), "int16"), Pseudonyms(bytes(32)))
    assert (record.reason == "") == bool(list(folder.glob("image*.npy")))
    for image in folder.glob("image*.npy"):
        image.unlink()
    return record.reason


def header_reason(reader, content: bytes) -> str:
    try:
        with quiet_pydicom():
            return ";".join(getattr(frame, "doubt", "error") for frame in reader(content).header.frames)
    except DicomError as error:
        return error.reason


KINDS = [  # what a header says, and why that is no slice
    # ImageType of scans, as GE, Philips, Siemens, Toshiba and converters write it
    ({"ImageType": ORIGINAL}, SLICE),
    ({"ImageType": [*ORIGINAL, "HELIX"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "ADD"]}, SLICE),
    ({"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "CT_SOM5 SEQ"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "CT_SOM5 MON"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "CT_SOM7 SPI DUAL"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "CT_SOM10 DET3D"]}, SLICE),
    ({"ImageType": [*ORIGINAL, "GSI MONO"]}, SLICE),
    ({"ImageType": DERIVED}, SLICE),
    ({"ImageType": ["DERIVED ", "PRIMARY", "AXIAL"]}, SLICE),
    ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, SLICE),
    ({"ImageType": ["DERIVED", "SECONDARY", "MPR", "CSA MPR", "", "CSAPARALLEL"]}, SLICE),
    ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, SLICE),
    ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]}, SLICE),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "PERFUSION", "NONE"]}, SLICE),  # a scan that maps are made of
    ({"ImageType": [*ORIGINAL, "LOW DOSE"]}, SLICE),
    # scouts
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]}, "localizer"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "OTHER", "CT_SOM5 TOP"]}, "localizer"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT VIEW"]}, "localizer"),
    ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"]}, "localizer"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "SCANOGRAM"]}, "localizer"),
    # pages
    ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "dose_report"),
    ({"ImageType": ["DERIVED", "SECONDARY", "", "DOSEINFO"]}, "dose_report"),
    ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "dose_report"),
    ({"ImageType": ["DERIVED", "SECONDARY", "PATIENT_INFO"]}, "dose_report"),
    ({"ImageType": ["DERIVED", "SECONDARY", "RESULTS"]}, "dose_report"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen_save"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "SCREENSAVE"]}, "screen_save"),
    # renderings and projections
    ({"ImageType": ["DERIVED", "SECONDARY", "3D"]}, "rendering"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CSA 3D EDITOR"]}, "rendering"),
    ({"ImageType": ["DERIVED", "SECONDARY", "VRT"]}, "rendering"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN", "VOLREN"]}, "screen_save"),
    ({"ImageType": ["DERIVED", "SECONDARY", "VOLUME RENDERED"]}, "rendering"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SSD"]}, "rendering"),
    ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP THICK"]}, "projection"),
    ({"ImageType": ["DERIVED", "SECONDARY", "MINIP"]}, "projection"),
    ({"ImageType": ["DERIVED", "SECONDARY", "MAX_IP"]}, "projection"),
    ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]}, "projection"),
    ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projection"),
    # maps
    ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"], "RescaleType": "US"}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "MTT"], "RescaleType": "HU"}, "map"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CBV"]}, "map"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "TMAX"]}, "map"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "TTP"]}, "map"),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "PENUMBRA"]}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "ELECTRON_DENSITY"]}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "SUBTRACTION"]}, "map"),
    ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "STD_DEVIATION"]}, "map"),
    # RescaleType
    *(({"RescaleType": unit, "ImageType": ORIGINAL}, "map") for unit in ("HU_MOD", "Z_EFF", "MGML", "ED", "EDW")),
    *(({"RescaleType": unit}, "map") for unit in ("PCT", "mg/ml", "hu_mod")),
    ({"RescaleType": "HU"}, SLICE),
    ({"RescaleType": "Hounsfield Units", "ImageType": DERIVED}, SLICE),
    ({"RescaleType": "US"}, SLICE),
    ({"RescaleType": "US", "ImageType": ORIGINAL}, SLICE),
    ({"RescaleType": "ml/100g/min", "ImageType": ORIGINAL}, SLICE),
    ({"RescaleType": "US", "ImageType": DERIVED}, "no_hounsfield"),
    ({"RescaleType": "OD", "ImageType": ["DERIVED", "PRIMARY", "TOMO"]}, "no_hounsfield"),
    ({"RescaleType": "US", "ImageType": ORIGINAL, "RescaleSlope": "100"}, "no_hounsfield"),
    ({"RescaleType": "1/min", "RescaleSlope": "10", "RescaleIntercept": "3000"}, "no_hounsfield"),
    ({"RescaleType": "HU", "ImageType": ORIGINAL, "RescaleSlope": "100"}, SLICE),  # one sign alone
    # text in the picture
    ({"BurnedInAnnotation": "YES"}, "burned_in"),
    ({"BurnedInAnnotation": "NO"}, SLICE),
    # classes
    ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary_capture"),
    ({"SOPClassUID": MultiFrameGrayscaleByteSecondaryCaptureImageStorage}, "secondary_capture"),
    ({"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage}, "secondary_capture"),
    ({"SOPClassUID": MultiFrameTrueColorSecondaryCaptureImageStorage, "SamplesPerPixel": 3}, "secondary_capture"),
    ({"SOPClassUID": SecondaryCaptureImageStorage, "RescaleSlope": None}, "secondary_capture"),
    ({"SOPClassUID": None, "meta": SecondaryCaptureImageStorage}, "secondary_capture"),
    ({"SOPClassUID": SecondaryCaptureImageStorage, "meta": CTImageStorage}, "secondary_capture"),
    ({"SOPClassUID": MRImageStorage}, "other_class"),
    ({"SOPClassUID": MRImageStorage, "meta": CTImageStorage}, "other_class"),
    ({"SOPClassUID": RTDoseStorage}, "other_class"),
    ({"SOPClassUID": EnhancedSRStorage}, "other_class"),
    ({"SOPClassUID": "1.3.46.670589.11.0.0.12.1"}, "other_class"),  # one of Philips' own
    ({"SOPClassUID": EnhancedCTImageStorage}, SLICE),
    ({"SOPClassUID": LegacyConvertedEnhancedCTImageStorage}, SLICE),
    ({"SOPClassUID": None}, SLICE),
    ({"SOPClassUID": CTImageStorage, "meta": SecondaryCaptureImageStorage}, SLICE),
    ({"SOPClassUID": None, "ImagePositionPatient": None, "ImageOrientationPatient": None}, SLICE),
    # colour, other modalities
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
    ({"Modality": "MR"}, "not_ct"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "reason"), KINDS, ids=lambda value: str(value) if isinstance(value, str) else None)
def test_what_a_header_says_decides_whether_it_is_a_slice_and_both_readers_agree(header, reason, tmp_path) -> None:
    content = content_of(ct(**header))
    assert reason_of(content, tmp_path) == reason
    if reason:
        assert reason in NO_SLICE  # and so never counts
    assert header_reason(read_dicom, content) == header_reason(read_any, content)
    if reason == SLICE and "VM" not in str(header):
        assert read_plain(content) is not None  # a slice of these kinds goes the fast way


def test_every_sign_has_a_reason_that_never_counts() -> None:
    assert {rule.reason for rule in RULES} <= set(NO_SLICE)
    assert not set(NO_SLICE) & set(FAULTS)
    assert set(NO_SLICE) <= set(NO_SLICES)


def test_a_frame_of_an_enhanced_file_is_judged_by_its_own_type_and_unit() -> None:
    dataset = enhanced()
    frames = dataset.PerFrameFunctionalGroupsSequence
    frames[0].CTImageFrameTypeSequence = [item(FrameType=["DERIVED", "PRIMARY", "PERFUSION", "RCBF"])]
    frames[1].PixelValueTransformationSequence[0].RescaleType = "MGML"
    with quiet_pydicom():
        found = read_dicom(content_of(dataset)).header.frames
    assert [getattr(frame, "reason", SLICE) for frame in found] == ["map", "map", SLICE]


def test_what_is_no_slice_is_named_never_counts_and_leaves_no_pixel_anywhere(tmp_path, capsys, caplog) -> None:
    """A hospital's export: slices, and among them one of each kind that scanners send along."""
    source = tmp_path / "export"
    for study in range(3):
        folder = source / f"case{study}"
        folder.mkdir(parents=True)
        for place in range(4):
            dataset = ct(scan() + np.int16(place))
            dataset.PatientID, dataset.StudyInstanceUID = f"P{study}", f"1.2.{study}"
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"1.2.{study}.1", f"1.2.{study}.1.{place}"
            dataset.ImagePositionPatient = [0, 0, 5 * place]
            write_ct(folder / f"slice{place}.dcm", dataset)
    page = np.zeros((48, 48), np.uint8)
    cv2.putText(page, "DOE^JANE", (0, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.3, 255)
    others = {
        "localizer": ct(ImageType=["DERIVED", "SECONDARY", "REF_SURVIEW"]),
        "map": ct(ImageType=["DERIVED", "PRIMARY", "PERFUSION", "RCBF"], RescaleType="US"),
        "rendering": ct(page.astype(np.int16) * 10, ImageType=["DERIVED", "SECONDARY", "3D"]),
        "burned_in": ct(page.astype(np.int16) * 10, BurnedInAnnotation="YES"),
        "secondary_capture": ct(SOPClassUID=SecondaryCaptureImageStorage, RescaleSlope=None, RescaleIntercept=None),
        "colour": ct(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "not_ct": ct(Modality="SR"),
        "no_image": ct(SOPClassUID=EnhancedSRStorage, Rows=None, Columns=None, PixelData=None),
    }
    for name, dataset in others.items():
        write_ct(source / "case0" / f"{name}.dcm", dataset)
    flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={source}", "--data_dataset=own", "--n_jobs=1"]
    folder = preprocessing.main([*flags, "--pre_max_failed=0", "--pre_crop=head", "--pre_audit=1"])
    assert sorted(pd.read_csv(folder / "failed.csv")["reason"]) == sorted(others)
    table = read_metadata(folder, described=True)
    assert len(table) == len(list((folder / "images").iterdir())) == 12
    assert table["hu_max"].between(800, 1000).all()  # the skulls of slices, no letters
    assert "8 files are no CT slices and don't count as failures" in capsys.readouterr().err
    assert not any("gave no image" in message for message in caplog.messages)
    assert "8 files are no CT slices" in (folder / "audit.html").read_text()
    # What should have been a slice and is broken still counts.
    write_ct(source / "case0" / "broken.dcm", ct(RescaleSlope=None))
    with pytest.raises(SystemExit):
        preprocessing.main([*flags, "--pre_max_failed=0.05"])
    assert "1 of 13 files failed (7.69%)" in capsys.readouterr().err


# --- what is broken ---------------------------------------------------------------------------------------------------


def element(tag: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, kind, len(value)) + value


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x00280010, b"US", b"\x20\x00"),
        (0x00281052, b"DS", b"-24 "),
        (0x00281053, b"DS", b"2 "),
        (0x00280120, b"SS", b"\x18\xfc"),
    ],
)
def test_an_element_of_the_image_that_stands_twice_is_refused(tag, kind, value, tmp_path) -> None:
    dataset = ct()
    dataset.PixelPaddingValue = -2000
    dataset["PixelPaddingValue"].VR = "SS"
    content = content_of(dataset)
    start = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    assert reason_of(content[:start] + element(tag, kind, value) + content[start:], tmp_path) == "pixel_format"
    # Behind the pixels too, where both readers would stop looking.
    for reader in (read_dicom, read_any):
        assert header_reason(reader, content + element(tag, kind, value)) == "pixel_format"


def test_a_file_with_two_pictures_is_refused_in_every_syntax(tmp_path) -> None:
    second = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 48 * 48 * 2) + bytes(48 * 48 * 2)
    assert reason_of(content_of(ct()) + second, tmp_path) == "pixel_format"
    implicit = new_ct(scan(), intercept=0, syntax=ImplicitVRLittleEndian)
    bare = struct.pack("<HHL", 0x7FE0, 0x0010, 48 * 48 * 2) + bytes(48 * 48 * 2)
    assert reason_of(content_of(implicit), tmp_path) == SLICE
    assert reason_of(content_of(implicit) + bare, tmp_path) == "pixel_format"
    packed = ct()
    packed.compress(JPEGLSLossless, generate_instance_uid=False)
    assert reason_of(content_of(packed), tmp_path) == SLICE
    assert reason_of(content_of(packed) + second, tmp_path) == "pixel_format"


RESCALE, INTERCEPT, SLOPE = 0x00289145, 0x00281052, 0x00281053  # PixelValueTransformationSequence; of its item
PER_FRAME, ITEM = 0x52009230, 0xFFFEE000


def nested(tag: int, value: bytes, *, implicit: bool, undefined: bool) -> bytes:
    """A sequence of one item, or with ITEM an item, by hand: pydicom writes no element twice."""
    length = 0xFFFFFFFF if undefined else len(value)
    form = (struct.pack("<HHL", tag >> 16, tag & 0xFFFF, length) if implicit or tag == ITEM
            else struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, length))  # fmt: skip
    end = struct.pack("<HHL", 0xFFFE, 0xE00D if tag == ITEM else 0xE0DD, 0)
    return form + value + (end if undefined else b"")


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_an_element_of_the_image_that_stands_twice_in_a_functional_group_is_refused(implicit, undefined) -> None:
    """Beside each other in an item at any depth; each item's own, as all frames have them, are no repeats."""

    def rescale(*intercepts: bytes) -> bytes:
        parts = [(INTERCEPT, text) for text in intercepts] + [(SLOPE, b"2 ")]
        if implicit:
            return b"".join(struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(text)) + text for tag, text in parts)
        return b"".join(element(tag, b"DS", text) for tag, text in parts)

    def wrapped(tag: int, *items: bytes) -> bytes:
        both = {"implicit": implicit, "undefined": undefined}
        return nested(tag, b"".join(nested(ITEM, one, **both) for one in items), **both)

    def content(groups: bytes) -> bytes:
        dataset = enhanced(2)
        del dataset.PerFrameFunctionalGroupsSequence
        if implicit:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        whole = content_of(dataset)
        start = whole.index(struct.pack("<HH", 0x7FE0, 0x0010))
        return whole[:start] + groups + whole[start:]

    one, two = rescale(b"-24 "), rescale(b"-24 ", b"-99 ")
    frame, doubled = wrapped(RESCALE, one), wrapped(RESCALE, two)
    for good in (wrapped(PER_FRAME, frame, frame), wrapped(PER_FRAME, b"", frame)):
        assert header_reason(read_dicom, content(good)) == ";"
    for bad in (
        wrapped(PER_FRAME, frame, doubled),
        wrapped(PER_FRAME, doubled + frame),
        wrapped(PER_FRAME, frame + frame, frame),
        wrapped(PER_FRAME, frame) + wrapped(PER_FRAME, frame),
    ):
        assert header_reason(read_dicom, content(bad)) == "pixel_format"
    # Two rescales in two items of what describes one frame.
    assert header_reason(read_dicom, content(wrapped(PER_FRAME, wrapped(RESCALE, one, one), frame))) == "error;"


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "liver_expb_1frame.dcm"])
def test_functional_groups_that_others_wrote_hold_nothing_twice(name) -> None:
    """pydicom's files with functional groups: a segmentation, in both orders of bytes."""
    dataset = dcmread(get_testdata_file(name, download=False))
    assert "PerFrameFunctionalGroupsSequence" in dataset
    assert header_reason(read_any, content_of(dataset)) == "not_ct"
    assert header_reason(read_any, Path(get_testdata_file(name, download=False)).read_bytes()) == "not_ct"


def test_garbage_and_padding_behind_the_pixels_are_no_second_picture(tmp_path) -> None:
    content = content_of(ct())
    padding = struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 8) + bytes(8)
    for rest in (padding, b"\0" * 512, b"garbage of an old disk's last block"):
        assert reason_of(content + rest, tmp_path) == SLICE


@pytest.mark.parametrize("text", [b"1_0 ", b"1_0_", "١٠".encode(), b"0x10", b"1e_1"])
def test_a_number_that_python_reads_and_dicom_does_not_know_is_no_rescale(text, tmp_path) -> None:
    content = content_of(ct(RescaleSlope="1357"))
    assert content.count(b"1357") == 1
    assert reason_of(content.replace(b"1357", text), tmp_path) == "rescale"


@pytest.mark.parametrize("intercept", ["-99999", "-5000", "8000", "1e30"])
def test_a_rescale_that_leaves_no_pixel_in_a_cts_range_is_refused(intercept, tmp_path) -> None:
    assert reason_of(content_of(ct(RescaleIntercept=intercept)), tmp_path) == "rescale"


def test_a_picture_of_air_or_of_one_tissue_is_in_a_cts_range(tmp_path) -> None:
    for value in (-1024, -1000, 40, 3071):
        assert reason_of(content_of(ct(np.full((48, 48), value, np.int16))), tmp_path) == SLICE


def test_no_frames_are_one_frame(tmp_path) -> None:
    assert reason_of(content_of(ct(NumberOfFrames=0)), tmp_path) == SLICE
    dataset = enhanced(frames=1 + 1)
    dataset.NumberOfFrames = 0
    with quiet_pydicom():
        assert len(read_dicom(content_of(dataset)).header.frames) == 1


@pytest.mark.parametrize("bits", [1, 9, 10])
@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_a_codestream_of_more_bits_than_bits_stored_is_refused_and_never_cut(name, bits, tmp_path) -> None:
    """pydicom's own compressed files, whose numbers go up to 4,000."""
    dataset = dcmread(get_testdata_file(name, download=False))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "CT", "1", "-1024"
    assert reason_of(content_of(dataset), tmp_path) == SLICE
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    assert reason_of(content_of(dataset), tmp_path) == "pixel_format"


def test_twelve_bits_that_were_compressed_as_sixteen_stay_a_slice(tmp_path) -> None:
    """As many viewers export them; the picture is the same whatever the codestream says of its size."""
    dataset = ct((scan() + 1024).astype(np.uint16), RescaleIntercept="-1024")
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit = 12, 11
    assert reason_of(content_of(dataset), tmp_path) == SLICE


# --- outside the circle -----------------------------------------------------------------------------------------------


def picture(dataset: FileDataset, folder: Path) -> np.ndarray:
    """The HU that a file is stored as."""
    content = content_of(dataset)
    path = folder / "file.dcm"
    path.write_bytes(content)
    task = Task("image", "source", "", len(content), 0, path, folder)
    (record,) = convert_tasks([task], ImageForm(0, (), "int16"), Pseudonyms(bytes(32)))
    assert (record.reason, "padding" in record.mended) == ("", True)
    return np.load(next(folder.glob("image*.npy")))


@pytest.mark.parametrize("value", [-2048, -3024, -1500, -8192, -1100])
def test_values_outside_the_circle_are_air_whether_or_not_a_header_says_so(value, tmp_path) -> None:
    expected = np.where(scan(64, outside=9999) == 9999, -1024, scan(64))
    np.testing.assert_array_equal(picture(ct(scan(64, outside=value)), tmp_path), expected)


@pytest.mark.parametrize("spread", [1, 4, 60])
@pytest.mark.parametrize("tag", [-2000, None])
def test_padding_that_lossy_coding_has_spread_is_the_air_of_the_original(spread, tag, tmp_path) -> None:
    outside = scan(64, outside=9999) == 9999
    noise = np.random.default_rng(3).integers(-spread, spread + 1, outside.shape)
    stored = np.where(outside, -2000 + noise, scan(64).astype(int) + 1024).astype(np.int16)
    dataset = ct(stored, RescaleIntercept="-1024", LossyImageCompression="01")
    if tag is not None:
        dataset.PixelPaddingValue = tag
        dataset["PixelPaddingValue"].VR = "SS"
    expected = np.where(outside, -1024, scan(64))
    np.testing.assert_array_equal(picture(dataset, tmp_path), expected)


def test_a_near_lossless_copy_has_the_air_of_its_lossless_original(tmp_path) -> None:
    """By CharLS's encoder and without a word in the header: the codestream says that it is lossy."""
    stored = (scan(64).astype(np.int32) + 1024).astype(np.int16)
    stored[scan(64, outside=9999) == 9999] = -2000
    original, copy = (ct(stored, RescaleIntercept="-1024") for _ in range(2))
    copy.compress(JPEGLSNearLossless, jls_error=3, generate_instance_uid=False)
    expected, found = picture(original, tmp_path), picture(copy, tmp_path)
    np.testing.assert_array_equal(found == -1024, expected == -1024)
    assert 0 < np.abs(found.astype(int) - expected).max() <= 3


def test_lossy_padding_above_a_cts_range_is_air_too(tmp_path) -> None:
    outside = scan(64, outside=9999) == 9999
    noise = np.random.default_rng(3).integers(-4, 5, outside.shape)
    stored = np.where(outside, 63536 + noise, scan(64).astype(int) + 1024).astype(np.uint16)
    dataset = ct(stored, RescaleIntercept="-1024", LossyImageCompression="01")
    dataset.PixelPaddingValue = 63536
    np.testing.assert_array_equal(picture(dataset, tmp_path), np.where(outside, -1024, scan(64)))


def test_a_few_low_values_beside_metal_and_a_wrong_rescale_are_left_alone(tmp_path) -> None:
    streaks = scan(64)
    streaks[20, 20:28] = -1900
    wrong = scan(64) - np.int16(1500)  # air at -2500: the rescale is wrong, not the circle
    for stored in (streaks, wrong):
        with quiet_pydicom():
            file = read_dicom(content_of(ct(stored)))
        (header,), (frame,) = file.header.frames, file.frames()
        image, mended = hounsfield(frame.container, file.header.form, header)
        np.testing.assert_array_equal(image, stored)
        assert mended == ()
