"""Transfer syntaxes and multi-frame files: copies in every syntax give the array of the uncompressed original."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    CTImageStorage,
    HTJ2KLossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from common.dicom.codestream import read_jpeg
from common.dicom.decoding import SYNTAXES
from common.dicom.errors import REASONS, DicomError
from common.dicom.hounsfield import hounsfield
from common.dicom.reading import quiet_pydicom, read_dicom
from tests.dicom_encoders import COMPRESSED, LOSSLESS, content_of, ct_in, jpeg_baseline, reread, with_codestream
from tests.dicom_files import head, new_ct

# 8 x 8 pixels of 16 bits, 3, 63, 123, ..., as OpenJPH 0.26.3 encoded them; nothing we decode with can encode HTJ2K.
HTJ2K_RAMP = base64.b64decode(
    "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQ"
    "iIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFoAAf+TwAAmWfYFB3QAAADAABNAABMAIv4CB3QAGvEDh3QAwAATQAATgAwMAYJ0AG7o"
    "hgDDVADAACogABVgtm3bqnCCdQC++/bt+8BCAey2AP/Z"
)


def results(content: bytes) -> list[tuple[np.ndarray, set[str]] | str]:
    """For each frame the HU and what is marked, or the reason why there is none."""
    found = []
    with quiet_pydicom():
        file = read_dicom(content)
        for header, stored in zip(file.header.frames, file.frames(), strict=True):
            error = next((part for part in (header, stored) if isinstance(part, DicomError)), None)
            if error is not None:
                assert error.reason in REASONS
                found.append(error.reason)
            else:
                image, mended = hounsfield(stored.container, file.header.form, header)
                found.append((image, {*mended, *stored.marks, *header.marks}))
    return found


def only(content: bytes) -> tuple[np.ndarray, set[str]]:
    (result,) = results(content)
    return result


def refusal(content: bytes) -> str:
    """The reason why a file gives no image, from its header or its pixels."""
    try:
        (result,) = results(content)
    except DicomError as error:
        result = error.reason
    assert result in REASONS
    return result


PICTURES = {
    "unsigned 12-bit": ((head(3, 64, 48).astype(np.int32) + 1024).astype(np.uint16), {"bits": 12}),
    "signed 16-bit": (np.where(head(4, 48, 64) < -900, np.int16(-2000), head(4, 48, 64)), {"intercept": 0}),
    "signed 12-bit": (head(5, 64, 64), {"bits": 12, "intercept": 0}),
    "unsigned 16-bit": (np.arange(64 * 64).reshape(64, 64).astype(np.uint16) * 16, {"intercept": -8192}),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_a_lossless_copy_gives_the_array_of_the_uncompressed_original(syntax: str, picture: str) -> None:
    stored, options = PICTURES[picture]
    content = ct_in(syntax, stored, **options)
    assert reread(content).file_meta.TransferSyntaxUID == syntax
    original, marks = only(content_of(new_ct(stored, **options)))
    image, copied_marks = only(content)
    np.testing.assert_array_equal(image, original)
    assert copied_marks == marks
    expected = np.clip(stored.astype(int) + options.get("intercept", -1024), -32768, 32767)
    np.testing.assert_array_equal(image, np.where(stored == -2000, -1024, expected))


def test_htj2k_gives_the_picture_that_another_library_encoded() -> None:
    ramp = np.arange(64).reshape(8, 8) * 60 + 3
    image, marks = only(with_codestream(new_ct(ramp.astype(np.uint16)), HTJ2KLossless, HTJ2K_RAMP))
    np.testing.assert_array_equal(image, ramp - 1024)
    assert marks == set()


def test_lossy_jpeg_gives_pillows_picture_and_is_marked() -> None:
    from PIL import Image

    picture = (np.add.outer(np.arange(48), np.arange(64)) * 2).astype(np.uint8)
    content = jpeg_baseline(picture, quality=80)
    image, marks = only(content)
    start = content.index(b"\xff\xd8\xff")
    expected = np.asarray(Image.open(io.BytesIO(content[start:]))).astype(int)
    assert np.abs(image + 1024 - expected).max() <= 1  # decoders may round differently
    assert np.abs(image + 1024 - picture.astype(int)).max() <= 8
    assert marks == {"lossy"}


@pytest.mark.parametrize(("syntax", "options"), [(JPEGLSNearLossless, {"jls_error": 2}), (JPEG2000, {"j2k_cr": [8]})])
def test_other_lossy_copies_are_near_the_original_and_marked(syntax: str, options: dict) -> None:
    stored = (head(3, 64, 64).astype(np.int32) + 1024).astype(np.uint16)
    dataset = new_ct(stored, bits=12)
    dataset.compress(syntax, generate_instance_uid=False, **options)
    image, marks = only(content_of(dataset))
    assert marks == {"lossy"}
    difference = np.abs(image - (stored.astype(int) - 1024))
    assert 0 < difference.max() <= (2 if syntax == JPEGLSNearLossless else 400)
    expected = get_decoder(syntax).as_array(dataset, raw=True)[0].astype(int) - 1024
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless])
def test_a_lossless_stream_of_values_that_were_cut_before_is_marked(syntax: str) -> None:
    """A point transform drops the lowest bits (ITU-T T.81 H.1.2.1): the last byte of the scan's header."""
    stored = (head(3, 64, 64).astype(np.int32) + 1024).astype(np.uint16)
    content = bytearray(ct_in(syntax, stored, bits=12))
    scan = content.index(b"\xff\xda\x00\x08\x01")
    assert read_jpeg(bytes(content[content.index(b"\xff\xd8\xff") :])).lossy is False
    content[scan + 9] = 1
    assert read_jpeg(bytes(content[content.index(b"\xff\xd8\xff") :])).lossy is True
    if syntax == JPEGLSLossless:
        assert refusal(bytes(content)) == "decoding"
    else:
        image, marks = only(bytes(content))
        assert marks == {"lossy"}
        assert not (image % 2).any()


