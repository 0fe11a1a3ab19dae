"""common/dicom/ against values computed by hand, plain pydicom and DATA's rules."""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from common.dicom.elements import MAX_FILE_BYTES
from common.dicom.errors import REASONS, DicomError
from common.dicom.geometry import direction_letters, edge_letters, slice_order, slice_positions
from common.dicom.hounsfield import hounsfield
from common.dicom.pictures import AIR_HU, resize_area, window
from common.dicom.reading import quiet_pydicom, read_dicom
from common.preprocessing.sources import read_source
from tests.dicom_files import head, new_ct, write_ct


def shipped(name):
    """A file that comes with pydicom."""
    return Path(get_testdata_file(name, download=False))


def load(path):
    """The HU of a file of one image, and all that is marked about it."""
    with quiet_pydicom():
        file = read_dicom(read_source(path))
        (header,) = file.header.frames
        (stored,) = file.frames()
        for part in (header, stored):
            if isinstance(part, DicomError):
                raise part
        image, mended = hounsfield(stored.container, file.header.form, header)
    return image, (*mended, *stored.marks, *header.marks)


def geometry_of(dataset, tmp_path):
    path = write_ct(tmp_path / "image.dcm", dataset)
    with quiet_pydicom():
        return read_dicom(read_source(path)).header.frames[0].geometry


def convert(dataset, tmp_path):
    return load(write_ct(tmp_path / "image.dcm", dataset))


def refusal(path):
    with pytest.raises(DicomError) as caught:
        load(path)
    assert caught.value.reason in REASONS
    return caught.value


def refused(dataset, tmp_path):
    return refusal(write_ct(tmp_path / "image.dcm", dataset))


# --- Hounsfield units -------------------------------------------------------------------------------------------------


def test_pydicoms_own_ct_file_gives_what_plain_pydicom_gives_but_for_its_padding():
    path = shipped("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    expected = apply_rescale(dataset.pixel_array, dataset)
    expected[dataset.pixel_array == dataset.PixelPaddingValue] = AIR_HU
    image, mended = load(path)
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image, expected)
    assert mended == (("padding",) if (dataset.pixel_array == -2000).any() else ())


def test_hand_computed_values_of_each_stored_form(tmp_path):
    signed = np.array([[-1024, 0], [1064, 3071]], np.int16)
    assert convert(new_ct(signed, intercept=0), tmp_path)[0].tolist() == signed.tolist()
    assert convert(new_ct(signed), tmp_path)[0].tolist() == [[-2048, -1024], [40, 2047]]
    unsigned = np.array([[0, 24], [1064, 4095]], np.uint16)
    assert convert(new_ct(unsigned, bits=12), tmp_path)[0].tolist() == [[-1024, -1000], [40, 3071]]
    assert convert(new_ct(unsigned, bits=12, intercept=-1000), tmp_path)[0].tolist() == [[-1000, -976], [64, 3095]]
    twelve_signed = np.array([[-2000 + 976, 0], [40, 2047]], np.int16)
    assert convert(new_ct(twelve_signed, bits=12, intercept=0), tmp_path)[0].tolist() == twelve_signed.tolist()


def test_values_round_to_the_nearest_and_are_clipped_and_never_overflow(tmp_path):
    dataset = new_ct(np.array([[3, 5, 7], [-32768, 32767, 30000]], np.int16), intercept="-0.25")
    dataset.RescaleSlope = "0.5"
    assert convert(dataset, tmp_path)[0].tolist() == [[1, 2, 3], [-16384, 16383, 15000]]
    dataset = new_ct(np.array([[-32768, 32767]], np.int16), intercept=-1024)
    assert convert(dataset, tmp_path)[0].tolist() == [[-32768, 31743]]
    dataset = new_ct(np.array([[-32768, 32767]], np.int16), intercept=1024)
    assert convert(dataset, tmp_path)[0].tolist() == [[-31744, 32767]]


@settings(deadline=None, max_examples=60)
@given(
    stored=hnp.arrays(np.int16, (3, 4), elements=st.integers(-32768, 32767).filter(lambda value: value != -2000)),
    slope=st.sampled_from(["1", "2", "0.5", "-1", "1.25", "1e-3", "1e300"]),
    intercept=st.sampled_from(["0", "-1024", "-1000", "0.5", "-8192", "99999", "-1e300"]),
)
def test_any_rescale_agrees_with_pydicoms_clipped_to_int16(tmp_path_factory, stored, slope, intercept):
    dataset = new_ct(stored, intercept=intercept)
    dataset.RescaleSlope = slope
    with np.errstate(over="ignore"):
        expected = np.clip(np.rint(apply_rescale(stored, dataset)), -32768, 32767)
    np.testing.assert_array_equal(convert(dataset, tmp_path_factory.getbasetemp())[0], expected)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", [None, "", "nan", "inf", "-inf", "1\\2", "abc"])
