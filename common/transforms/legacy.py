"""Translate files of albumentations 0.3 to 0.5 into those of 2.0.8.

Each row of :data:`ROWS` knows one old class: its arguments with their old defaults, and its translation. A class
without a translation is in :data:`REFUSED`, with advice. Nothing is guessed: an argument that no release had is an
error. An argument whose meaning changed between releases, or that was meant for 8-bit pictures, adds a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.augmentations.base import MIN_MAX_NOTE, MODULE
from common.errors import UsageError, nearest
from common.transforms.library import CLASS_KEY, Node, node, short_name, unknown_class
from common.transforms.library import REFUSED as REFUSED_TODAY

EIGHT_BIT = 255.0
MAX_UNIT_VARIANCE = 0.25  # the most on 0..1; on 0..255 a smaller variance is rounded away

Version = tuple[int, ...]


class _Required:
    """Marks an argument without a default."""


REQUIRED = _Required()


@dataclass
class Old:
    """One transform of an old file: its ``arguments``, defaults filled in, and the list for notes."""

    name: str
    arguments: dict[str, Any]
    version: Version
    notes: list[str]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def note(self, line: str) -> None:
        """Add a line, unless it is there already."""
        text = f"{self.name}: {line}"
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, reason: str) -> UsageError:
        """Return the error for a transform that has no equal today."""
        return UsageError(f"{self.name}: {reason}")

    def pixel_value(self, argument: str) -> Any:
        """Return a pixel value on 0..1; a value above 1 is taken as one of an 8-bit picture."""
        value = self[argument]
        if value is None:
            return 0.0
        values = value if isinstance(value, list) else [value]
        if max(values) > 1:
            self.note(f"{argument} {value} is a value of 8-bit pictures: taken as {value}/255 on 0..1")
            values = [one / EIGHT_BIT for one in values]
        return list(values) if isinstance(value, list) else float(values[0])


@dataclass(frozen=True)
class Row:
    """``defaults``: all old arguments with their defaults. ``today``: translates the transform, without its p."""

    defaults: Mapping[str, Any]
    today: Callable[[Old], Node]
    p: float = 0.5


def own(name: str, **arguments: Any) -> Node:
    """Return one of this project's transforms in the form of a file."""
    return {CLASS_KEY: f"{MODULE}.{name}", **arguments}


def same(name: str | None = None, drop: tuple[str, ...] = (), **added: Any) -> Callable[[Old], Node]:
    """Return a translation that keeps the arguments' names and leaves out those in ``drop``."""

    def today(old: Old) -> Node:
        kept = {key: value for key, value in old.arguments.items() if key not in drop}
        return node(name or old.name, **kept, **added)

    return today


BORDER = {"interpolation": 1, "border_mode": 4, "value": None, "mask_value": None}
IMGAUG_BORDERS = {"constant": 0, "edge": 1, "symmetric": 2, "wrap": 3, "reflect": 4}


def border(old: Old) -> Node:
    """Return a geometric transform's arguments for interpolation and border."""
    return {
        "interpolation": old["interpolation"],
        "border_mode": old["border_mode"],
        "fill": old.pixel_value("value"),
        "fill_mask": 0.0 if old["mask_value"] is None else old["mask_value"],
    }


def symmetric(value: Any) -> list[float]:
    """Return a limit as a pair; a number x means (-x, x)."""
    return [-value, value] if isinstance(value, (int, float)) else list(value)


def _shift_scale_rotate(old: Old) -> Node:
    both = symmetric(old["shift_limit"])
    x, y = (old[f"shift_limit_{axis}"] for axis in "xy")
    return own(
        "ShiftScaleRotate",
        shift_limit_x=both if x is None else symmetric(x),
        shift_limit_y=both if y is None else symmetric(y),
        scale_limit=symmetric(old["scale_limit"]),
        rotate_limit=symmetric(old["rotate_limit"]),
        **border(old),
    )


def _rotate(old: Old) -> Node:
    return node("Rotate", limit=symmetric(old["limit"]), **border(old))


def _random_resized_crop(old: Old) -> Node:
    built = own if max(old["scale"]) > 1 else node
    size = [old["height"], old["width"]]
    return built(
        "RandomResizedCrop", size=size, scale=old["scale"], ratio=old["ratio"], interpolation=old["interpolation"]
    )


