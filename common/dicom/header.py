"""Read the CT header from a pydicom data set, of a single slice or of each frame of an enhanced CT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.dicom.elements import identifier_of, integer_of, items_of, numbers_of, text_of, texts_of, value_of
from common.dicom.errors import DicomError
from common.dicom.evidence import Evidence, check_evidence, unit_marks
from common.dicom.geometry import SliceGeometry
from common.dicom.scan import ScanFacts, ScanFields, describe_scan
from common.dicom.slices import CtHeader, Identity, PixelForm, SliceHeader, as_stored

if TYPE_CHECKING:
    from pydicom import Dataset

SCAN_KEYWORDS = {  # by field of ScanFields
    "manufacturer": "Manufacturer", "kernel": "ConvolutionKernel", "image_type": "ImageType",
    "agent": "ContrastBolusAgent", "volume": "ContrastBolusVolume", "dose": "ContrastBolusTotalDose",
    "flow": "ContrastFlowRate", "series_text": "SeriesDescription", "study_text": "StudyDescription",
    "number": "SeriesNumber", "age": "PatientAge", "sex": "PatientSex",
}  # fmt: skip
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def read_header(dataset: Dataset) -> CtHeader:
    """Return the header. Raise DicomError for anything but CT slices with one grey value for each pixel.

    A frame of an enhanced CT (PS3.3 C.7.6.16) takes its rescale and position from its own functional groups, or from
    the shared groups if its own lack them. It never takes them from another frame.
    """
    doubt = check_is_ct_image(dataset)
    form = pixel_form(dataset)
    identity = Identity(
        *(
            identifier_of(dataset, keyword)
            for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
    )
    marks = ("lossy",) if text_of(dataset, "LossyImageCompression") == "01" else ()
    if any(keyword in dataset for keyword in FRAME_GROUPS):
        return CtHeader(identity, form, _enhanced_frames(dataset, form.frames, marks, doubt))
    if form.frames > 1:
        raise DicomError("multi_frame", "several frames without functional groups")
    return CtHeader(
        identity, form, (_slice_header(dataset, dataset, dataset, dataset, marks, doubt, scan_of(dataset)),)
    )


def scan_of(dataset: Dataset, frame_type: str = "", kernel: str = "") -> ScanFacts:
    """Return how a series was made. A frame of an enhanced CT has its own ``frame_type`` and ``kernel``."""
    texts = {name: texts_of(dataset, keyword) for name, keyword in SCAN_KEYWORDS.items()}
    return describe_scan(
        ScanFields(**texts | {"image_type": frame_type or texts["image_type"], "kernel": kernel or texts["kernel"]})
    )


def check_is_ct_image(dataset: Dataset) -> str:
    """Raise DicomError for an object without an image, another modality, no CT slice, and colour.

    Return the doubt that :func:`common.dicom.evidence.check_evidence` leaves. ``dataset.file_meta`` may be missing.
    """
    if "Rows" not in dataset:
        raise DicomError("no_image", "holds no image (no Rows): a report, an index (DICOMDIR), a plan, ...")
    if text_of(dataset, "Modality") != "CT":
        raise DicomError("not_ct", "Modality is missing or not CT")
    meta = getattr(dataset, "file_meta", None)
    doubt = check_evidence(
        Evidence(
            text_of(dataset, "SOPClassUID"),
            "" if meta is None else text_of(meta, "MediaStorageSOPClassUID"),
            texts_of(dataset, "ImageType"),
            text_of(dataset, "RescaleType"),
            text_of(dataset, "BurnedInAnnotation"),
        )
    )
    if integer_of(dataset, "SamplesPerPixel") != 1:
        raise DicomError("colour", "SamplesPerPixel is not 1")
    if not text_of(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
        raise DicomError("colour", "PhotometricInterpretation is not MONOCHROME1 or MONOCHROME2")
    return doubt


def pixel_form(dataset: Dataset) -> PixelForm:
    """Return how pixels are stored. Raise DicomError if fields are missing, out of range or contradict each other."""
    frames = integer_of(dataset, "NumberOfFrames") if value_of(dataset, "NumberOfFrames") is not None else 1
    frames = frames or 1  # some writers put 0 into a single image
    bits_allocated, bits_stored = integer_of(dataset, "BitsAllocated"), integer_of(dataset, "BitsStored")
    if not 1 <= bits_stored <= bits_allocated or integer_of(dataset, "HighBit") != bits_stored - 1:
        raise DicomError("pixel_format", "BitsAllocated, BitsStored and HighBit don't fit each other")
    representation = integer_of(dataset, "PixelRepresentation")
    if representation not in (0, 1):
        raise DicomError("pixel_format", "PixelRepresentation is not 0 or 1")
    form = PixelForm(
        integer_of(dataset, "Rows"),
        integer_of(dataset, "Columns"),
        frames,
        bits_allocated,
        bits_stored,
        representation == 1,
        _padding(dataset, bits_allocated, representation == 1),
    )
    form.check()
    return form


def rescale(slope: float, intercept: float) -> tuple[float, float]:
    """Return both values. Raise DicomError if one is not finite or the slope is 0."""
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if not math.isfinite(value):
            raise DicomError("rescale", f"{name} is missing or not a finite number")
    if slope == 0:
        raise DicomError("rescale", "RescaleSlope is 0")
    return slope, intercept


def _padding(dataset: Dataset, bits_allocated: int, signed: bool) -> tuple[int, int] | None:
    if value_of(dataset, "PixelPaddingValue") is None:
        return None
    ends = [integer_of(dataset, "PixelPaddingValue")]
    if value_of(dataset, "PixelPaddingRangeLimit") is not None:
        ends.append(integer_of(dataset, "PixelPaddingRangeLimit"))
    stored = [as_stored(end, bits_allocated, signed) for end in ends]
    return min(stored), max(stored)


def _slice_header(
    values: Dataset,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    marks: tuple[str, ...],
    doubt: str,
    scan: ScanFacts,
) -> SliceHeader:
    """Read a frame's header. The first four arguments are the data sets that hold its fields."""
    slope, intercept = (numbers_of(values, keyword, 1)[0] for keyword in ("RescaleSlope", "RescaleIntercept"))
    marks = (*marks, *unit_marks(text_of(values, "RescaleType")))
    geometry = SliceGeometry(
        numbers_of(position, "ImagePositionPatient", 3),
        numbers_of(orientation, "ImageOrientationPatient", 6),
        *numbers_of(measures, "PixelSpacing", 2),
        *numbers_of(measures, "SliceThickness", 1),
    )
    return SliceHeader(*rescale(slope, intercept), geometry, marks, doubt, scan)