def test_a_rescale_that_is_missing_or_no_finite_number_is_a_failure(tmp_path, keyword, value):
    dataset = new_ct(head(0))
    if value is None:
        del dataset[keyword]
    else:
        dataset.add(pydicom.DataElement(keyword, "LO", value.split("\\") if value else ""))
        dataset[keyword].VR = "DS" if value in ("", "1\\2") else "LO"
    error = refused(dataset, tmp_path)
    assert error.reason == "rescale"
    assert keyword in str(error)


def test_a_slope_of_zero_is_a_failure(tmp_path):
    dataset = new_ct(head(0))
    dataset.RescaleSlope = "0"
    assert refused(dataset, tmp_path).reason == "rescale"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_uncompressed_syntax_gives_the_same_image(tmp_path, syntax):
    np.testing.assert_array_equal(convert(new_ct(head(3), intercept=0, syntax=syntax), tmp_path)[0], head(3))


def test_two_window_values_change_nothing(tmp_path):
    dataset = new_ct(head(1), intercept=0)
    dataset.WindowCenter, dataset.WindowWidth = ["00036", "00080"], ["00080", "00200"]
    np.testing.assert_array_equal(convert(dataset, tmp_path)[0], head(1))


# --- the wrap ---------------------------------------------------------------------------------------------------------


def wrapped(hu):
    """Store HU as DATA says such files do: modulo 4096 in 12 bits."""
    return (hu.astype(np.int32) % 4096).astype(np.uint16)


@pytest.mark.parametrize("intercept", [0, 1, -99])
def test_wrapped_values_are_mended_by_datas_rule(tmp_path, intercept):
    hu = head(2)
    hu[10, 5:9] = [3095, 3072, -1000, -1]
    image, mended = convert(new_ct(wrapped(hu), bits=12, intercept=intercept), tmp_path)
    stored = wrapped(hu).astype(int) + 1000
    stored[stored >= 4096] -= 4096
    np.testing.assert_array_equal(image, stored - 1000)
    np.testing.assert_array_equal(image, hu)
    assert mended == ("wrap",)


def test_a_wrap_whose_air_lies_at_minus_1024_is_mended_too(tmp_path):
    hu = np.where(head(2) == -1000, np.int16(-1024), head(2))
    image, mended = convert(new_ct(wrapped(hu), bits=12, intercept=0), tmp_path)
    np.testing.assert_array_equal(image, hu)
    assert mended == ("wrap",)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int16, (6, 7), elements=st.integers(-1000, 3071)))
def test_any_wrapped_image_with_air_comes_back(tmp_path_factory, hu):
    hu[0] = -1000
    image, mended = convert(new_ct(wrapped(hu), bits=12, intercept=0), tmp_path_factory.getbasetemp())
    np.testing.assert_array_equal(image, hu)
    assert mended == ("wrap",)


def test_a_file_that_looks_wrapped_but_has_no_air_there_is_left_alone_and_marked(tmp_path):
    stored = np.clip(head(2), 0, None).astype(np.uint16)
    image, mended = convert(new_ct(stored, bits=12, intercept=1), tmp_path)
    np.testing.assert_array_equal(image, stored.astype(int) + 1)
    assert mended == ("wrap_doubtful",)


@pytest.mark.parametrize(("air", "mended"), [(40, "wrap_doubtful"), (41, "wrap")])
def test_the_peak_of_air_that_proves_a_wrap_is_a_hundredth_of_the_pixels(tmp_path, air, mended):
    hu = np.zeros((50, 81), np.int16)  # 4,050 pixels
    hu.flat[:air] = -1000
    image, names = convert(new_ct(wrapped(hu), bits=12, intercept=0), tmp_path)
    assert names == (mended,)
    assert image.flat[0] == (-1000 if mended == "wrap" else 3096)


def test_wrapped_values_with_a_slope_other_than_1_are_left_alone(tmp_path):
    dataset = new_ct(wrapped(head(2)), bits=12, intercept=0)
    dataset.RescaleSlope = "2"
    image, mended = convert(dataset, tmp_path)
    assert mended == ("wrap_doubtful",)
    assert image[0, 0] == 2 * 3096