def _random_sized_crop(old: Old) -> Node:
    return node(
        "RandomSizedCrop",
        min_max_height=old["min_max_height"],
        size=[old["height"], old["width"]],
        w2h_ratio=old["w2h_ratio"],
        interpolation=old["interpolation"],
    )


def _pad(old: Old) -> Node:
    sizes = ("min_height", "min_width", "pad_height_divisor", "pad_width_divisor")
    arguments = {name: old[name] for name in sizes}
    for axis in ("height", "width"):
        if arguments[f"pad_{axis}_divisor"] is not None:
            arguments[f"min_{axis}"] = None
    fills = border(Old(old.name, {"interpolation": 1, **old.arguments}, old.version, old.notes))
    del fills["interpolation"]
    return node("PadIfNeeded", **arguments, **fills)


def _grid_distortion(old: Old) -> Node:
    limit = symmetric(old["distort_limit"])
    return node("GridDistortion", num_steps=old["num_steps"], distort_limit=limit, normalized=False, **border(old))


def _optical_distortion(old: Old) -> Node:
    if max(abs(limit) for limit in symmetric(old["shift_limit"])) > 0.5:
        raise old.refuse(
            "a shift_limit above 0.5 (in pixels) has no equal today; use 0.5 or less, which then meant none"
        )
    return node("OpticalDistortion", distort_limit=symmetric(old["distort_limit"]), **border(old))


def _elastic_transform(old: Old) -> Node:
    names = ("alpha", "sigma", "alpha_affine", "approximate")
    return own("ElasticTransform", **{name: old[name] for name in names}, **border(old))


def _coarse_dropout(old: Old) -> Node:
    if old.version <= (0, 4, 0):
        old.note("up to 0.4.0 it could draw its maximum + 1 (a bug): the documented maximum is kept")
    ranges = {}
    for argument, what in (
        ("num_holes_range", "holes"),
        ("hole_height_range", "height"),
        ("hole_width_range", "width"),
    ):
        low, high = old[f"min_{what}"], old[f"max_{what}"]
        ranges[argument] = [high if low is None else low, high]
    fill_mask = old["mask_fill_value"]
    return node("CoarseDropout", **ranges, fill=old.pixel_value("fill_value"), fill_mask=fill_mask)


def _channel_dropout(old: Old) -> Node:
    return node(old.name, channel_drop_range=old["channel_drop_range"], fill=old.pixel_value("fill_value"))


def _cutout(old: Old) -> Node:
    sizes = {name: old[name] for name in ("num_holes", "max_h_size", "max_w_size")}
    return own("Cutout", **sizes, fill=old.pixel_value("fill_value"))


def _gauss_noise(old: Old) -> Node:
    limit = old["var_limit"]
    variances = [0, limit] if isinstance(limit, (int, float)) else list(limit)
    if old.version < (0, 4, 0):
        old.note("0.3 added the variance as a mean (a bug): the documented mean is kept")
    scale = 1.0
    if max(variances) > MAX_UNIT_VARIANCE:
        low, high = variances
        old.note(f"var_limit {low:g} to {high:g} is meant for 8-bit pictures: taken as variance / 255² on 0..1")
        scale = EIGHT_BIT
    mean = (old["mean"] or 0) / scale
    return node("GaussNoise", std_range=[math.sqrt(one) / scale for one in variances], mean_range=[mean, mean])


def _additive_noise(old: Old) -> Node:
    old.note("loc and scale are meant for 8-bit pictures: taken as loc / 255 and scale / 255 on 0..1")
    scale = old["scale"]
    deviations = [one / EIGHT_BIT for one in ([scale, scale] if isinstance(scale, (int, float)) else scale)]
    mean = old["loc"] / EIGHT_BIT
    return node("GaussNoise", std_range=deviations, mean_range=[mean, mean], per_channel=old["per_channel"])