def test_an_uncompressed_picture_that_once_was_lossy_is_marked() -> None:
    dataset = new_ct(head(0))
    dataset.LossyImageCompression = "01"
    assert only(content_of(dataset))[1] == {"lossy"}


def test_twelve_bit_lossy_jpeg_is_refused_by_name() -> None:
    dataset = dcmread(get_testdata_file("JPGExtended.dcm", download=False))
    assert dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit
    dataset.SOPClassUID, dataset.ImageType = CTImageStorage, None
    dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "CT", "1", "-1024"
    with pytest.raises(DicomError, match="12-bit lossy JPEG is not read") as caught:
        raise next(iter(read_dicom(content_of(dataset)).frames()))
    assert caught.value.reason == "transfer_syntax"


def test_an_unknown_syntax_and_video_are_refused_by_name() -> None:
    with pytest.raises(DicomError, match="MPEG2"):
        read_dicom(with_codestream(new_ct(head(0)), MPEG2MPML, b"a video"))
    assert refusal(with_codestream(new_ct(head(0)), "1.2.3.4", b"who knows")) == "transfer_syntax"


def test_every_plug_in_that_is_named_is_installed_for_its_syntax() -> None:
    for uid, syntax in SYNTAXES.items():
        if syntax.plugin:
            assert syntax.plugin in get_decoder(uid).available_plugins


def test_the_decoder_is_the_named_one_whatever_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = type(get_decoder(RLELossless)).as_array

    def spy(self: object, *args: object, **options: object) -> object:
        asked.append(options["decoding_plugin"])
        return plain(self, *args, **options)

    monkeypatch.setattr(type(get_decoder(RLELossless)), "as_array", spy)
    for syntax in COMPRESSED:
        only(ct_in(syntax, PICTURES["signed 16-bit"][0], intercept=0))
    assert asked == ["pydicom", "gdcm", "gdcm", "gdcm", "pylibjpeg"]


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_pydicoms_compressed_files_give_what_its_uncompressed_copy_gives(name: str) -> None:
    def as_ct(name: str) -> bytes:
        dataset = dcmread(get_testdata_file(name, download=False))
        dataset.SOPClassUID = CTImageStorage
        dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "CT", "1", "0"
        return content_of(dataset)

    np.testing.assert_array_equal(only(as_ct(name))[0], only(as_ct("MR_small.dcm"))[0])


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.keyword)
def test_a_cut_or_damaged_codestream_is_a_named_failure(syntax: str) -> None:
    content = ct_in(syntax, PICTURES["signed 16-bit"][0], intercept=0)
    assert refusal(content[:-700]) in ("truncated", "decoding")
    start = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 20) + 8
    assert refusal(content[:start] + b"\x55" * 64 + content[start + 64 :]) == "decoding"


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.keyword)
def test_a_codestream_of_another_size_than_the_headers_is_refused_before_it_is_decoded(
    syntax: str, keyword: str
) -> None:
    dataset = reread(ct_in(syntax, PICTURES["signed 16-bit"][0], intercept=0))
    dataset[keyword].value = 4000
    assert refusal(content_of(dataset)) in ("pixel_format", "truncated")


