"""The transforms that albumentations 2.0.8 can save: each is read, replaced or refused with advice.

Each class has one row, in :data:`READ`, :data:`TOLD` or :data:`REFUSED`. A class that can't work on single pictures, or
would leave the scale of 0..1, is refused when the file is read, not at the first picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from common.errors import UsageError, nearest

CLASS_KEY = "__class_fullname__"

Node = dict[str, Any]


def node(name: str, **arguments: Any) -> Node:
    """Return a transform of albumentations in the form of a file."""
    return {CLASS_KEY: name, **arguments}


def short_name(step: Mapping[str, Any]) -> str:
    """Return a transform's class without its module."""
    return str(step[CLASS_KEY]).rpartition(".")[2]


def is_librarys(fullname: str) -> bool:
    """Return whether a name in a file, bare or with its module, is albumentations'."""
    module = fullname.rpartition(".")[0]
    return module in ("", "albumentations") or module.startswith("albumentations.")


NAMES = """
AdditiveNoise AdvancedBlur Affine AtLeastOneBBoxRandomCrop AutoContrast Blur CLAHE CenterCrop ChannelDropout
ChannelShuffle ChromaticAberration CoarseDropout ColorJitter Compose Crop CropAndPad D4 Defocus Downscale
ElasticTransform Emboss Equalize Erasing FancyPCA FrequencyMasking GaussNoise GaussianBlur GlassBlur GridDistortion
GridDropout GridElasticDeform HEStain HorizontalFlip HueSaturationValue ISONoise Illumination ImageCompression
InvertImg LongestMaxSize MedianBlur Morphological MotionBlur MultiplicativeNoise NoOp OneOf OneOrOther
OpticalDistortion Pad PadIfNeeded Perspective PiecewiseAffine PixelDropout PlanckianJitter PlasmaBrightnessContrast
PlasmaShadow Posterize RGBShift RandomBrightnessContrast RandomCrop RandomCropFromBorders RandomFog RandomGamma
RandomGravel RandomGridShuffle RandomOrder RandomRain RandomResizedCrop RandomRotate90 RandomScale RandomShadow
RandomSizedCrop RandomSnow RandomSunFlare RandomToneCurve ReplayCompose Resize RingingOvershoot Rotate SafeRotate
SaltAndPepper SelectiveChannelTransform Sequential Sharpen ShiftScaleRotate ShotNoise SmallestMaxSize Solarize
SomeOf Spatter SquareSymmetry Superpixels ThinPlateSpline TimeMasking TimeReverse ToGray ToRGB ToSepia Transpose
UnsharpMask VerticalFlip XYMasking ZoomBlur
"""

READ = frozenset(NAMES.split())
"""Read as the library reads them."""


def _to_tensor(step: Node) -> tuple[Node, str]:
    return _nothing(step), "ToTensorV2: the loader puts channels first by itself: it does nothing"


def _to_float(step: Node) -> tuple[Node, str]:
    if step.get("max_value") not in (None, 255, 1):
        raise UsageError(f"ToFloat: max_value {step['max_value']}: pictures come on 0..1 here; remove ToFloat")
    return _nothing(step), "ToFloat: pictures come on 0..1 here: it does nothing"


def _nothing(step: Node) -> Node:
    return node("NoOp", p=step.get("p", 1.0))  # keep p: within a OneOf it is a weight


def _normalize(step: Node) -> tuple[Node, str]:
    if step.get("max_pixel_value", 255.0) in (1, None):
        return step, ""
    if step.get("max_pixel_value", 255.0) != 255:
        raise UsageError(f"Normalize has max_pixel_value {step['max_pixel_value']}; pictures are on 0..1: use 1.0")
    note = "Normalize with max_pixel_value 255 is taken as mean and std of pictures on 0..1"
    return {**step, "max_pixel_value": 1.0}, note


TOLD: dict[str, Callable[[Node], tuple[Node, str]]] = {
    "Normalize": _normalize,
    "ToFloat": _to_float,
    "ToTensorV2": _to_tensor,
}
"""Read in other words; the second value is what the user should know, or nothing."""