@pytest.mark.parametrize(("bits", "kind", "intercept"), [(16, np.int16, 0), (12, np.int16, 0), (12, np.uint16, -1024)])
def test_other_headers_are_never_unwrapped(tmp_path, bits, kind, intercept):
    stored = np.full((4, 4), 2000, kind)
    image, mended = convert(new_ct(stored, bits=bits, intercept=intercept), tmp_path)
    assert (image == 2000 + intercept).all()
    assert mended == ()
    stored = np.full((4, 4), 3080, np.uint16)
    assert convert(new_ct(stored, bits=12), tmp_path)[0][0, 0] == 3080 - 1024


# --- padding and unused bits ------------------------------------------------------------------------------------------


def test_minus_2000_becomes_air_whether_or_not_the_header_says_so(tmp_path):
    stored = np.array([[-2000, 1064], [-1999, 24]], np.int16)
    image, mended = convert(new_ct(stored), tmp_path)
    assert image.tolist() == [[-1024, 40], [-3023, -1000]]
    assert mended == ("padding",)


@pytest.mark.parametrize("value", [-2000, 63536])
def test_a_padding_value_is_understood_signed_and_as_its_unsigned_twin(tmp_path, value):
    dataset = new_ct(np.array([[-2000, 1064]], np.int16))
    dataset.add(pydicom.DataElement("PixelPaddingValue", "SS" if value < 0 else "US", value))
    assert convert(dataset, tmp_path)[0].tolist() == [[-1024, 40]]


def test_a_range_of_padding_values_becomes_air_at_both_ends(tmp_path):
    dataset = new_ct(np.array([[100, 101, 105, 110, 111]], np.uint16))
    dataset.add(pydicom.DataElement("PixelPaddingValue", "US", 110))
    dataset.add(pydicom.DataElement("PixelPaddingRangeLimit", "US", 101))
    image, mended = convert(dataset, tmp_path)
    assert image.tolist() == [[100 - 1024, -1024, -1024, -1024, 111 - 1024]]
    assert mended == ("padding",)


def test_minus_2000_is_a_measurement_where_the_rescale_puts_it_above_air(tmp_path):
    assert convert(new_ct(np.array([[-2000, -960]], np.int16), intercept=1000), tmp_path)[0].tolist() == [[-1000, 40]]


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_bits_above_bits_stored_are_ignored_and_marked_as_plain_pydicom_ignores_them(tmp_path, kind):
    dataset = new_ct(np.array([[0x1428, 0x0428, 0xF018]], np.uint16).view(kind), bits=12)
    path = write_ct(tmp_path / "image.dcm", dataset)
    plain = pydicom.dcmread(path)
    image, mended = load(path)
    np.testing.assert_array_equal(image, apply_rescale(plain.pixel_array, plain))
    assert mended == ("unused_bits",)


# --- sizes of PixelData -----------------------------------------------------------------------------------------------


def test_a_file_cut_in_its_pixels_is_truncated(tmp_path):
    path = write_ct(tmp_path / "image.dcm", new_ct(head(0)))
    path.write_bytes(path.read_bytes()[:-300])
    error = refusal(path)
    assert error.reason == "truncated"
    assert f"{24 * 24 * 2 - 300} bytes where {24 * 24 * 2} are declared" in str(error)


def test_pixel_data_shorter_than_declared_in_a_whole_file_is_truncated(tmp_path):
    dataset = new_ct(head(0))
    dataset.PixelData = dataset.PixelData[:1000]
    assert refused(dataset, tmp_path).reason == "truncated"


def test_a_file_cut_before_its_pixels_is_truncated(tmp_path):
    path = write_ct(tmp_path / "image.dcm", new_ct(head(0)))
    path.write_bytes(path.read_bytes()[: -24 * 24 * 2 - 12])
    assert refusal(path).reason == "truncated"


def test_excess_pixel_data_is_ignored_and_marked(tmp_path):
    dataset = new_ct(head(0), intercept=0)
    dataset.PixelData += b"\x11" * 64
    image, mended = convert(dataset, tmp_path)
    np.testing.assert_array_equal(image, head(0))
    assert mended == ("excess",)


