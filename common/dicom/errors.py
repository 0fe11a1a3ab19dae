"""Names of the reasons why a DICOM file gives no image."""

from __future__ import annotations

from common.errors import WorkError

NO_SLICE = {  # the file is something else than a CT slice, which is no failure
    "not_dicom": "the mark DICM is missing",
    "not_ct": "Modality is missing or not CT",
    "no_image": "an object without an image, as a structured report",
    "colour": "not one grey value for each pixel",
    "localizer": "a localizer (scout, surview, topogram)",
    "dose_report": "a page of doses, settings or results",
    "screen_save": "a copy of a screen",
    "rendering": "a three-dimensional rendering",
    "projection": "a projection: maximum, minimum or sum along rays",
    "map": "a perfusion, material or other map, whose values are no Hounsfield units",
    "no_hounsfield": "RescaleType is no Hounsfield unit, and a second sign says the same; a NIfTI volume without air",
    "burned_in": "a picture with text in it",
    "secondary_capture": "a secondary capture",
    "other_class": "an object of another class than CT, Enhanced CT and Legacy Converted Enhanced CT",
}
FAULTS = {  # the file should be a CT slice, or nobody can tell what it is
    "unreadable": "cannot be opened, or is damaged beyond what a DICOM reader can follow",
    "too_large": "the file, its header or its image is beyond the limits",
    "transfer_syntax": "the pixels are stored in a way that is not read: unknown, video, 12-bit lossy JPEG",
    "multi_frame": "several frames without the functional groups that say what each of them is",
    "pixel_format": "the fields that say how pixels are stored are missing, given twice, or contradict each other",
    "rescale": "slope or intercept is missing, no finite number or leaves no pixel in a CT's range, or the slope is 0",
    "truncated": "fewer pixels than declared: a cut file",
    "decoding": "the compressed pixels are damaged",
    "crashed": "the process that read the file died",
    "timeout": "reading the file took longer than the limit",
    "memory": "reading the file took more memory than the limit",
}
REASONS = NO_SLICE | FAULTS
# The disk or the machine may be at fault, so a later run tries these files again.
RETRIED_REASONS = ("unreadable", "crashed", "timeout", "memory")


class DicomError(WorkError):
    """A file that gives no image; ``reason`` is one of :data:`REASONS`. The message quotes no value of the header."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, str]]:
        return DicomError, (self.reason, str(self))
