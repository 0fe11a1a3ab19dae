"""What can be wrong with a DICOM file, by name."""

from __future__ import annotations

from common.errors import WorkError

REASONS = {
    "not_dicom": "the mark DICM is missing",
    "unreadable": "cannot be opened, or is damaged beyond what a DICOM reader can follow",
    "too_large": "the file, its header or its image is beyond the limits",
    "transfer_syntax": "the pixels are stored in a way that is not read: unknown, video, 12-bit lossy JPEG",
    "not_ct": "Modality is missing or not CT",
    "localizer": "a localizer (scout) image",
    "no_image": "an object without an image, as a report or a dose sheet",
    "colour": "not one grey value for each pixel",
    "multi_frame": "several frames without the functional groups that say what each of them is",
    "pixel_format": "the fields that say how pixels are stored are missing or contradict each other",
    "rescale": "slope or intercept is missing, not finite, or the slope is 0",
    "truncated": "fewer pixels than declared: a cut file",
    "decoding": "the compressed pixels are damaged",
    "crashed": "the process that read the file died",
    "timeout": "reading the file took longer than the limit",
    "memory": "reading the file took more memory than the limit",
}
# Perhaps the fault of the disk or the machine: a later run tries these files again.
RETRIED_REASONS = ("unreadable", "crashed", "timeout", "memory")


class DicomError(WorkError):
    """A file that gives no image; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, str]]:
        return DicomError, (self.reason, str(self))