def test_a_cut_anywhere_is_a_named_failure_or_the_whole_image(tmp_path):
    content = write_ct(tmp_path / "whole.dcm", new_ct(head(0), intercept=0)).read_bytes()
    path = tmp_path / "cut.dcm"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refusal(path)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_byte_is_a_named_failure_or_an_image_but_never_another_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.dcm"
    content = bytearray(write_ct(path, new_ct(head(0)[:6, :6])).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        image, _ = load(path)
    except DicomError as error:
        reason = error.reason
    else:
        reason = None
        assert image.dtype == np.int16
    assert reason is None or reason in REASONS


# --- what is no CT image ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_small.dcm", "not_ct"),
        ("JPEG2000.dcm", "not_ct"),
        ("MR_small_RLE.dcm", "not_ct"),
        ("image_dfl.dcm", "not_ct"),
        ("rtdose.dcm", "not_ct"),
        ("test-SR.dcm", "no_image"),
        ("DICOMDIR", "no_image"),
        ("no_meta.dcm", "not_dicom"),
        ("README.txt", "not_dicom"),
    ],
)
def test_pydicoms_other_files_are_refused_by_name(name, reason):
    assert refusal(shipped(name)).reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR"}, "not_ct"),
        ({"Modality": ""}, "not_ct"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"NumberOfFrames": "2"}, "multi_frame"),
        ({"BitsAllocated": 8}, "pixel_format"),
        ({"BitsStored": 17}, "pixel_format"),
        ({"HighBit": 11}, "pixel_format"),
        ({"PixelRepresentation": 2}, "pixel_format"),
        ({"Rows": 0}, "pixel_format"),
        ({"Columns": 65535}, "pixel_format"),
    ],
)
def test_what_is_no_plain_ct_image_is_refused_with_its_reason(tmp_path, changes, reason):
    dataset = new_ct(head(0))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    assert refused(dataset, tmp_path).reason == reason


@pytest.mark.parametrize(
    "keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
)
def test_a_missing_field_of_the_pixels_is_named(tmp_path, keyword):
    dataset = new_ct(head(0))
    del dataset[keyword]
    assert keyword in str(refused(dataset, tmp_path))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "image.dcm"
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        file.truncate(MAX_FILE_BYTES + 1)  # a hole, it takes no disk
    assert refusal(path).reason == "too_large"


@pytest.mark.parametrize("content", [b"", b"ID,Label\n", b"\x89PNG\r\n\x1a\n" + bytes(400), bytes(128) + b"DICM"])
def test_a_csv_a_picture_and_an_empty_file_are_no_dicom_image(tmp_path, content):
    path = tmp_path / "image.dcm"
    path.write_bytes(content)
    assert refusal(path).reason in ("not_dicom", "unreadable", "transfer_syntax")


def test_sequences_nested_beyond_any_measure_are_a_named_failure(tmp_path):
    dataset = new_ct(head(0))
    content = write_ct(tmp_path / "image.dcm", dataset).read_bytes()
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff"
    nested = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + item * 2000
    start = content.index(b"\x08\x00\x60\x00CS")
    (tmp_path / "image.dcm").write_bytes(content[:start] + nested)
    assert refusal(tmp_path / "image.dcm").reason in ("unreadable", "not_ct")


def test_an_object_without_an_image_and_a_missing_file_are_refused(tmp_path):
    dataset = new_ct(head(0))
    for keyword in ("Rows", "Columns", "PixelData"):
        del dataset[keyword]
    assert refused(dataset, tmp_path).reason == "no_image"
    assert refusal(tmp_path / "nothing.dcm").reason == "unreadable"
    assert refusal(tmp_path).reason == "unreadable"


@pytest.mark.parametrize(
    ("keyword", "vr"),
    [
        ("Modality", "LO"),
        ("RescaleSlope", "LO"),
        ("RescaleSlope", "DS"),
        ("PhotometricInterpretation", "LO"),
        ("StudyDate", "DA"),
        ("BitsStored", "LO"),
        ("NumberOfFrames", "IS"),
        ("PixelSpacing", "DS"),
        ("StudyInstanceUID", "UI"),
        ("ImageType", "CS"),
    ],
)
def test_no_message_warning_or_log_line_carries_a_header_value(tmp_path, capfd, caplog, keyword, vr):
    """Each field holds a name where it must not; pydicom's own warnings and log lines would quote it."""
    path = tmp_path / "image.dcm"
    dataset = new_ct(head(0))
    dataset.PatientName = "CANARY^NAME"
    placeholder = {"DA": "19000101", "IS": "135799", "DS": "135799", "UI": "1.35799"}.get(vr, "135799")
    dataset.add(pydicom.DataElement(keyword, vr, placeholder))
    content = write_ct(path, dataset).read_bytes()
    assert content.count(placeholder.encode()) == 1
    path.write_bytes(content.replace(placeholder.encode(), b"CANARY^^"[: len(placeholder)].ljust(len(placeholder))))
    message = ""
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with quiet_pydicom():
            try:
                list(read_dicom(read_source(path)).frames())
            except DicomError as error:
                message = str(error)
    output = capfd.readouterr()
    texts = [message, caplog.text, output.out, output.err, *(str(warning.message) for warning in caught)]
    assert "CANARY" not in "".join(texts)
    assert (message == "") == (keyword in ("StudyDate", "PixelSpacing", "StudyInstanceUID", "ImageType"))


