"""What can be wrong with a DICOM file, by name."""

from __future__ import annotations

from common.errors import WorkError

REASONS = (
    "not_dicom",
    "unreadable",
    "too_large",
    "transfer_syntax",
    "not_ct",
    "localizer",
    "no_image",
    "colour",
    "multi_frame",
    "pixel_format",
    "rescale",
    "truncated",
)


class DicomError(WorkError):
    """A file that gives no image; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, str]]:
        return DicomError, (self.reason, str(self))
