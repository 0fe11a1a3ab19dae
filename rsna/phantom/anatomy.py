"""Model a head by analytic fields: compute tissues and Hounsfield units from the coordinates of a slice's pixels.

Head coordinates are in millimetres and follow DICOM's patient axes: x to the patient's left, y to the back, z to the
top. The origin lies between the thalami. Smooth fields are computed on a grid of half the resolution and interpolated.
Only structures with sharp edges are computed on the full grid. All distances are positive inside a structure. Sizes
follow anatomy textbooks and the Talairach coordinates of the deep structures.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

AIR, FAT, MUSCLE, SKIN = -1000.0, -95.0, 52.0, 25.0
FLUID, WHITE, GREY = 6.0, 27.5, 37.5
FALX, SINUS = 52.0, 57.0


@dataclass(frozen=True)
class Waves:
    """A random smooth field with zero mean and unit variance: a sum of plane waves with one wavelength."""

    vectors: NDArray[np.float32]  # (waves, 3), radians per millimetre
    phases: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, wavelength_mm: float) -> Waves:
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = 2 * np.pi / (wavelength_mm * rng.uniform(0.8, 1.25, size=(count, 1)))
        return cls((directions * lengths).astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def at(self, x: Field, y: Field, z: Field | np.float32) -> Field:
        total = np.zeros_like(x)
        for (kx, ky, kz), phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(kx * x + ky * y + (kz * z + phase))
        total *= np.float32(np.sqrt(2 / len(self.phases)))
        return total


@dataclass(frozen=True)
class Head:
    """One patient's anatomy, the same in all studies of the patient."""

    age: float
    atrophy: float  # 0 young .. 1 strongly shrunken brain
    half_width: float  # of the brain case, mm
    half_length: float
    height: float
    skull_mm: float
    scalp_mm: float
    grey_white: float  # difference in HU
    white: float
    ventricle: float  # scale of the ventricles' radii
    sulcus_mm: float  # half width of the sulci
    surface_mm: float  # fluid between brain and skull
    sylvian_mm: float
    leukoaraiosis: float
    pneumatization: float
    choroid: tuple[float, float]  # HU of the calcified choroid plexus, right and left; 0: none
    pineal: float
    ganglia: float
    falx_calcification: float  # y of a plaque; 0: none
    warp: tuple[Waves, Waves, Waves]
    warp_mm: float
    folds: Waves
    folia: Waves
    cells: Waves
    slow: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        age = float(np.clip(rng.normal(58, 20), 18, 96))
        atrophy = float(np.clip((age - 30) / 60 + rng.normal(0, 0.14), 0, 1))
        size = rng.normal(1, 0.035)
        calcified = age > 30
        pair = rng.uniform(90, 420, 2) * rng.uniform(0.5, 1.0)
        return cls(
            age=age,
            atrophy=atrophy,
            half_width=float(67 * size * rng.normal(1, 0.025)),
            half_length=float(84 * size * rng.normal(1, 0.025)),
            height=float(77 * size),
            skull_mm=float(rng.uniform(5.0, 8.0)),
            scalp_mm=float(rng.uniform(3.5, 7.5)),
            grey_white=float(rng.uniform(7.5, 10.5)),
            white=float(rng.normal(WHITE, 0.8)),
            ventricle=float(0.72 + 0.75 * atrophy + rng.normal(0, 0.08)),
            sulcus_mm=float(0.15 + 1.35 * atrophy + rng.uniform(0, 0.25)),
            surface_mm=float(0.3 + 2.6 * atrophy**1.5),
            sylvian_mm=float(0.7 + 2.4 * atrophy),
            leukoaraiosis=float(max(0.0, rng.uniform(-4, 9) * (age > 55))),
            pneumatization=float(rng.uniform(-0.5, 0.6)),
            choroid=(float(pair[0]), float(pair[1])) if calcified and rng.random() < 0.45 else (0.0, 0.0),
            pineal=float(rng.uniform(90, 350)) if rng.random() < 0.5 else 0.0,
            ganglia=float(rng.uniform(60, 130)) if calcified and rng.random() < 0.06 else 0.0,
            falx_calcification=float(rng.uniform(-62, -40)) if calcified and rng.random() < 0.15 else 0.0,
            warp=(Waves.draw(rng, 6, 130), Waves.draw(rng, 6, 130), Waves.draw(rng, 6, 130)),
            warp_mm=float(rng.uniform(0.6, 1.4)),
            folds=Waves.draw(rng, 22, 25),
            folia=Waves.draw(rng, 8, 8),
            cells=Waves.draw(rng, 12, 8),
            slow=Waves.draw(rng, 8, 55),
        )