def _gaussian_blur(old: Old) -> Node:
    sigmas = old["sigma_limit"]
    sigmas = [0, sigmas] if isinstance(sigmas, (int, float)) else list(sigmas)
    low, high = old["blur_limit"] if not isinstance(old["blur_limit"], int) else (3, old["blur_limit"])
    if max(sigmas) > 0:
        return node("GaussianBlur", blur_limit=[low, high], sigma_limit=sigmas)
    # For sigma 0, OpenCV derives it from the kernel's side.
    sizes = [side for side in range(low, high + 1) if side % 2]
    kernels = [(side, 0.3 * ((side - 1) * 0.5 - 1) + 0.8) for side in sizes]
    blurs = [node("GaussianBlur", blur_limit=[side] * 2, sigma_limit=[sigma] * 2, p=1.0) for side, sigma in kernels]
    return node("OneOf", transforms=blurs)


def _motion_blur(old: Old) -> Node:
    limit = old["blur_limit"]
    return own("MotionBlur", blur_limit=[3, limit] if isinstance(limit, int) else limit)


def _flip(old: Old) -> Node:
    horizontal, vertical = node("HorizontalFlip", p=1.0), node("VerticalFlip", p=1.0)
    return node(
        "OneOf", transforms=[horizontal, vertical, node("Sequential", transforms=[horizontal, vertical], p=1.0)]
    )


def _brightness_contrast(old: Old) -> Node:
    by_max = old.arguments.get("brightness_by_max")
    return node(
        "RandomBrightnessContrast",
        brightness_limit=symmetric(old["brightness_limit"]),
        contrast_limit=symmetric(old["contrast_limit"]),
        brightness_by_max=old.version >= (0, 4, 0) if by_max is None else by_max,
    )


def _limit_alone(changed: str, other: str) -> Callable[[Old], Node]:
    def today(old: Old) -> Node:
        limits = {f"{changed}_limit": symmetric(old["limit"]), f"{other}_limit": [0.0, 0.0]}
        return _brightness_contrast(Old(old.name, limits, old.version, old.notes))

    return today


def _compression(old: Old) -> Node:
    kinds = {0: "jpeg", 1: "webp", "ImageCompressionType.JPEG": "jpeg", "ImageCompressionType.WEBP": "webp"}
    kind = old.arguments.get("compression_type", 0)
    if kind not in kinds:
        raise old.refuse(f"compression_type {kind!r} is not known; 0 is JPEG, 1 is WebP")
    return node(
        "ImageCompression",
        quality_range=[old["quality_lower"], old["quality_upper"]],
        compression_type=kinds[kind],
    )


def _downscale(old: Old) -> Node:
    flags = {"downscale": old["interpolation"], "upscale": old["interpolation"]}
    return node("Downscale", scale_range=[old["scale_min"], old["scale_max"]], interpolation_pair=flags)


def _solarize(old: Old) -> Node:
    limit = old["threshold"]
    thresholds = [limit, limit] if isinstance(limit, (int, float)) else list(limit)
    if max(thresholds) > 1:
        old.note(
            f"threshold {thresholds[0]:g} to {thresholds[1]:g} is meant for 8-bit pictures: taken as / 255 on 0..1"
        )
        thresholds = [min(1.0, one / EIGHT_BIT) for one in thresholds]
    return node("Solarize", threshold_range=thresholds)


def _affine(old: Old) -> Node:
    if old["mode"] not in IMGAUG_BORDERS or old["order"] not in (0, 1, 3):
        raise old.refuse(f"mode {old['mode']!r} with order {old['order']} has no equal today")
    return node(
        "Affine",
        scale=_fixed(old["scale"]),
        keep_ratio=True,
        translate_percent=old["translate_percent"],
        translate_px=old["translate_px"],
        # imgaug rotated clockwise, 2.0.8 rotates counter-clockwise.
        rotate=_negative(old["rotate"]),
        shear={"x": _fixed(old["shear"]), "y": _negative(old["shear"])},
        interpolation={0: 0, 1: 1, 3: 2}[old["order"]],
        border_mode=IMGAUG_BORDERS[old["mode"]],
        fill=old.pixel_value("cval"),
    )


def _crop_and_pad(old: Old) -> Node:
    if old["pad_mode"] not in IMGAUG_BORDERS:
        raise old.refuse(f"pad_mode {old['pad_mode']!r} has no equal today")
    return node(
        "CropAndPad",
        px=old["px"],
        percent=old["percent"],
        keep_size=old["keep_size"],
        border_mode=IMGAUG_BORDERS[old["pad_mode"]],
        fill=old.pixel_value("pad_cval"),
    )