NO_BOXES = "it crops around boxes, and pictures have none here; use RandomResizedCrop"
NO_MASK = "it needs a mask, and pictures have none here"
NO_REFERENCE = "it needs other pictures as references, which a file can't hold; remove it"
VOLUMES = "it takes volumes, and pictures come one at a time; "
BASE = "it is the base of other classes and does nothing by itself; remove it"

REFUSED: dict[str, str] = {
    "BBoxSafeRandomCrop": NO_BOXES,
    "BaseCompose": BASE,
    "BasicTransform": BASE,
    "CenterCrop3D": f"{VOLUMES}use CenterCrop",
    "CoarseDropout3D": f"{VOLUMES}use CoarseDropout",
    "ConstrainedCoarseDropout": f"{NO_MASK}; use CoarseDropout",
    "CropNonEmptyMaskIfExists": f"{NO_MASK}; use RandomCrop",
    "CubicSymmetry": f"{VOLUMES}use SquareSymmetry",
    "DualTransform": BASE,
    "FDA": NO_REFERENCE,
    "FromFloat": "it makes whole numbers of the picture, and the network takes float32; remove it",
    "HistogramMatching": NO_REFERENCE,
    "ImageOnlyTransform": BASE,
    "Lambda": "a function can't be read from a file; write a class as transforms/README.md shows",
    "MaskDropout": f"{NO_MASK}; use CoarseDropout",
    "Mosaic": NO_REFERENCE,
    "OverlayElements": NO_REFERENCE,
    "Pad3D": f"{VOLUMES}use Pad",
    "PadIfNeeded3D": f"{VOLUMES}use PadIfNeeded",
    "PixelDistributionAdaptation": NO_REFERENCE,
    "RandomCrop3D": f"{VOLUMES}use RandomCrop",
    "RandomCropNearBBox": NO_BOXES,
    "RandomSizedBBoxSafeCrop": NO_BOXES,
    "TextImage": "it writes words on pictures by a font's file, which the transform file doesn't hold; remove it",
    "ToTensor3D": f"{VOLUMES}remove it, the loader puts channels first by itself",
    "Transform3D": BASE,
}
"""Refused by name, with advice."""

MOST_SIDE = 4096  # pixels: three channels then take 200 MB
MOST_OF: dict[str, float] = {
    **dict.fromkeys(("height", "width", "size", "max_size", "max_size_hw", "min_height", "min_width"), MOST_SIDE),
    **dict.fromkeys(("pad_height_divisor", "pad_width_divisor", "padding", "px"), MOST_SIDE),
    **dict.fromkeys(("scale_limit", "percent"), 8),
}
"""The most that arguments may be which make pictures larger: a file of a line can ask for gigabytes."""

WINDOWS = ("window", "hounsfield", "dicom", "clip")  # in the names that other programs give to a window


def check_size(step: Node) -> None:
    """Raise UsageError if a step would make pictures larger than :data:`MOST_SIDE`."""
    for name, most in MOST_OF.items():
        around = [step.get(name)]
        while around:
            value = around.pop()
            if isinstance(value, (list, tuple)):
                around += value
            elif isinstance(value, (int, float)) and abs(value) > most:
                raise UsageError(f"{short_name(step)}: {name} is {value}; at most {most:g}")


def unknown_class(fullname: str, known: Collection[str], only: str) -> UsageError:
    """Return the error for a class without a row; ``only``: whose classes are known, in words.

    Files of other programs have their own classes, most of them windows; the advice says what to do instead.
    """
    short = fullname.rpartition(".")[2]
    hint = nearest(short, known)
    if is_librarys(fullname) and hint and not any(word in short.lower() for word in WINDOWS):
        return UsageError(f"the transform {short!r} is not known{hint}")
    return UsageError(
        f"the transform {short!r} is not known; only {only} are: where it makes windows of Hounsfield units, delete "
        "the step and use --data_windows, otherwise delete it"
    )