@dataclass
class Slice:
    """The fields of one slice, float32, all of one shape. Distances are in mm, positive inside; coverages are 0..1."""

    x: Field  # head coordinates of the pixels
    y: Field
    z: Field
    normal: tuple[float, float, float]  # of the slice, in head coordinates
    thickness_mm: float
    pixel_mm: float
    inside: Field  # share of a pixel within the brain case
    vault: Field  # depth under the inner table of the skull
    brain: Field  # depth under the inner table or the skull base
    cistern: Field  # into the fluid around the brain: sulci, fissures, cisterns
    ventricle: Field
    supratentorial: Field  # height over the tentorium
    brain_x: Field  # x of the brain, where a mass has pushed it aside
    hu: Field


def ramp(distance: Field, width: Field | float) -> Field:
    """Coverage 0..1 of an edge blurred over ``width``; ``distance`` is positive inside."""
    value = distance / width
    value += np.float32(0.5)
    return np.clip(value, 0, 1, out=value)


def blend(hu: Field, value: Field | float, coverage: Field) -> None:
    """Blend ``value`` into ``hu`` in place, by ``coverage``."""
    hu += coverage * (value - hu)


def ellipsoid(
    x: Field, y: Field, z: Field, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Field:
    """Approximate signed distance to an ellipsoid, positive inside."""
    dx, dy, dz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    norm = np.sqrt(dx * dx + dy * dy + dz * dz)
    return (1 - norm) * np.float32(min(radii))


def tube(
    x: Field, y: Field, z: Field, start: tuple[float, ...], end: tuple[float, ...], radii: tuple[float, float]
) -> Field:
    """Signed distance to a rounded cone from ``start`` to ``end`` (x, y, z) with a radius at each end."""
    ax, ay, az = (float(b - a) for a, b in zip(start, end, strict=True))
    t = ((x - start[0]) * ax + (y - start[1]) * ay + (z - start[2]) * az) / (ax * ax + ay * ay + az * az)
    np.clip(t, 0, 1, out=t)
    dx, dy, dz = x - start[0] - t * ax, y - start[1] - t * ay, z - start[2] - t * az
    return radii[0] + t * (radii[1] - radii[0]) - np.sqrt(dx * dx + dy * dy + dz * dz)


def bump(value: Field, centre: float, width: float) -> Field:
    distance = (value - centre) / width
    return np.exp(-distance * distance)


def step(value: Field, at: float, width: float) -> Field:
    """0 below ``at``, 1 above, linear over ``width``."""
    return np.clip((value - at) / width + np.float32(0.5), 0, 1)


def vault_depth(head: Head, x: Field, y: Field, z: Field) -> tuple[Field, Field]:
    """Depth under the inner table of an egg-shaped vault, and how much the depth changes per mm of z (0..1)."""
    width = head.half_width * (1 + 0.1 * np.clip(y / head.half_length, -1.2, 0.5))
    width = width * (1 - 0.07 * bump(y, -40, 24) * step(-z, -18, 30))  # the temporal fossa, filled by its muscle
    height = np.where(z > 0, np.float32(head.height), np.float32(1.42 * head.height))
    u, v, w = x / width, y / head.half_length, z / height
    w2 = w * w
    u2, v2 = u * u, v * v
    # The fourth powers make the sides flatter than an ellipsoid's.
    norm = np.sqrt(u2 * (0.8 + 0.2 * u2) + v2 * (0.85 + 0.15 * v2) + w2 * (0.5 + 0.5 * w2)) + np.float32(1e-6)
    rise = (0.5 * w + w2 * w) / height
    lateral, frontal = u * (0.8 + 0.4 * u2) / width, v * (0.85 + 0.3 * v2) / head.half_length
    gradient = np.sqrt(lateral * lateral + frontal * frontal + rise * rise) + np.float32(1e-6)
    return norm * (1 - norm) / gradient, np.abs(rise) / gradient


def skull_floor(ax: Field, y: Field) -> tuple[Field, Field]:
    """Height of the skull base under (|x|, y), and the distance to the axis of the petrous ridge."""
    middle = step(y, -24, 10)
    sella = bump(ax, 0, 13) * middle
    floor = -31 + 13 * bump(ax, 28, 17) * bump(y, -58, 34) * (1 - middle) - 13 * middle + 16 * sella
    ridge = (y - (-4 + 0.45 * (ax - 10))) * np.float32(0.91)
    posterior = step(ridge, 5, 8)
    # The posterior fossa is a bowl around the foramen magnum, which has no floor.
    bowl = -70 + 0.011 * (ax * ax + (y - 30) ** 2) - 60 * step(17 - np.sqrt(ax * ax + 0.8 * (y - 27) ** 2), 0, 3)
    floor += posterior * (bowl - floor)
    petrous = -82 + 56 * bump(ridge, 2, 11) * step(ax, 9, 6) * (1 - 0.06 * step(ax, 40, 20))
    return np.maximum(floor, np.maximum(-60 + 40 * sphenoid_wing(ax, y), petrous)), ridge


def sphenoid_wing(ax: Field, y: Field) -> Field:
    """The ridge between the anterior and the middle fossa, 0..1."""
    return bump(y + 0.12 * ax, -22, 6) * step(ax, 10, 8) * (1 - step(ax, 50, 10))


def ventricles(head: Head, ax: Field, x: Field, y: Field, z: Field) -> Field:
    """Depth inside lateral, third and fourth ventricles."""
    v = head.ventricle
    s = 0.8 * (v - 1)
    spread = 3.5 * s  # large ventricles lie further apart
    fold = np.float32(0.62)
    # The lateral ventricles are higher than wide; z is compressed for them.
    zc = 14 + (z - 14) * fold
    horn = tube(ax, y, zc, (11 + spread, -34 - 3 * s, 10), (5.5, -6, 13), (3.9 * v, 3.9 * v))
    body = tube(ax, y, zc, (6.2 + spread / 2, -8, 17), (15 + spread, 26, 18.5), (4.2 * v, 4.9 * v))
    atrium = tube(ax, y, zc, (16 + spread, 26, 17.5), (26 + spread, 41, 9), (4.8 * v, 6.6 * v))
    occipital = tube(ax, y, zc, (26 + spread, 41, 9), (23 + spread, 61 + 3 * s, 8), (5.6 * v, 2.2 * v))
    temporal = tube(ax, y, z, (27, 34, 2), (31, 2, -19), (3.6 * v, 1.6 * v))
    lateral = np.maximum(np.maximum(horn, body), np.maximum(atrium, np.maximum(occipital, temporal)))
    lateral = np.minimum(lateral, ax - np.float32(0.9))  # septum pellucidum
    third = np.minimum(1.1 * v + 0.9 * s - ax, ellipsoid(x, y, z, (0, 4, 0), (30, 15, 10)))
    fourth = ellipsoid(x, y, z, (0, 26, -31), (6.5 * v + 1.5, 5.0 * v, 10))
    fourth = np.minimum(fourth, 7.5 * v - 0.75 * (y - 20) * np.float32(0.9) - 0.35 * ax)
    return np.maximum(lateral, np.maximum(third, fourth))


def brainstem(ax: Field, y: Field, z: Field) -> Field:
    """Depth inside midbrain, pons and medulla."""
    midbrain = np.minimum(ellipsoid(ax, y, z, (0, 8, -14), (17, 15, 16)), 22 - y)
    pons = ellipsoid(ax, y, z, (0, 6, -33), (17, 14, 17))
    medulla = tube(ax, y, z, (0, 11, -45), (0, 17, -75), (9, 7.5))
    return np.maximum(midbrain, np.maximum(pons, medulla))


def basal_cisterns(head: Head, x: Field, ax: Field, y: Field, z: Field, stem: Field) -> Field:
    """Depth inside the suprasellar, ambient, quadrigeminal and prepontine cisterns."""
    wide = 0.7 + 0.6 * head.atrophy
    angle = np.arctan2(x, -(y + 13))
    radius = np.sqrt(x * x + (y + 13) ** 2)
    star = (9.5 + 3.2 * np.cos(5 * angle)) * wide**0.5 + 1.5 - radius
    star = np.minimum(star, 8 - np.abs(z + 20))
    ring = np.minimum(stem + 3.6 * wide, -stem)
    ring = np.minimum(ring, np.minimum(-5 - z, z + 58))
    quad = np.minimum(ellipsoid(x, y, z, (0, 25, -4), (15, 5.5 * wide, 9)), y - 19 + 0.012 * ax * ax)
    magna = ellipsoid(x, y, z, (0, 58, -62), (14, 13 * wide, 13))
    return np.maximum(np.maximum(star, ring), np.maximum(quad, magna))


def deep_grey(ax: Field, y: Field, z: Field, push: float) -> Field:
    """Depth inside caudate, lentiform nucleus and thalamus; ``push`` moves them aside with large ventricles."""
    caudate = tube(ax, y, z, (13 + push, -24, 6), (17 + push, 8, 23), (6.2, 3.2))
    turned = 0.94 * (y + 2) - 0.34 * (ax - 25)
    across = 0.94 * (ax - 25) + 0.34 * (y + 2)
    lentiform = ellipsoid(across, turned, z, (0, 0, 2), (8.5, 17, 11)) + 0.06 * turned
    thalamus = ellipsoid(ax, y, z, (10 + push / 2, 13, 5), (9.5, 14, 10))
    return np.maximum(caudate, np.maximum(lentiform, thalamus))


def sylvian(ax: Field, y: Field, z: Field, crooked: Field) -> Field:
    """Distance to the sheet of the Sylvian fissure: the insula's plane and its way out, both bent by ``crooked``."""
    insula_x = 39 - 0.009 * (y + 2) ** 2 + 1.5 * crooked
    outside_y = np.maximum(0, np.abs(y + 1) - 19 + 0.15 * np.abs(z))
    outside_z = np.maximum(0, np.abs(z - 3) - 15)
    insula = np.sqrt((ax - insula_x) ** 2 + outside_y**2 + outside_z**2)
    line = y - (-12 + 1.15 * (z + 8)) - 0.25 * (ax - 45) - 4.5 * crooked
    opening = np.sqrt((0.75 * line) ** 2 + np.maximum(0, 39 - ax) ** 2 + np.maximum(0, np.abs(z - 5) - 21) ** 2)
    return np.minimum(insula, opening)


@dataclass
class _Half:
    """The smooth fields of a slice on the half grid. ``b``: in the coordinates of the brain, which may be pushed."""

    x: Field
    y: Field
    z: Field
    ax: Field  # |x|
    bx: Field
    bax: Field
    vault: Field
    slope: Field
    over_floor: Field
    ridge: Field
    stem: Field
    under_tent: Field  # into the posterior fossa
    slow: Field
    full_size: tuple[int, int]

    def full(self, field: Field) -> Field:
        return cv2.resize(np.ascontiguousarray(field, dtype=np.float32), self.full_size, interpolation=cv2.INTER_LINEAR)


def sample_slice(
    head: Head,
    coordinates: tuple[Field, Field, Field],
    normal: tuple[float, float, float],
    thickness_mm: float,
    pixel_mm: float,
    shift: tuple[float, float] = (0.0, 0.0),
    scalp_bump: tuple[float, float, float, float] | None = None,
) -> Slice:
    """Return the fields and the noise-free HU image of a slice without bleeding.

    ``coordinates``: head coordinates of each pixel, each (rows, columns). ``shift``: midline shift in mm (to the left
    where positive) and the z where it is strongest. ``scalp_bump``: a scalp haematoma at (x, y, z), so many mm thick.
    """
    rows, columns = coordinates[0].shape
    # A slow warp makes every head crooked in its own way.
    coarse = [cv2.resize(c, (24, 24), interpolation=cv2.INTER_AREA) for c in coordinates]
    x, y, z = (
        c + cv2.resize(head.warp_mm * w.at(*coarse), (columns, rows), interpolation=cv2.INTER_CUBIC)
        for c, w in zip(coordinates, head.warp, strict=True)
    )
    hx, hy, hz = (cv2.resize(c, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA) for c in (x, y, z))
    ax = np.abs(hx)
    depth, slope = vault_depth(head, hx, hy, hz)
    floor, ridge = skull_floor(ax, hy)
    # The brain may be pushed aside by a bleeding; skull and base stay.
    moved = shift[0] * bump(hz, shift[1], 38) * np.clip(1 - (hx / 66) ** 2, 0, 1) * np.clip(1 - (hy / 85) ** 2, 0, 1)
    bx = hx - moved
    bax = np.abs(bx)
    tent = 5 - 0.53 * ax - 0.44 * np.maximum(0, hy - 26) - hz
    half = _Half(
        hx, hy, hz, ax, bx, bax, depth, slope, 0.8 * (hz - floor), ridge,
        brainstem(bax, hy, hz), np.minimum(0.8 * tent, hy - 16 - 0.12 * ax), head.slow.at(hx, hy, hz), (columns, rows),
    )  # fmt: skip
    vault = half.full(depth)
    brain = half.full(np.minimum(depth, half.over_floor)) if hz.min() < 0 else vault
    slice_ = Slice(
        x, y, z, normal, thickness_mm, pixel_mm, np.empty(0, np.float32), vault, brain,
        cistern=np.empty(0, np.float32), ventricle=half.full(ventricles(head, bax, bx, hy, hz)),
        supratentorial=half.full(-half.under_tent), brain_x=half.full(bx) if shift[0] else x,
        hu=np.full((rows, columns), head.white, np.float32),
    )  # fmt: skip
    _paint_brain(head, slice_, half)
    _paint_skull(head, slice_, half, scalp_bump)
    return slice_


def _fold_distance(head: Head, half: _Half) -> Field:
    """Distance to the nearest sulcus: sheets where a random field is zero, made to run inwards from the surface."""
    # The field is read at points drawn out towards the vault, so that its sheets stand upright on the surface.
    stretch = 1 + 0.6 * np.clip(half.vault, 0, 40) / 60
    value = head.folds.at(half.bx * stretch, half.y * stretch, half.z * stretch)
    step_mm = np.float32(np.hypot(*(float(c[0, 1] - c[0, 0]) for c in (half.x, half.y))))
    gx = cv2.Sobel(value, cv2.CV_32F, 1, 0, scale=1 / 8) / step_mm
    gy = cv2.Sobel(value, cv2.CV_32F, 0, 1, scale=1 / 8) / step_mm
    return half.full(value / np.sqrt(gx * gx + gy * gy + np.float32(0.07**2)))


def _paint_brain(head: Head, s: Slice, half: _Half) -> None:
    """Fill ``s.cistern`` and paint white and grey matter, fluid, falx and tentorium."""
    px = s.pixel_mm * 1.4
    hx, hy, hz, bax = half.x, half.y, half.z, half.bax
    z_low, z_high = float(hz.min()), float(hz.max())
    age = head.atrophy

    # Distances to fluid: sulci end where the brain is deep, and don't enter the posterior fossa.
    reach = 15 + 4 * half.slow
    deep = np.maximum(half.vault - reach, 0)
    deep = np.maximum(deep, 3 * np.maximum(0, half.under_tent + 1))
    fold = np.abs(_fold_distance(head, half))
    inside = half.full(deep)
    fold = np.sqrt(fold * fold + inside * inside)
    width = half.full(head.sulcus_mm * (1 + 0.35 * half.slow + 0.3 * step(hz, 35, 30) + 0.02 * np.clip(-hy, 0, 30)))
    # The fissure between the hemispheres: interrupted by corpus callosum and the central grey matter.
    centre = 42 - np.sqrt(hy * hy + (1.25 * (hz - 1)) ** 2)
    blocked = half.full(np.maximum(0, np.maximum(centre, np.maximum(half.under_tent, 3 + half.stem))))
    middle = np.abs(s.brain_x)
    fissure = np.sqrt(middle * middle + blocked * blocked)
    pial = np.minimum(fold, fissure)
    fluid = np.maximum(width - fold, 0.5 + 0.8 * age - fissure)
    surface = half.full(head.surface_mm * (1 + 0.4 * half.slow + 0.5 * step(-hy, 30, 40)) * (hz > -60))
    fluid = np.maximum(fluid, surface - s.brain)
    pial = np.minimum(pial, s.brain - surface)
    if z_low < 32 and z_high > -25:
        distance = sylvian(np.abs(s.brain_x), s.y, s.z, half.full(head.slow.at(1.6 * hx, 1.6 * hy, 1.6 * hz)))
        pial = np.minimum(pial, distance)
        fluid = np.maximum(fluid, np.where(s.supratentorial > 0, head.sylvian_mm - distance, -5))
    if z_low < 8:
        basal = half.full(basal_cisterns(head, half.bx, bax, hy, hz, half.stem))
        fluid = np.maximum(fluid, basal)
        pial = np.minimum(pial, -basal + 2)
    s.cistern = np.minimum(fluid, s.brain)

    push = 2.5 * (head.ventricle - 1)
    grey = ramp(3.0 - pial, 2.6)
    if z_low < 34 and z_high > -14:
        nuclei = half.full(deep_grey(bax, hy, hz, push))
        np.maximum(grey, 0.85 * ramp(nuclei, 2.5), out=grey)
    hu = s.hu
    if head.leukoaraiosis > 0 and z_high > -5:
        hu -= head.leukoaraiosis * np.clip(1 + s.ventricle / 9, 0, 1) * (s.supratentorial > 0)
    hu += np.float32(head.grey_white) * grey
    if z_low < 8:
        _paint_posterior_fossa(head, s, half, hu)
    hu += half.full(1.1 * half.slow)
    blend(hu, FLUID, ramp(s.cistern, px))
    blend(hu, FLUID + 1, ramp(s.ventricle, px))
    # Falx and the great sinus; a layer thinner than the slice shows as its share of the pixel.
    falx = half.full(
        np.minimum(np.minimum(hz + 12, -half.under_tent - 1), 24 + 0.12 * np.abs(hy) - half.vault) - centre.clip(0)
    )
    blend(hu, FALX, ramp(falx, 4) * ramp(0.75 - np.abs(s.x), px) * np.float32(0.9))
    sinus = half.full(4.6 - half.ax * 1.2 - np.maximum(0, half.vault - 2.2) * 0.8 - 40 * step(-hz - 0.4 * hy, 10, 5))
    blend(hu, SINUS, ramp(sinus, px))
    _paint_calcifications(head, s, hu)


def _paint_posterior_fossa(head: Head, s: Slice, half: _Half, hu: Field) -> None:
    """Cerebellum with its folia, brain stem and tentorium."""
    inside = half.full(np.minimum(half.under_tent, -half.stem - 3))
    folia = head.folia.at(half.x * 0.5, half.y, half.z * 1.6)
    core = ellipsoid(half.ax, half.y, half.z, (22, 44, -42), (19, 14, 12))
    tone = half.full(GREY - 1.5 + 1.6 * folia - 5 * np.clip(core / 6, 0, 1))
    blend(hu, tone, ramp(inside, 2))
    blend(hu, np.float32(30.5), ramp(half.full(half.stem), 2))
    gap = half.full(half.under_tent)
    # The tentorium is cut obliquely and so looks thicker where it is flat.
    blend(hu, FALX - 6, ramp(1.4 - np.abs(gap), 2) * np.clip(s.brain / 4, 0, 1) * np.float32(0.55))


def _paint_calcifications(head: Head, s: Slice, hu: Field) -> None:
    z = float(s.z.mean())
    if head.choroid[0] and -4 < z < 26:
        for side, value in zip((-1, 1), head.choroid, strict=True):
            spot = ellipsoid(s.brain_x, s.y, s.z, (side * 24.0, 37, 11), (2.4, 5.0, 4.5))
            blend(hu, np.float32(value), ramp(spot, s.thickness_mm * 0.6))
    if head.pineal and -8 < z < 14:
        blend(hu, np.float32(head.pineal), ramp(ellipsoid(s.brain_x, s.y, s.z, (0, 24, 3), (2.8, 3.2, 3)), 2))
    if head.ganglia and -12 < z < 16:
        spot = ellipsoid(np.abs(s.brain_x), s.y, s.z, (20, -2, 1), (3.5, 7, 5))
        blend(hu, np.float32(head.ganglia), ramp(spot, 4) * np.float32(0.8))
    if head.falx_calcification and 15 < z < 60:
        spot = ellipsoid(s.x, s.y, s.z, (0.5, head.falx_calcification, 36), (1.8, 7, 9))
        blend(hu, np.float32(350), ramp(spot, 1.5))


def _paint_skull(head: Head, s: Slice, half: _Half, scalp_bump: tuple[float, float, float, float] | None) -> None:
    """Paint everything outside the brain: skull base, face, vault, scalp and air."""
    hx, hy, hz, ax = half.x, half.y, half.z, half.ax
    z_low, z_high = float(hz.min()), float(hz.max())
    px = s.pixel_mm * 1.3
    # Where the vault is cut obliquely a pixel holds bone and brain: the edge widens with the slice's thickness.
    edge: Field | float = half.full(px + s.thickness_mm * np.minimum(half.slope, 0.95) * 0.8) if z_high > 15 else px
    temporal = step(ax, 52, 16) * step(-hz, -32, 30) * step(-hy, -30, 30)
    thick = head.skull_mm * (1 + 0.08 * half.slow - 0.5 * temporal + 0.22 * bump(hx, 0, 18) * step(np.abs(hy), 60, 30))
    # No vault beside the face, nor beside the neck, under the skull base.
    face = np.maximum(step(-hz, 26, 8) * step(-hy, 12, 16), step(-half.over_floor, 7, 5) * step(hy, 20, 20))
    shell = np.maximum(thick * (1 - face), 0.2)
    outer = half.full(half.vault + shell)
    muscle = 6 * step(ax, 46, 20) * bump(hy, -36, 30) * step(-hz, -14, 30)
    neck = 11 * step(-hz, 40, 16) * step(hy, 40, 30)
    scalp = (
        head.scalp_mm * (1 + 0.08 * half.slow + 0.25 * step(hy, 50, 40)) + muscle + neck + 7 * face * step(-hy, 0, 30)
    )
    nose = 15 * bump(hx, 0, 9) * step(-hy, 76, 10) * step(-hz, 30, 10)
    ear = 9 * step(ax, 66, 6) * bump(hy, 16, 14) * bump(hz, -30, 20)
    blood = np.float32(0)
    if scalp_bump is not None:
        bx, by, bz, bump_mm = scalp_bump
        blood = bump_mm * np.exp(-((hx - bx) ** 2 + (hy - by) ** 2 + (hz - bz) ** 2) / 24**2)
    skin = half.full(half.vault + shell + scalp + blood + nose + ear)

    hu = s.hu
    brain = hu.copy()
    hu.fill(AIR)
    soft = FAT + (MUSCLE - FAT) * np.clip(face * (0.55 + 0.5 * half.slow), 0, 1)
    tissue = half.full(soft)
    blend(tissue, MUSCLE, ramp(half.full(muscle + 0.8 * neck - 0.7) + outer, px))
    if scalp_bump is not None:
        blend(tissue, 60, ramp(half.full(blood - 0.7) + outer, px))
    blend(tissue, SKIN, ramp(2.2 - skin, 1.2))
    blend(hu, tissue, ramp(skin, px))
    # Two dense tables and the spongy layer between them.
    relative = outer / np.maximum(outer - s.vault, 0.5)
    bone = 640 + 780 * np.clip(np.abs(relative - 0.5) * 2.4, 0, 1) + half.full(80 * half.slow)
    blend(hu, bone, ramp(outer, np.minimum(edge, 4.0) if isinstance(edge, np.ndarray) else edge) * half.full(1 - face))
    if z_low < 4:
        _paint_base(head, s, half, hu)
    s.inside = ramp(s.brain, edge)
    blend(hu, brain, s.inside)


def _paint_base(head: Head, s: Slice, half: _Half, hu: Field) -> None:
    """The skull base and the face under it: petrous bones with air cells, sinuses, orbits."""
    hx, hy, hz, ax = half.x, half.y, half.z, half.ax
    px = s.pixel_mm * 1.5
    inside = np.minimum(half.vault + 1, -half.over_floor + 1)
    fat = np.clip(-20 + 60 * head.slow.at(hx * 2, hy * 2, hz * 2), -95, 52)
    soft = half.full(fat + step(hy, 15, 20) * (MUSCLE - fat) * 0.9)
    blend(hu, soft, ramp(half.full(inside), 2))
    cells = head.cells.at(hx, hy, hz)
    plate = (
        3.2
        + 9 * sphenoid_wing(ax, hy)
        + 9 * bump(half.ridge, 2, 12) * step(ax, 12, 8)
        + 5 * bump(ax, 0, 12) * step(hy, -20, 10) * step(-hy, -6, 6)
    )
    petrous = np.minimum(10 - np.abs(half.ridge - 3), np.minimum(hz + 49, ax - 10)) * np.float32(0.9)
    base = np.maximum(np.minimum(plate + half.over_floor, -half.over_floor), petrous)
    mastoid = ellipsoid(ax, hy, hz, (56, 30, -44), (15, 17, 19))
    base = np.minimum(np.maximum(base, mastoid), half.vault + 4)
    blend(hu, half.full(950 + 260 * cells + 300 * step(half.ridge, 3, 6)), ramp(half.full(base), px))
    air = np.minimum(mastoid - 2.5, 2.2 * (cells + head.pneumatization))
    air = np.maximum(air, np.minimum(ellipsoid(ax, hy, hz, (48, 14, -38), (10, 5, 6)), 2.0 * cells + 1))
    canal = 2.6 - np.sqrt((hy - 13) ** 2 + (hz + 40) ** 2)
    air = np.maximum(air, np.minimum(canal, ax - 52))

    orbit = ellipsoid(ax - 0.22 * (hy + 60), hy, hz, (31, -62, -38), (18, 27, 17))
    wall = np.minimum(1.3 - np.abs(orbit + 0.6), 60 - ax)
    wall = np.minimum(wall, hy + 82)
    blend(hu, 750, ramp(half.full(wall), px) * np.float32(0.9))
    blend(hu, FAT + 5, ramp(half.full(orbit), px))
    globe = half.full(12.2 - np.sqrt((ax - 33) ** 2 + (hy + 74) ** 2 + (hz + 37) ** 2))
    nerve = half.full(tube(ax, hy, hz, (32, -62, -37), (10, -30, -34), (2.2, 2.2)))
    rectus = tube(ax, hy, hz, (21.5, -68, -37), (12, -32, -34), (2.0, 1.4))
    lateral = tube(ax, hy, hz, (45, -68, -37), (20, -32, -34), (2.0, 1.4))
    blend(hu, 38, ramp(half.full(np.maximum(rectus, lateral)), px))
    blend(hu, 32, ramp(nerve, px))
    blend(hu, 30, ramp(globe, px))
    blend(hu, 10, ramp(globe - 1.4, px))
    lens = half.full(ellipsoid(ax, hy, hz, (33, -82.5, -37), (4.6, 2.2, 4.6)))
    blend(hu, 75, ramp(lens, px))

    septa = np.abs(cells) - 0.28
    ethmoid = np.minimum(np.minimum(11 - ax + 0.06 * (hy + 60), hy + 82), np.minimum(-36 - hy, 16 - np.abs(hz + 42)))
    blend(hu, 420, ramp(half.full(ethmoid + 1), px))
    air = np.maximum(air, np.minimum(ethmoid, 4 * septa))
    sphenoid = ellipsoid(hx, hy, hz, (0, -22, -37), (14, 12, 9))
    blend(hu, 650, ramp(half.full(sphenoid + 2.0), px))
    air = np.maximum(air, np.minimum(sphenoid, np.abs(hx - 2) - 0.7))
    maxillary = ellipsoid(ax, hy, hz, (29, -60, -72), (14, 16, 15))
    blend(hu, 500, ramp(half.full(maxillary + 1.5), px))
    air = np.maximum(air, maxillary)
    frontal = np.minimum(ellipsoid(ax, hy, hz, (13, -88, -20), (13, 4.5, 11)), ax - 1) + 2 * head.pneumatization
    air = np.maximum(air, np.minimum(frontal, -half.vault - 1.2))
    blend(hu, AIR + 20, ramp(half.full(air), px))