def _superpixels(old: Old) -> Node:
    share, segments = _fixed(old["p_replace"]), _fixed(old["n_segments"])
    return node("Superpixels", p_replace=share, n_segments=segments)


def _fixed(value: Any) -> Any:
    """Return a number x as the pair [x, x]."""
    return [value, value] if isinstance(value, (int, float)) else value


def _negative(value: Any) -> list[float]:
    low, high = _fixed(value)
    return [-high, -low]


def _window(old: Old) -> Node:
    arguments = {key: value for key, value in old.arguments.items() if value is not None}
    if arguments.get("min_max_normalize", True):
        arguments.pop("min_max_normalize", None)
        old.note(MIN_MAX_NOTE)
    return own("DicomWindowShift", **arguments)


WINDOW_ARGUMENTS = (
    *("window_width_mins", "window_width_maxs", "window_center_mins", "window_center_maxs"),
    "min_max_normalize",
)
CROP_SIZE = {"height": REQUIRED, "width": REQUIRED}
BLUR = {"blur_limit": [3, 7]}
COMPRESSION = {"quality_lower": 99, "quality_upper": 100}
RESIZE = {"max_size": 1024, "interpolation": 1}

ROWS: dict[str, Row] = {
    "Blur": Row(BLUR, same()),
    "CLAHE": Row({"clip_limit": 4.0, "tile_grid_size": [8, 8]}, same()),
    "CenterCrop": Row(CROP_SIZE, same(), 1.0),
    "ChannelDropout": Row({"channel_drop_range": [1, 1], "fill_value": 0}, _channel_dropout),
    "ChannelShuffle": Row({}, same()),
    "CoarseDropout": Row(
        {
            **dict.fromkeys(("max_holes", "max_height", "max_width"), 8),
            **dict.fromkeys(("min_holes", "min_height", "min_width")),
            **{"fill_value": 0, "mask_fill_value": None},
        },
        _coarse_dropout,
    ),
    "ColorJitter": Row({"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.2}, same()),
    "Crop": Row({"x_min": 0, "y_min": 0, "x_max": 1024, "y_max": 1024}, same(), 1.0),
    "Cutout": Row({"num_holes": 8, "max_h_size": 8, "max_w_size": 8, "fill_value": 0}, _cutout),
    "DicomWindowShift": Row(dict.fromkeys(WINDOW_ARGUMENTS), _window),
    "Downscale": Row({"scale_min": 0.25, "scale_max": 0.25, "interpolation": 0}, _downscale),
    "ElasticTransform": Row(
        {"alpha": 1, "sigma": 50, "alpha_affine": 50, "approximate": False, **BORDER}, _elastic_transform
    ),
    "Equalize": Row({"mode": "cv", "by_channels": True}, same()),
    "FancyPCA": Row({"alpha": 0.1}, same()),
    "Flip": Row({}, _flip),
    "GaussNoise": Row({"var_limit": [10.0, 50.0], "mean": 0}, _gauss_noise),
    "GaussianBlur": Row({**BLUR, "sigma_limit": 0}, _gaussian_blur),
    "GlassBlur": Row({"sigma": 0.7, "max_delta": 4, "iterations": 2, "mode": "fast"}, same()),
    "GridDistortion": Row({"num_steps": 5, "distort_limit": 0.3, **BORDER}, _grid_distortion),
    "HorizontalFlip": Row({}, same()),
    "HueSaturationValue": Row({"hue_shift_limit": 20, "sat_shift_limit": 30, "val_shift_limit": 20}, same()),
    "IAAAdditiveGaussianNoise": Row({"loc": 0, "scale": [2.55, 12.75], "per_channel": False}, _additive_noise),
    "IAAAffine": Row(
        {
            **{"scale": 1.0, "translate_percent": None, "translate_px": None, "rotate": 0.0, "shear": 0.0},
            **{"order": 1, "cval": 0, "mode": "reflect"},
        },
        _affine,
    ),
    "IAACropAndPad": Row(
        {"px": None, "percent": None, "pad_mode": "constant", "pad_cval": 0, "keep_size": True}, _crop_and_pad, 1.0
    ),
    "IAAEmboss": Row({"alpha": [0.2, 0.5], "strength": [0.2, 0.7]}, same("Emboss")),
    "IAAFliplr": Row({}, same("HorizontalFlip")),
    "IAAFlipud": Row({}, same("VerticalFlip")),
    "IAAPerspective": Row({"scale": [0.05, 0.1], "keep_size": True}, same("Perspective")),
    "IAASharpen": Row({"alpha": [0.2, 0.5], "lightness": [0.5, 1.0]}, same("Sharpen", method="kernel")),
    "IAASuperpixels": Row({"p_replace": 0.1, "n_segments": 100}, _superpixels),
    "ISONoise": Row({"color_shift": [0.01, 0.05], "intensity": [0.1, 0.5]}, same()),
    "ImageCompression": Row({**COMPRESSION, "compression_type": 0}, _compression),
    "InvertImg": Row({}, same()),
    "JpegCompression": Row(COMPRESSION, _compression),
    "LongestMaxSize": Row(RESIZE, same(), 1.0),
    "MedianBlur": Row(BLUR, same()),
    "MotionBlur": Row(BLUR, _motion_blur),
    "MultiplicativeNoise": Row({"multiplier": [0.9, 1.1], "per_channel": False, "elementwise": False}, same()),
    "NoOp": Row({}, same()),
    "Normalize": Row(
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "max_pixel_value": 255.0}, same(), 1.0
    ),
    "OpticalDistortion": Row({"distort_limit": 0.05, "shift_limit": 0.05, **BORDER}, _optical_distortion),
    "PadIfNeeded": Row(
        {
            **dict.fromkeys(("min_height", "min_width"), 1024),
            **dict.fromkeys(("pad_height_divisor", "pad_width_divisor")),
            **{"border_mode": 4, "value": None, "mask_value": None},
        },
        _pad,
        1.0,
    ),
    "Posterize": Row({"num_bits": 4}, same()),
    "RGBShift": Row({"r_shift_limit": 20, "g_shift_limit": 20, "b_shift_limit": 20}, same()),
    "RandomBrightness": Row({"limit": 0.2}, _limit_alone("brightness", "contrast")),
    "RandomBrightnessContrast": Row(
        {"brightness_limit": 0.2, "contrast_limit": 0.2, "brightness_by_max": None}, _brightness_contrast
    ),
    "RandomContrast": Row({"limit": 0.2}, _limit_alone("contrast", "brightness")),
    "RandomCrop": Row(CROP_SIZE, same(), 1.0),
    "RandomGamma": Row({"gamma_limit": [80, 120], "eps": None}, same(drop=("eps",))),
    "RandomGridShuffle": Row({"grid": [3, 3]}, same()),
    "RandomResizedCrop": Row(
        {**CROP_SIZE, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": 1}, _random_resized_crop, 1.0
    ),
    "RandomRotate90": Row({}, same()),
    "RandomScale": Row({"scale_limit": 0.1, "interpolation": 1}, same()),
    "RandomSizedCrop": Row(
        {**CROP_SIZE, "min_max_height": REQUIRED, "w2h_ratio": 1.0, "interpolation": 1}, _random_sized_crop, 1.0
    ),
    "Resize": Row({**CROP_SIZE, "interpolation": 1}, same(), 1.0),
    "Rotate": Row({"limit": 90, **BORDER}, _rotate),
    "ShiftScaleRotate": Row(
        {
            **{"shift_limit": 0.0625, "scale_limit": 0.1, "rotate_limit": 45},
            **{"shift_limit_x": None, "shift_limit_y": None, **BORDER},
        },
        _shift_scale_rotate,
    ),
    "SmallestMaxSize": Row(RESIZE, same(), 1.0),
    "Solarize": Row({"threshold": 128}, _solarize),
    "ToFloat": Row({"max_value": None}, same(), 1.0),
    "ToGray": Row({}, same()),
    "ToSepia": Row({}, same()),
    "ToTensorV2": Row({"transpose_mask": False}, same(), 1.0),
    "Transpose": Row({}, same()),
    "VerticalFlip": Row({}, same()),
}

WEATHER = "it draws weather on photographs; remove it"

REFUSED: dict[str, str] = {
    **REFUSED_TODAY,
    "GridDropout": "today's moves each hole by itself; use CoarseDropout",
    "IAAPiecewiseAffine": "today's PiecewiseAffine is another one; use GridDistortion",
    "PerChannel": "there is no transform of single channels any more; remove it",
    "RandomFog": WEATHER,
    "RandomRain": WEATHER,
    "RandomShadow": WEATHER,
    "RandomSnow": WEATHER,
    "RandomSunFlare": WEATHER,
    "ToTensor": "it divided by 255 and normalized in one step; remove it, Normalize is enough",
}

COMPOSITION_P: dict[str, float] = {
    "Compose": 1.0,
    "ReplayCompose": 1.0,
    "OneOf": 0.5,
    "OneOrOther": 0.5,
    "Sequential": 0.5,
}
COMPOSITION_EXTRAS = ("bbox_params", "keypoint_params", "additional_targets", "save_key")


def translate(root: Mapping[str, Any], version: Version, notes: list[str]) -> Node:
    """Translate an old file's outermost transform, and add to ``notes`` what the user should know.

    Raises UsageError (a line without the file's name) for what has no translation.
    """
    return _translate(root, version, notes, weight=False)


def _translate(step: Any, version: Version, notes: list[str], *, weight: bool) -> Node:
    """Translate one transform. ``weight``: a child of OneOf, whose p is its weight, whatever ``always_apply``."""
    if not isinstance(step, Mapping) or not isinstance(step.get(CLASS_KEY), str):
        raise UsageError(f"a transform without {CLASS_KEY!r}")
    name = short_name(step)
    arguments = {key: value for key, value in step.items() if key != CLASS_KEY}
    if name in COMPOSITION_P:
        return _composition(name, arguments, version, notes, weight=weight)
    if name in REFUSED:
        raise UsageError(f"{name} of albumentations 0.3 to 0.5 has no equal today: {REFUSED[name]}")
    if name not in ROWS:
        raise unknown_class(step[CLASS_KEY], {*ROWS, *COMPOSITION_P}, "those of albumentations 0.3 to 0.5")
    row = ROWS[name]
    always = arguments.pop("always_apply", False)
    p = arguments.pop("p", row.p)
    unknown = [key for key in arguments if key not in row.defaults]
    if unknown:
        known = [*row.defaults, "always_apply", "p"]
        hint = nearest(unknown[0], known) or f"; it took {', '.join(known)}"
        raise UsageError(f"{name} had no argument {unknown[0]!r} in albumentations 0.3 to 0.5{hint}")
    filled = {**row.defaults, **arguments}
    missing = [key for key, value in filled.items() if value is REQUIRED]
    if missing:
        raise UsageError(f"{name}: {missing[0]!r} is missing")
    try:
        today = row.today(Old(name, filled, version, notes))
    except (TypeError, ValueError, IndexError):
        raise UsageError(f"{name}: an argument has a value of the wrong kind: {arguments}") from None
    return {**today, "p": 1.0 if always and not weight else _probability(p, name)}


def _composition(name: str, arguments: Node, version: Version, notes: list[str], *, weight: bool) -> Node:
    p = arguments.pop("p", COMPOSITION_P[name])
    children = arguments.pop("transforms", None)
    if not isinstance(children, list):
        raise UsageError(f"'transforms' of {name} is not a list")
    for extra in COMPOSITION_EXTRAS:
        if arguments.pop(extra, None) and extra != "save_key":
            notes.append(f"{name}: {extra} is left out: there are only pictures here")
    if arguments:
        raise UsageError(f"{name} had no argument {next(iter(arguments))!r} in albumentations 0.3 to 0.5")
    if name == "Sequential" and not weight:
        p = 1.0  # 0.5 applied it always, whatever its p
    steps = [_translate(child, version, notes, weight=name == "OneOf") for child in children]
    return node("Compose" if name == "ReplayCompose" else name, transforms=steps, p=_probability(p, name))


def _probability(value: Any, name: str) -> float:
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return float(value)
    raise UsageError(f"{name}: p is {value!r}, a number from 0 to 1 is expected")