# --- multi-frame ------------------------------------------------------------------------------------------------------


def item(**elements: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def enhanced(frames: int = 3, rows: int = 8, columns: int = 6) -> Dataset:
    """An enhanced CT: the rescale shared but for the second frame's, positions 2.5 mm apart along z."""
    stored = np.stack([head(number, rows, columns) for number in range(frames)])
    dataset = new_ct(stored[0], intercept=0)
    for keyword in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, keyword)
    del dataset.PixelSpacing
    dataset.NumberOfFrames = frames
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope="1", RescaleIntercept="-24", RescaleType="HU")],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SliceThickness="5")],
        )
    ]
    per_frame = [item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 2.5 * i])]) for i in range(frames)]
    per_frame[1].PixelValueTransformationSequence = [item(RescaleSlope="2", RescaleIntercept="7")]
    dataset.PerFrameFunctionalGroupsSequence = per_frame
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


@pytest.mark.parametrize("undefined_length", [False, True])
def test_each_frame_has_its_own_rescale_and_place_and_else_the_shared_one(undefined_length: bool) -> None:
    dataset = enhanced()
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        dataset[keyword].is_undefined_length = undefined_length
    content = content_of(dataset)
    images = results(content)
    for number, (slope, intercept) in enumerate([(1, -24), (2, 7), (1, -24)]):
        np.testing.assert_array_equal(images[number][0], slope * head(number, 8, 6).astype(int) + intercept)
    geometry = [header.geometry for header in read_dicom(content).header.frames]
    assert [place.position for place in geometry] == [(1, 2, 0), (1, 2, 2.5), (1, 2, 5)]
    assert geometry[2].orientation == (1, 0, 0, 0, 1, 0)
    assert (geometry[2].row_spacing_mm, geometry[2].column_spacing_mm, geometry[2].thickness_mm) == (0.5, 0.25, 5)


def test_compressed_frames_come_in_their_order() -> None:
    dataset = enhanced(3, 64, 64)
    dataset.compress(RLELossless, generate_instance_uid=False)
    for number, (image, _) in enumerate(results(content_of(dataset))):
        slope, intercept = (2, 7) if number == 1 else (1, -24)
        np.testing.assert_array_equal(image, slope * head(number, 64, 64).astype(int) + intercept)


def test_a_frame_without_a_rescale_fails_alone_and_never_takes_another_frames() -> None:
    dataset = enhanced()
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"  # not where an enhanced CT has them
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    first, second, third = results(content_of(dataset))
    assert (first, third) == ("rescale", "rescale")
    np.testing.assert_array_equal(second[0], 2 * head(1, 8, 6).astype(int) + 7)


def test_frames_without_groups_missing_groups_and_localizers_are_named() -> None:
    plain = new_ct(head(0))
    plain.NumberOfFrames = 2
    plain.PixelData = plain.PixelData * 2
    assert refusal(content_of(plain)) == "multi_frame"
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    dataset.PerFrameFunctionalGroupsSequence[0].CTImageFrameTypeSequence = [
        item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])
    ]
    assert results(content_of(dataset))[0] == "localizer"
    assert np.isnan(read_dicom(content_of(dataset)).header.frames[2].geometry.position).all()


def test_the_frames_of_a_cut_file_that_are_whole_are_kept() -> None:
    content = content_of(enhanced())
    whole = results(content)
    cut = results(content[:-50])
    np.testing.assert_array_equal(cut[1][0], whole[1][0])
    assert cut[2] == "truncated"


def test_values_of_an_unknown_unit_are_marked() -> None:
    dataset = new_ct(head(0), intercept=0)
    dataset.RescaleType = "houndsfield"
    assert only(content_of(dataset))[1] == {"rescale_type"}
    dataset.RescaleType = "HU"
    assert only(content_of(dataset))[1] == set()