def test_what_pydicom_remarks_is_counted_by_kind_and_its_settings_come_back(tmp_path):
    mode = pydicom.config.settings.reading_validation_mode
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_pydicom() as kinds:
            warnings.warn("CANARY", UserWarning, stacklevel=1)
            logging.getLogger("pydicom").warning("CANARY")
            with pytest.raises(DicomError):
                read_dicom(b"")
    assert kinds == ["UserWarning", "WARNING"]
    assert caught == []
    assert pydicom.config.settings.reading_validation_mode == mode
    assert logging.getLogger("pydicom").filters == []


def test_the_error_survives_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(DicomError("rescale", "RescaleSlope is 0")))
    assert (error.reason, str(error)) == ("rescale", "RescaleSlope is 0")


# --- windows and sizes ------------------------------------------------------------------------------------------------


def test_a_window_is_one_fixed_linear_map():
    hu = np.array([[-1024, 0, 20], [40, 80, 3071]], np.int16)
    picture = window(hu, 40, 80)
    assert picture.dtype == np.float32
    assert picture.tolist() == [[0, 0, 0.25], [0.5, 1, 1]]
    assert window(hu, 600, 2800)[0, 0] == 0


def test_resizing_by_a_whole_factor_is_the_mean_of_each_block():
    image = np.random.default_rng(0).integers(-1024, 3071, (8, 8)).astype(np.int16)
    blocks = image.reshape(4, 2, 4, 2).astype(float).mean(axis=(1, 3))
    resized = resize_area(image, 4)
    assert resized.dtype == np.int16
    np.testing.assert_array_equal(resized, np.rint(blocks))


def test_resizing_by_any_factor_weighs_pixels_by_their_area():
    image = np.array([[0, 300, 600]] * 3, np.int16)
    # Each of the two new columns covers one and a half old ones.
    np.testing.assert_array_equal(resize_area(image, 2), [[100, 500]] * 2)


@pytest.mark.parametrize(("shape", "top", "left", "inner"), [((8, 4), 0, 1, (4, 2)), ((4, 8), 1, 0, (2, 4))])
def test_the_longer_side_counts_and_the_shorter_is_padded_with_air_on_both_ends(shape, top, left, inner):
    square = resize_area(np.full(shape, 40, np.int16), 4)
    expected = np.full((4, 4), AIR_HU)
    expected[top : top + inner[0], left : left + inner[1]] = 40
    np.testing.assert_array_equal(square, expected)


def test_a_smaller_image_is_enlarged_and_size_0_leaves_it_as_it_is():
    image = np.full((3, 3), 7, np.int16)
    assert (resize_area(image, 9) == 7).all()
    assert resize_area(image, 9).shape == (9, 9)
    assert resize_area(image, 0) is image
    assert resize_area(image, 3) is image


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_windowed_pictures_keep_type_and_channels_and_are_padded_with_what_is_asked(channels):
    picture = np.random.default_rng(0).random((8, 4, channels)).astype(np.float32)
    small = resize_area(picture, 4, 0)
    assert small.shape == (4, 4, channels)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small[:, 1:3], picture.reshape(4, 2, 2, 2, channels).mean(axis=(1, 3)), atol=1e-6)
    assert (small[:, (0, 3)] == 0).all()


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [
        ((1, 0, 0, 0, 1, 0), ("A", "L", "P", "R")),
        ((-1, 0, 0, 0, 1, 0), ("A", "R", "P", "L")),  # mirrored
        ((1, 0, 0, 0, 0, -1), ("H", "L", "F", "R")),  # coronal
        ((0, 1, 0, 0, 0, -1), ("H", "P", "F", "A")),  # sagittal
        ((1, 0, 0, 0, 0.94, -0.342), ("AH", "L", "PF", "R")),  # gantry tilted by 20 degrees
        ((0.9998, 0.0175, 0, -0.0175, 0.9998, 0), ("A", "L", "P", "R")),  # a head turned by 1 degree
    ],
)
def test_a_pictures_edges_are_named_by_the_patients_sides(orientation, letters):
    assert edge_letters(np.array(orientation)) == letters