def _enhanced_frames(
    dataset: Dataset, count: int, marks: tuple[str, ...], doubt: str
) -> tuple[SliceHeader | DicomError, ...]:
    """Return for each frame its header or a DicomError. ``doubt`` is that of the whole file."""
    from pydicom import Dataset as NewDataset

    nothing = NewDataset()

    def only(items: list[Dataset], keyword: str) -> Dataset:
        if len(items) > 1:
            raise DicomError("pixel_format", f"{keyword} has several items where there is one frame to describe")
        return items[0] if items else nothing

    shared = only(items_of(dataset, FRAME_GROUPS[0]), FRAME_GROUPS[0])
    per_frame = items_of(dataset, FRAME_GROUPS[1])

    def group(frame: Dataset, keyword: str) -> Dataset:
        return only(items_of(frame, keyword) or items_of(shared, keyword), keyword)

    headers: list[SliceHeader | DicomError] = []
    for index in range(count):
        frame = per_frame[index] if index < len(per_frame) else nothing
        try:
            values = group(frame, "PixelValueTransformationSequence")
            kind = texts_of(group(frame, "CTImageFrameTypeSequence"), "FrameType")
            own_doubt = check_evidence(Evidence(image_type=kind, rescale_type=text_of(values, "RescaleType")))
            header = _slice_header(
                values,
                group(frame, "PlanePositionSequence"),
                group(frame, "PlaneOrientationSequence"),
                group(frame, "PixelMeasuresSequence"),
                marks,
                doubt or own_doubt,
                scan_of(dataset, kind, texts_of(group(frame, "CTReconstructionSequence"), "ConvolutionKernel")),
            )
        except DicomError as error:
            headers.append(error)
        else:
            headers.append(header)
    return tuple(headers)
