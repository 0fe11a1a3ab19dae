"""Draw five kinds of bleeding, and densities that only look like one, as coverages of a slice's pixels.

Every bleeding is a solid in head coordinates (millimetres), so it extends over several slices. A slice shows the mean
over its thickness. At both ends of a bleeding the pixels hold part blood and part brain, and one slice alone is
doubtful.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsna.phantom.anatomy import GREY, Field, Head, Slice, Waves, blend, ramp

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
MIMIC = "density"  # a part of bone or vein, as dense as blood, in one slice and not in its neighbours
MIN_AREA_MM2 = 40.0  # area of blood from which a slice is positive
PAINT_ORDER = ("intraparenchymal", "subarachnoid", "intraventricular", MIMIC, "subdural", "epidural")


@dataclass(frozen=True)
class Bleeding:
    """One bleeding. ``radii``: its extent along x, y, z; ``depth_mm``: thickest part of a lens or crescent."""

    kind: str
    shape: str  # lens, crescent, falcine, cisterns, layer, cast, blob
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float
    texture: Waves
    depth_mm: float = 0.0
    oedema_mm: float = 0.0
    oedema_hu: float = 0.0

    @property
    def volume_ml(self) -> float:
        """A rough volume, for the shift of the midline."""
        x, y, z = self.radii
        if self.shape == "blob":
            return 4.19 * x * y * z / 1000
        return 1.6 * self.depth_mm * y * z / 1000


def _between(severity: float, small: float, large: float, rng: np.random.Generator) -> float:
    return float((small + severity * (large - small)) * rng.uniform(0.85, 1.15))


def on_vault(head: Head, azimuth: float, elevation: float) -> tuple[float, float, float]:
    """Return the point of the inner table in a direction, in radians. Azimuth 0 is the front, positive is left."""
    x, y = np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation)
    z = np.sin(elevation)
    scale = 1 / np.sqrt((x / head.half_width) ** 2 + (y / head.half_length) ** 2 + 0.7 * (z / head.height) ** 2)
    return float(x * scale), float(y * scale), float(z * scale)


def draw_bleeding(kind: str, head: Head, severity: float, hu: float, rng: np.random.Generator) -> list[Bleeding]:
    """Draw one focus (or several contusions) of a kind. ``severity`` 0..1 sets the size, ``hu`` the density."""
    side = float(rng.choice((-1, 1)))
    texture = Waves.draw(rng, 6, 14)
    if kind == "epidural":
        centre = on_vault(head, side * rng.uniform(0.7, 2.3), rng.uniform(-0.05, 0.6))
        radius = _between(severity, 17, 38, rng)
        depth = _between(severity, 5, 28, rng)
        return [Bleeding(kind, "lens", centre, (radius, radius, radius * 0.85), hu, texture, depth)]
    if kind == "subdural":
        radius = _between(severity, 32, 94, rng)
        if rng.random() < 0.15:
            centre = (side * 1.0, float(rng.choice((-52, 50))), rng.uniform(32, 46))
            depth = _between(severity, 3, 8, rng)
            radii = (20.0, radius * 0.5, radius * 0.45)
            return [Bleeding(kind, "falcine", centre, radii, hu, texture, depth)]
        centre = on_vault(head, side * rng.uniform(0.9, 2.1), rng.uniform(0.05, 0.65))
        depth = _between(severity, 3.2, 12, rng)
        return [Bleeding(kind, "crescent", centre, (radius * 0.9, radius, radius * 0.7), hu, texture, depth)]
    if kind == "subarachnoid":
        radius = _between(severity, 17, 56, rng)
        if rng.random() < 0.35:  # a burst aneurysm: the basal cisterns and on into the Sylvian fissures
            centre = (side * rng.uniform(2, 14), rng.uniform(-16, -6), rng.uniform(-20, -8))
            radius *= 1.15
        else:
            x, y, z = on_vault(head, side * rng.uniform(0.5, 2.3), rng.uniform(-0.05, 0.9))
            centre = (0.85 * x, 0.85 * y, 0.85 * z)
        depth = 0.5 + 0.9 * severity  # how far the blood widens the sulci
        return [Bleeding(kind, "cisterns", centre, (radius, radius, radius * 0.9), hu, texture, depth)]
    if kind == "intraventricular":
        if rng.random() < 0.55 - 0.3 * severity:
            level = 50 - 18 * severity + rng.uniform(-3, 3)  # y of the layer's surface: blood sinks to the back
            return [Bleeding(kind, "layer", (side * 20.0, level, 10), (60, 60, 26), hu, texture)]
        centre = (side * rng.uniform(6, 18), rng.uniform(-20, 30), rng.uniform(8, 18))
        radius = _between(severity, 26, 60, rng)
        return [Bleeding(kind, "cast", centre, (radius, radius, radius * 0.7), hu, texture)]
    return _draw_parenchymal(head, severity, hu, side, rng)


def _draw_parenchymal(head: Head, severity: float, hu: float, side: float, rng: np.random.Generator) -> list[Bleeding]:
    place = rng.random()
    count = 1
    if place < 0.4:  # hypertensive: lentiform nucleus or thalamus
        centre = (side * rng.uniform(16, 28), rng.uniform(-8, 14), rng.uniform(-2, 10))
    elif place < 0.75:  # lobar
        x, y, z = on_vault(head, side * rng.uniform(0.3, 2.7), rng.uniform(-0.05, 0.8))
        inwards = rng.uniform(0.5, 0.72)
        centre = (x * inwards, y * inwards, z * inwards)
    elif place < 0.88:  # contusions of the frontal and temporal poles
        count = int(rng.integers(2, 4))
        centre = (side * rng.uniform(14, 30), rng.uniform(-64, -50), rng.uniform(-10, 4))
    else:  # cerebellum
        centre = (side * rng.uniform(12, 28), rng.uniform(44, 58), rng.uniform(-48, -36))
    found = []
    for index in range(count):
        radius = _between(severity, 6, 24, rng) / (1 + 0.35 * (count - 1)) + 1.5 * (count > 1)
        away = rng.normal(0, 9, 3) if index else np.zeros(3)
        where = tuple(float(c + a) for c, a in zip(centre, away, strict=True))
        radii = tuple(float(radius * rng.uniform(0.75, 1.25)) for _ in range(3))
        texture = Waves.draw(rng, 8, max(9.0, 1.4 * radius))
        swelling = float(rng.uniform(0.15, 0.55) * radius + 1.5), float(rng.uniform(6, 12))
        found.append(Bleeding("intraparenchymal", "blob", where, radii, hu, texture, 0.0, *swelling))
    return found


def draw_mimic(head: Head, rng: np.random.Generator) -> Bleeding:
    """Draw a density of one slice's height next to the skull, like the partial volume of a bone or a vein."""
    x, y, z = on_vault(head, rng.uniform(0.4, 2.8) * rng.choice((-1, 1)), rng.uniform(-0.2, 0.8))
    inwards = rng.uniform(0.86, 0.97)
    radii = (float(rng.uniform(5, 13)), float(rng.uniform(5, 13)), 1.6)
    centre = (x * inwards, y * inwards, z * inwards)
    return Bleeding(MIMIC, "blob", centre, radii, float(rng.uniform(52, 76)), Waves.draw(rng, 6, 12))