def test_a_direction_without_length_has_no_letters():
    assert direction_letters(np.zeros(3)) == ""


def test_geometry_is_read_as_it_stands_and_nan_where_it_is_missing_or_malformed(tmp_path):
    dataset = new_ct(head(0))
    geometry = geometry_of(dataset, tmp_path)
    assert geometry.position == (-120, -110, 5)
    assert geometry.orientation == (1, 0, 0, 0, 1, 0)
    assert (geometry.row_spacing_mm, geometry.column_spacing_mm) == (0.5, 0.25)
    del dataset.ImagePositionPatient
    dataset.ImageOrientationPatient = [1, 0, 0]
    dataset.PixelSpacing = [0.5, float("nan")]
    geometry = geometry_of(dataset, tmp_path)
    assert np.isnan([*geometry.position, *geometry.orientation, geometry.row_spacing_mm]).all()
    assert len(geometry.position) == 3
    assert len(geometry.orientation) == 6


def test_with_a_tilted_gantry_places_lie_along_the_normal_and_not_along_z():
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    orientations = np.tile([1, 0, 0, 0, cos, -sin], (4, 1))
    positions = np.array([[0, 0, 5.0 * step] for step in (2, 0, 3, 1)])
    place = slice_positions(positions, orientations)
    np.testing.assert_allclose(place, 5 * cos * np.array([2, 0, 3, 1]), atol=1e-12)
    assert slice_order(place, np.array(list("abcd"))).tolist() == [1, 3, 0, 2]


def test_directions_that_are_not_of_length_1_do_not_change_distances():
    orientations = np.tile([2.0, 0, 0, 0, 0.9, 0], (2, 1))
    positions = np.array([[0, 0, -1.5], [9, 9, 3.5]])
    np.testing.assert_allclose(slice_positions(positions, orientations), [-1.5, 3.5], atol=1e-12)


def test_equal_places_are_ordered_by_id_and_unknown_ones_come_last():
    place = np.array([5.0, np.nan, 0.0, 5.0 + 1e-9, np.nan])
    assert slice_order(place, np.array(["d", "b", "e", "c", "a"])).tolist() == [2, 3, 0, 4, 1]


@settings(deadline=None, max_examples=60)
@given(
    z=st.lists(st.sampled_from([0.0, 2.5, 5.0, 7.5, np.nan]), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_a_series_has_one_order_whatever_the_files_order(z, order):
    positions = np.array([[-120.0, -110.0, value] for value in z])
    orientations = np.tile([1.0, 0, 0, 0, 1, 0], (len(z), 1))
    ids = np.array([f"ID_{number}" for number in range(len(z))])
    expected = sorted(range(len(z)), key=lambda one: (np.isnan(z[one]), 0 if np.isnan(z[one]) else z[one], ids[one]))
    shuffled = list(range(len(z)))
    order.shuffle(shuffled)
    place = slice_positions(positions[shuffled], orientations[shuffled])
    found = ids[shuffled][slice_order(place, ids[shuffled])]
    assert found.tolist() == ids[expected].tolist()


def test_a_stray_orientation_does_not_turn_the_series():
    orientations = np.array([[0, 1, 0, 0, 0, -1]] + [[1, 0, 0, 0, 1, 0]] * 3, dtype=float)
    positions = np.array([[9.0, 9.0, 9.0], [0, 0, 1], [0, 0, 3], [0, 0, 2]])
    assert slice_positions(positions, orientations).tolist() == [9, 1, 3, 2]


def test_a_slice_or_series_without_geometry_has_no_place():
    orientations = np.tile([1.0, 0, 0, 0, 1, 0], (2, 1))
    positions = np.array([[0, 0, 1.0], [np.nan] * 3])
    assert np.isnan(slice_positions(positions, orientations)).tolist() == [False, True]
    assert np.isnan(slice_positions(positions, np.zeros((2, 6)))).all()
    assert np.isnan(slice_positions(positions, np.full((2, 6), np.nan))).all()
