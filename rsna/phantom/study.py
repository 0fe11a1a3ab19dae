"""Render a planned study, from anatomy to DICOM files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings

from rsna.phantom import bleeding, scanner
from rsna.phantom.anatomy import Field, Head, Slice, sample_slice
from rsna.phantom.plan import DIFFICULTIES, StudyPlan, hex_id
from rsna_dataset import TRUTH_MASKS

GRID = 256  # anatomy is computed on this many pixels and brought to the picture's size by the scanner
USUAL_SIZE = 512
NOISE_POWER = 0.7  # noise falls with the pixel's size as its correlation lets it
LABELS = (*bleeding.KINDS, "any")


@dataclass(frozen=True)
class PhantomSettings:
    """Settings that all studies of a phantom share."""

    seed: int
    image_size: int
    difficulty: str
    masks: bool = False  # write which pixels are blood


@dataclass
class RenderedSlice:
    """A scanned slice: integer HU (rows, columns), padding outside the circle, position, and what it shows.

    ``covers``: the share of each pixel (0..1) that is blood of a kind, on the grid of the anatomy.
    """

    hu: NDArray[np.int16]
    padding: NDArray[np.bool_] | None
    position_mm: tuple[float, float, float]
    along_mm: float  # position along the slices' normal
    area_mm2: dict[str, float]
    volume_mm3: dict[str, float]
    mimics: list[str]
    quirks: list[str]
    covers: dict[str, Field]

    def mask(self) -> NDArray[np.uint8]:
        """Return which pixels are at least half blood, uint8 (rows, columns): bit k for kind k, 0 in the padding."""
        rows, columns = self.hu.shape
        mask = np.zeros((rows, columns), np.uint8)
        for bit, kind in enumerate(bleeding.KINDS):
            if kind in self.covers:
                cover = self.covers[kind]
                rule = cv2.INTER_LINEAR if rows >= cover.shape[0] else cv2.INTER_AREA
                mask |= (cv2.resize(cover, (columns, rows), interpolation=rule) >= 0.5).astype(np.uint8) << bit
        return mask if self.padding is None else np.where(self.padding, np.uint8(0), mask)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix that rotates about x, then y, then z (radians)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@dataclass
class StudyScan:
    """How a study was scanned: pose, table, noise, lesions. Drawn once per study."""

    head: Head
    shape: tuple[int, int]
    spacing_mm: float
    tilt: float
    origin: NDArray[np.float64]  # patient coordinates of the first slice's first pixel
    step: NDArray[np.float64]  # from slice to slice
    heights: NDArray[np.float64]  # of each slice, in steps
    thickness_mm: float
    to_head: NDArray[np.float64]
    head_origin: NDArray[np.float64]
    noise_hu: float
    lesions: list[bleeding.Bleeding]
    moved: set[int]
    scalp_bump: tuple[float, float, float, float] | None
    streak_hu: float


def draw_scan(plan: StudyPlan, settings: PhantomSettings) -> StudyScan:
    """Draw a study's scan and lesions. The same plan and settings give the same scan."""
    rng = np.random.default_rng([settings.seed, 2, plan.pixel_seed])
    head = Head.draw(np.random.default_rng([settings.seed, 1, plan.patient_seed]))
    rows, columns = (round(side * settings.image_size / USUAL_SIZE) for side in plan.size or (USUAL_SIZE, USUAL_SIZE))
    field_mm = float(np.clip(rng.normal(235, 12), 214, 265))
    # The head fills the shorter side of any picture.
    spacing = round(field_mm / min(rows, columns), 6)
    tilt = float(np.deg2rad(rng.uniform(8, 22) * rng.choice((-1, 1)))) if rng.random() < 0.4 else 0.0
    angles = np.deg2rad(rng.normal(0, (3.5, 3.0, 5.5)).clip(-14, 14))
    angles[0] += 0.75 * tilt  # the gantry follows the head
    rotation = _rotation(angles)
    low, high = rng.uniform(-62, -50), head.height + rng.uniform(-5, 9)
    distinct = plan.slices - plan.repeated_position
    gap = (high - low) / max(1, distinct - 1)
    heights = np.arange(distinct, dtype=np.float64)
    if plan.repeated_position:
        heights = np.insert(heights, distinct // 2, heights[distinct // 2])
    cos, sin = np.cos(tilt), np.sin(tilt)
    # The table moves along z, also where the gantry is tilted: slices are sheared, not stacked along their normal.
    table_z = float(rng.uniform(-300, 300))
    centre = np.array([rng.normal(0, 4), rng.normal(0, 5) - 4, table_z])
    corner = np.array([-(columns - 1) / 2, -(rows - 1) / 2 * cos, -(rows - 1) / 2 * sin]) * spacing
    origin = centre + corner + (0, 0, low)
    head_origin = np.array([0.0, 0.0, table_z])
    setting = DIFFICULTIES[settings.difficulty]
    lesions: list[bleeding.Bleeding] = []
    own_rng = np.random.default_rng([settings.seed, 6, plan.pixel_seed])  # bleedings leave all other draws alone
    for kind in plan.kinds:
        for _ in range(2 if own_rng.random() < 0.15 else 1):
            lowest, highest = setting.severity
            severity = lowest + (highest - lowest) * float(own_rng.random()) ** setting.severity_power
            lesions += bleeding.draw_bleeding(kind, head, severity, float(own_rng.uniform(*setting.hu)), own_rng)
    if rng.random() < 0.3:
        lesions += [bleeding.draw_mimic(head, rng) for _ in range(int(rng.integers(1, 4)))]
    moved: set[int] = set()
    if rng.random() < 0.08:
        start = int(rng.integers(0, plan.slices))
        moved = set(range(start, min(plan.slices, start + int(rng.integers(2, 5)))))
    bump = None
    if rng.random() < 0.12:
        x, y, z = bleeding.on_vault(head, rng.uniform(-3, 3), rng.uniform(0, 0.7))
        bump = (x * 1.1, y * 1.1, z * 1.1, float(rng.uniform(5, 12)))
    return StudyScan(
        head, (rows, columns), spacing, tilt, origin, np.array([0, 0, gap]), heights, gap * cos,
        rotation.T, head_origin, float(rng.uniform(2.0, 4.0)), lesions, moved, bump, float(rng.uniform(2, 6)),
    )  # fmt: skip


def render_study(plan: StudyPlan, settings: PhantomSettings, wanted: set[int] | None = None) -> Iterator[RenderedSlice]:
    """Yield a study's slices from the lowest to the highest, or only those of the indices ``wanted``."""
    scan = draw_scan(plan, settings)
    rows, columns = scan.shape
    scale = GRID / max(rows, columns)
    grid = (2 * round(rows * scale / 2), 2 * round(columns * scale / 2))
    pixel = scan.spacing_mm * rows / grid[0]
    cos, sin = np.cos(scan.tilt), np.sin(scan.tilt)
    across, down, normal = np.array([1.0, 0, 0]), np.array([0, cos, sin]), np.array([0, -sin, cos])
    half_pixel = (pixel - scan.spacing_mm) / 2  # grid pixels are larger: their first centre lies further in
    column_mm = (np.arange(grid[1], dtype=np.float32) * pixel + half_pixel)[None, :]
    row_mm = (np.arange(grid[0], dtype=np.float32) * pixel + half_pixel)[:, None]
    holder = scanner.head_holder(
        column_mm - column_mm.mean(), row_mm - row_mm.mean(), 4.0,
        scan.head.half_length + scan.head.skull_mm + scan.head.scalp_mm + 7,
    )  # fmt: skip
    head_normal = tuple(float(v) for v in scan.to_head @ normal)
    shift = bleeding.midline_shift(scan.lesions)
    noise_hu = scan.noise_hu * (min(rows, columns) / USUAL_SIZE) ** NOISE_POWER
    noise_hu *= float(np.sqrt(5 / max(scan.thickness_mm, 2.0)))
    for index, height in enumerate(scan.heights):
        if wanted is not None and index not in wanted:
            continue
        rng = np.random.default_rng([settings.seed, 3, plan.pixel_seed, index])
        corner = scan.origin + scan.step * height
        start = scan.to_head @ (corner - scan.head_origin)
        u, v = scan.to_head @ across, scan.to_head @ down
        coordinates = tuple(
            np.float32(start[i]) + np.float32(u[i]) * column_mm + np.float32(v[i]) * row_mm for i in range(3)
        )
        slice_ = sample_slice(scan.head, coordinates, head_normal, scan.thickness_mm, pixel, shift, scan.scalp_bump)
        found = bleeding.paint(slice_, scan.lesions)
        area = {kind: float(cover.sum()) * pixel * pixel for kind, cover in found.items()}
        hu, mimics = _scan_slice(slice_, scan, index, rng, holder)
        if area.pop(bleeding.MIMIC, 0.0) > bleeding.MIN_AREA_MM2:
            mimics.append("density")
        picture = scanner.digitize(hu, scan.shape, noise_hu, rng, plan.form.hu_range)
        padding = scanner.outside_circle(rows, columns) if plan.padding else None
        quirks = []
        if plan.repeated_position and (scan.heights == height).sum() > 1:
            quirks.append("repeated_position")
        if plan.cut and index == plan.slices // 2:
            quirks.append("cut")
        yield RenderedSlice(
            picture, padding, tuple(float(c) for c in corner), float(corner @ normal), area,
            {kind: value * scan.thickness_mm for kind, value in area.items()}, mimics, quirks, found,
        )  # fmt: skip


def _scan_slice(
    slice_: Slice,
    scan: StudyScan,
    index: int,
    rng: np.random.Generator,
    holder: tuple[Field, Field],
) -> tuple[Field, list[str]]:
    """Add head holder, blur, streaks and motion. Return HU and the names of the mimics that the slice shows."""
    mimics = []
    hu = slice_.hu
    scanner.paint_holder(hu, holder)
    if ((hu > 90) & (slice_.brain > 4)).sum() * slice_.pixel_mm**2 > 6:
        mimics.append("calcification")
    hu = cv2.GaussianBlur(hu, (0, 0), 0.55 / slice_.pixel_mm)
    # Between the petrous bones the beam hardens: a dark bar, and streaks out of the bones.
    base = float(np.clip(1 - abs(slice_.z.mean() + 36) / 15, 0, 1))
    if base > 0.1:
        bar = np.exp(-(((slice_.y - 6) / 9) ** 2) - (slice_.x / 34) ** 2)
        hu -= np.float32(9 * base) * bar * (hu < 300)
        sources = []
        for side in (-1, 1):
            distance = (slice_.x - side * 38) ** 2 + (slice_.y - 9) ** 2
            sources.append(tuple(float(v) for v in np.unravel_index(int(distance.argmin()), distance.shape)))
        scanner.add_streaks(hu, rng, sources, scan.streak_hu * base)
        if scan.streak_hu * base > 3:
            mimics.append("beam_hardening")
    if index in scan.moved:
        hu = scanner.add_motion(hu, rng)
        mimics.append("motion")
    return hu, mimics


def write_study(plan: StudyPlan, settings: PhantomSettings, folder: Path) -> list[dict[str, Any]]:
    """Write a study's DICOM files into ``folder``/stage_2_<split> and return a row of the truth file for each."""
    with side_by_side():
        return _write_study(plan, settings, folder)


@contextmanager
def side_by_side() -> Iterator[None]:
    """Draw and write on one thread, since studies run side by side, and without pydicom's remarks on UIDs."""
    threads, validation = cv2.getNumThreads(), pydicom_settings.writing_validation_mode
    cv2.setNumThreads(1)
    # The competition's identifiers (ID_…) are no DICOM UIDs, which pydicom would say once for each file.
    pydicom_settings.writing_validation_mode = IGNORE
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        pydicom_settings.writing_validation_mode = validation


def _write_study(plan: StudyPlan, settings: PhantomSettings, folder: Path) -> list[dict[str, Any]]:
    scan = draw_scan(plan, settings)
    rows, columns = scan.shape
    patient_id = hex_id(settings.seed, "patient", plan.patient, 8)
    study_id = hex_id(settings.seed, "study", plan.index, 10)
    series_id = hex_id(settings.seed, "series", plan.index, 10)
    header = scanner.new_header(
        patient_id, study_id, series_id, plan.form, scan.shape, scan.spacing_mm, scan.tilt, plan.two_windows
    )
    study_quirks = [
        name
        for name, there in (
            ("wrap", plan.form.wrapped),
            ("padding", plan.padding),
            ("two_windows", plan.two_windows),
            ("other_size", plan.size is not None),
            ("tilt", scan.tilt != 0),
            ("identical_pixels", plan.identical_to is not None),
        )
        if there
    ]
    truth = []
    for index, picture in enumerate(render_study(plan, settings)):
        number = plan.first_slice + index
        image_id = hex_id(settings.seed, "image", number, 9)
        raw = plan.form.encode(picture.hu)
        hu = picture.hu
        if picture.padding is not None:
            raw[picture.padding] = scanner.PADDING_RAW
            hu = np.where(picture.padding, np.int16(scanner.AIR_HU), hu)
        cut = "cut" in picture.quirks
        path = folder / f"stage_2_{plan.split}" / f"{image_id}.dcm"
        scanner.write_slice(path, header, image_id, number, picture.position_mm, raw, cut)
        if settings.masks and not cut:
            np.save(folder / TRUTH_MASKS / f"{image_id}.npy", picture.mask())
        positive = {kind: int(picture.area_mm2.get(kind, 0.0) >= bleeding.MIN_AREA_MM2) for kind in bleeding.KINDS}
        truth.append(
            {
                "id": image_id,
                "split": plan.split,
                "patient_id": patient_id,
                "study_id": study_id,
                "series_id": series_id,
                "slice_index": index,
                "position_mm": round(picture.along_mm, 4),
                "difficulty": settings.difficulty,
                **positive,
                "any": int(any(positive.values())),
                **{f"{k}_mm3": round(picture.volume_mm3.get(k, 0.0), 1) for k in bleeding.KINDS},
                "mimics": ";".join(picture.mimics),
                "quirks": ";".join([*study_quirks, *picture.quirks]),
                "pixel_form": plan.form.name,
                "rows": rows,
                "columns": columns,
                "spacing_mm": scan.spacing_mm,
                "thickness_mm": round(scan.thickness_mm, 4),
                "tilt_degrees": round(float(np.rad2deg(scan.tilt)), 4),
                "age": round(scan.head.age, 1),
                # crc32 of the intended HU as little-endian int16, row by row, padding as -1024
                "hu_crc32": f"{zlib.crc32(np.ascontiguousarray(hu, dtype='<i2')):08x}",
            }
        )
    return truth