def midline_shift(bleedings: list[Bleeding]) -> tuple[float, float]:
    """Return how far (mm, to the left where positive) and at which z all bleedings together push the brain."""
    push, height, weight = 0.0, 0.0, 1e-6
    for bleeding in bleedings:
        if bleeding.shape in ("blob", "lens", "crescent") and bleeding.kind in KINDS:
            amount = min(7.0, 0.10 * bleeding.volume_ml)
            push -= np.sign(bleeding.centre[0]) * amount
            height += amount * bleeding.centre[2]
            weight += amount
    return float(np.clip(push, -9, 9)), float(height / weight)


def coverage(s: Slice, b: Bleeding) -> tuple[Field, Field | None] | None:
    """Return the share of blood in each pixel (0..1) and, for a blob, the depth in mm; None if not in the slice."""
    nearest = abs(float(s.z[s.z.shape[0] // 2, s.z.shape[1] // 2]) - b.centre[2])
    tilt = np.hypot(s.normal[0], s.normal[1])
    if nearest > 1.3 * b.radii[2] + s.thickness_mm + b.oedema_mm + 4 + 90 * tilt:
        return None
    edge = 1.5 * s.pixel_mm
    total = np.zeros_like(s.x)
    centre_depth: Field | None = None
    for offset in (-s.thickness_mm / 3, 0.0, s.thickness_mm / 3):
        x, y, z = (c + np.float32(n * offset) for c, n in zip((s.x, s.y, s.z), s.normal, strict=True))
        depth = _depth(s, b, x, y, z)
        if offset == 0:
            centre_depth = depth
        total += ramp(depth, 9.0 if b.shape == "cisterns" else edge)  # blood thins out along the sulci
    if not total.any() and b.shape != "blob":
        return None
    total *= s.inside / 3
    if b.shape == "cisterns":
        total *= ramp(np.minimum(s.cistern + b.depth_mm, s.brain - 0.3), edge)
    elif b.shape in ("layer", "cast"):
        total *= ramp(s.ventricle, edge)
    return total, centre_depth if b.shape == "blob" and b.oedema_mm else None


def _depth(s: Slice, b: Bleeding, x: Field, y: Field, z: Field) -> Field:
    """Signed distance in mm to the solid's surface (approximate), positive inside."""
    u = (x - b.centre[0]) / b.radii[0]
    v = (y - b.centre[1]) / b.radii[1]
    w = (z - b.centre[2]) / b.radii[2]
    square = u * u + v * v + w * w
    if b.shape == "lens":
        return np.minimum(np.minimum(s.vault, s.brain), b.depth_mm * (1 - square) - s.vault)
    if b.shape == "crescent":
        thick = b.depth_mm * np.sqrt(np.clip(1 - square, 0, 1)) - 0.4
        inside = np.minimum(np.minimum(s.vault, s.brain), thick - s.vault)
        side = np.sign(b.centre[0])
        return np.minimum(np.minimum(inside, side * x - 2), s.supratentorial)
    if b.shape == "falcine":
        side = np.sign(b.centre[0])
        thick = b.depth_mm * np.sqrt(np.clip(1 - square, 0, 1)) - 0.4
        outside_centre = np.sqrt(y * y + (1.25 * (z - 1)) ** 2) - 43
        inside = np.minimum(np.minimum(side * x + 0.3, thick - side * x), outside_centre)
        return np.minimum(np.minimum(inside, s.vault - 1), s.supratentorial)
    if b.shape == "layer":
        return np.minimum(y - b.centre[1] + 0.6 * b.texture.at(x[:1, :1], y[:1, :1], z[:1, :1]), (1 - w * w) * 9)
    norm = np.sqrt(square)
    if b.shape == "blob":
        rough = 1 + 0.11 * _texture(b, x, y, z)
        return np.minimum((1 - norm * rough) * np.float32(min(b.radii)), s.brain - 0.6)
    # Blood in fluid has no round border.
    return (1 - norm) * np.float32(min(b.radii)) + 3 * _texture(b, x, y, z)


def _texture(b: Bleeding, x: Field, y: Field, z: Field) -> Field:
    """The bleeding's texture, computed where it can be seen."""
    rows, columns = _window(b, x, y)
    field = np.zeros_like(x)
    if rows.stop > rows.start and columns.stop > columns.start:
        field[rows, columns] = b.texture.at(x[rows, columns], y[rows, columns], z[rows, columns])
    return field


def _window(b: Bleeding, x: Field, y: Field) -> tuple[slice, slice]:
    """The rows and columns around a bleeding."""
    near = (np.abs(x - b.centre[0]) < 1.6 * b.radii[0]) & (np.abs(y - b.centre[1]) < 1.6 * b.radii[1])
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def paint(s: Slice, bleedings: list[Bleeding]) -> dict[str, Field]:
    """Paint all bleedings into ``s.hu`` and return, for each kind that is there, its visible coverage (0..1)."""
    found: dict[str, Field] = {}
    for kind in PAINT_ORDER:
        for bleeding in bleedings:
            if bleeding.kind != kind:
                continue
            result = coverage(s, bleeding)
            if result is None:
                continue
            cover, depth = result
            if depth is not None:
                swelling = ramp(depth + bleeding.oedema_mm * 0.5, bleeding.oedema_mm) * (s.brain > 1)
                s.hu -= bleeding.oedema_hu * swelling * np.clip((s.hu - 15) / 10, 0, 1) * (s.hu < GREY + 15)
            if not cover.any():
                continue
            hu = np.float32(bleeding.hu)
            if bleeding.shape in ("lens", "crescent", "blob"):
                hu = hu + 3 * _texture(bleeding, s.x, s.y, s.z)
            blend(s.hu, hu, cover)
            for other in found.values():  # what lies on top hides what lies below
                other *= 1 - cover
            found[kind] = cover + found[kind] if kind in found else cover
    return found
