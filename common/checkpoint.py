"""Checkpoints: dicts of plain types and tensors, written atomically, read without unpickling objects."""

from __future__ import annotations

import argparse
import errno
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from common.errors import UsageError, WorkError
from common.files import atomic_path
from common.foreign import Unreadable, check_archive, check_written

FORMAT_VERSION = 1
WRAPPED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
BEST_WEIGHTS = "best"
BEST, LAST, PREVIOUS = "best.pt", "last.pt", "previous.pt"
RAW = "raw"  # name of the trained weights, beside the averages' names

# The one list of keys. Every checkpoint has the required ones, which predict and evaluate need. last.pt also has the
# optional ones, which resuming needs.
REQUIRED_KEYS: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "model": dict,  # state_dict
    "config": dict,  # the run's options, flat
    "transforms": dict,  # name of a pipeline (train, valid) -> its JSON document
    "class_names": (list, tuple),
    "prevalences": (list, tuple),  # each class's share of positives among the training images
    "iteration": int,  # finished micro-batches
    "step": int,  # finished optimizer updates
    "metrics": dict,  # of the last validation
    "averages": dict,  # name (ema, swa) -> state, with the averaged state_dict under "model"; {} without averages
    "best_weights": str,  # the weights with the best metric: raw or an average's name
}
# best.pt also has: how the training's images were stored, so that others can be brought to the same form; the hash of
# the images and labels of training and validation; and what it and its ancestors learnt from (see common/lineage.py).
DESCRIPTIVE_KEYS = (*REQUIRED_KEYS, "images", "data_hash", "lineage")
OPTIONAL_KEYS = (
    "images",
    "data_hash",
    "lineage",
    "optimizer",
    "scheduler",
    "scaler",
    "guard",
    "loop",
    "sampler",
    "callbacks",
    "rng",
)

PLAIN_TYPES = (type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter)
DICT_TYPES = (dict, OrderedDict, Counter)
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
MOST_PICKLE_BYTES = 2**25  # of the part without tensors; a run has some hundred kilobytes
MOST_VALUES, MOST_DEPTH = 1_000_000, 40  # a value counts at each place that shares it
OLD_PICKLES = 5  # of torch before 1.6: magic number, version, system, contents, keys of the tensors that follow
MOST_SHARED = 8  # uses of a file's numbers: layers share weights, and averages begin as the weights


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write ``contents`` and the format version to ``path``, atomically.

    Raises WorkError for a full or read-only disk. Two bugs raise ValueError: a key that is missing or not in the list
    above, and a value that is neither a plain type nor a tensor; the message names its place.
    """
    contents = {**contents, "format_version": FORMAT_VERSION}
    missing = [key for key in REQUIRED_KEYS if key not in contents]
    unknown = [key for key in contents if key not in REQUIRED_KEYS and key not in OPTIONAL_KEYS]
    if missing or unknown:
        raise ValueError(f"a checkpoint has the keys of common/checkpoint.py; missing: {missing}, unknown: {unknown}")
    for key, value in contents.items():
        _check_plain(value, key)
    with atomic_path(path) as temporary:
        _write(temporary, contents)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU and check its format and keys.

    Raises UsageError if ``path`` is no file, WorkError if it is cut, damaged, a pickle, from another program or from a
    newer version of this one. The message names usable checkpoints beside it.
    """
    try:
        return _load(path)
    except WorkError as error:
        raise WorkError(f"{error}{_instead(path)}") from error


def _instead(path: Path) -> str:
    """Return the end of a message that names the usable checkpoints beside ``path``."""
    usable = []
    for other in sorted(path.parent.glob("*.pt"), key=lambda file: file.name != PREVIOUS):
        with suppress(WorkError, UsageError):
            if other != path:
                contents = _load(other)
                kind = "" if "optimizer" in contents else ", weights only"
                usable.append(f"{other} (iteration {contents['iteration']}{kind})")
    return f"; what can be used: {', '.join(usable)}" if usable else ""


def _load(path: Path) -> dict[str, Any]:
    contents = _read(path)
    if _is_state_dict(contents):
        raise WorkError(
            f"{path}: a plain state_dict of {len(contents)} tensors, not a checkpoint of this project (no config, no "
            "transforms); to start a training from it, give it to train.py as --net_weight_file"
        )
    return _check_contents(path, contents)


def metric_key(key: str, weights: str) -> str:
    """Return the metric's key for ``weights``: valid/x stays valid/x for the trained ones, is valid_ema/x for ema."""
    prefix, _, name = key.partition("/")
    return key if weights == RAW else f"{prefix}_{weights}/{name}"


def chosen_weights(checkpoint: dict[str, Any], choice: str = BEST_WEIGHTS) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the name (raw, or an average's) and the state_dict of the chosen weights.

    :data:`BEST_WEIGHTS` chooses those that validated best. Raises UsageError, naming the known ones, for an average
    that the checkpoint doesn't have, and for one that had not begun.
    """
    name = checkpoint["best_weights"] if choice == BEST_WEIGHTS else choice
    if name == RAW:
        return name, checkpoint["model"]
    if name not in checkpoint["averages"]:
        known = ", ".join((BEST_WEIGHTS, RAW, *checkpoint["averages"]))
        raise UsageError(f"--net_weights={name}: the checkpoint has no such weights, it has {known}")
    validated = {key.partition("/")[0] for key in checkpoint["metrics"]}
    if "valid" in validated and f"valid_{name}" not in validated:
        raise UsageError(
            f"--net_weights={name}: this average had not begun at iteration {checkpoint['iteration']}, where these "
            "weights are from; a later checkpoint of the run, such as last.pt, may have it"
        )
    return name, checkpoint["averages"][name]["model"]


def load_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a model's weights onto the CPU, from a checkpoint of this project or a plain state_dict of torch.

    The forms of timm's and torchvision's training scripts, of Lightning and of torch before 1.6 are read too. Errors as
    :func:`load_checkpoint`.
    """
    contents = _read(path)
    for key in WRAPPED_KEYS:  # timm's and torchvision's scripts save the state_dict beside other things
        if isinstance(contents, dict) and "format_version" not in contents and _is_state_dict(contents.get(key)):
            return contents[key]
    return contents if _is_state_dict(contents) else chosen_weights(_check_contents(path, contents))[1]


def _check_plain(value: Any, where: str) -> None:
    """Refuse what ``weights_only`` would not load back. It compares exact types: np.float64 is refused."""
    if type(value) in DICT_TYPES:
        for key, item in value.items():
            if type(key) not in (str, int):
                raise ValueError(
                    f"checkpoint: {where} has the key {key!r} of type {type(key).__name__}; use str or int"
                )
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            _check_plain(item, f"{where}[{position}]")
    elif type(value) not in PLAIN_TYPES:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"checkpoint: {where} is a {kind}; only plain types and tensors are saved")


def _write(path: Path, contents: dict[str, Any]) -> None:
    """torch.save to an open file. torch may hide the file's OSError in a RuntimeError: raise the OSError."""
    try:
        with path.open("wb") as file:
            torch.save(contents, file)
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from None
        raise


def _read(path: Path) -> Any:
    """Return what torch.load finds in ``path``. Every failure becomes an error of one line."""
    _check_is_file(path)
    try:
        check_written(path)
        _check_archive(path)
        # timm and torchvision save a training's options beside its weights. Loading a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the form before 1.6 with a newer pickle
            contents = torch.load(path, map_location="cpu", weights_only=True)
        _check_size(contents, path.stat().st_size)
        return contents
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
        raise WorkError(
            f"{path}: holds Python objects{f' ({found[1]})' if found else ''}, which are never unpickled here, since "
            "that runs their code; give a checkpoint of this project or a plain state_dict"
        ) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise WorkError(f"{path}: cannot be read ({error.strerror}); check its owner and mode") from error
        raise WorkError(f"{path}: cannot be read ({error})") from error
    except WorkError:
        raise
    except Exception as error:  # a damaged file makes torch raise anything, struct.error and AssertionError too
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"{path}: damaged, or not a checkpoint of this project (torch says: {reason[:200]})") from error


def _check_is_file(path: Path) -> None:
    if path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: no such weight file, and no folder {folder}")
    found = sorted(file.name for file in folder.glob("*.pt"))
    listing = f"{folder} has {', '.join(found)}" if found else f"there is no .pt file in {folder}"
    raise UsageError(
        f"{path}: {'is a folder, not a weight file' if path.is_dir() else 'no such weight file'}; {listing}"
    )


def _check_archive(path: Path) -> None:
    """Refuse what is not a complete torch archive (a zip file). torch skips the checksums; they are checked here."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
    if not start:
        raise WorkError(f"{path}: is empty")
    if start.startswith(PICKLE_MAGIC):  # the form of torch before 1.6, whose numbers and tensors are read too
        with path.open("rb") as file:
            _check_pickles(path, file.read(MOST_PICKLE_BYTES), OLD_PICKLES)
        return
    if not start.startswith(ZIP_MAGIC[: len(start)]):
        raise WorkError(f"{path}: not a file of torch; give a checkpoint of this project, such as best.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_archive(archive)
            head = [member for member in members if member.filename.endswith("/data.pkl")]
            if any(member.file_size > MOST_PICKLE_BYTES for member in head):
                raise WorkError(f"{path}: more than {MOST_PICKLE_BYTES:,} bytes of it are no tensors")
            damaged = archive.testzip()
            if damaged is None:
                for member in head:
                    _check_pickles(path, archive.read(member), 1)
    except Unreadable as error:
        raise WorkError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WorkError(f"{path}: is cut or damaged") from error
    if damaged is not None:
        raise WorkError(f"{path}: is damaged (checksum of {damaged})")
    if not head:
        raise WorkError(f"{path}: a zip file, but not of torch; give a checkpoint of this project, such as best.pt")


def _check_pickles(path: Path, content: bytes, count: int) -> None:
    """Raise WorkError if the ``count`` pickles at the start of ``content`` have many steps. Each may make a value."""
    file = io.BytesIO(content)
    steps = chain.from_iterable(pickletools.genops(file) for _ in range(count))
    try:
        if sum(1 for _ in islice(steps, MOST_VALUES + 1)) > MOST_VALUES:
            raise WorkError(f"{path}: more than {MOST_VALUES:,} steps of its pickle; give a plain state_dict")
    except ValueError as error:  # it ends, or no step begins here: torch.load says so
        if len(content) == MOST_PICKLE_BYTES:
            raise WorkError(f"{path}: more than {MOST_PICKLE_BYTES:,} bytes of it are no tensors") from error


def _is_state_dict(contents: Any) -> bool:
    return (
        isinstance(contents, dict)
        and bool(contents)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in contents.items())
    )


def _check_contents(path: Path, contents: Any) -> dict[str, Any]:
    if not isinstance(contents, dict) or type(contents.get("format_version")) is not int:
        raise WorkError(
            f"{path}: a file of torch, but not a checkpoint of this project; give best.pt or last.pt of a run"
        )
    version = contents["format_version"]
    if version > FORMAT_VERSION:
        raise WorkError(
            f"{path}: written by a newer version of this project (format {version}, this one reads up to "
            f"{FORMAT_VERSION}); update the code"
        )
    missing = [key for key in REQUIRED_KEYS if key not in contents]
    if missing:
        raise WorkError(f"{path}: the checkpoint lacks {', '.join(missing)}")
    wrong = [key for key, kind in REQUIRED_KEYS.items() if not isinstance(contents[key], kind)]
    wrong = wrong or [key for key, is_right in FORMS.items() if key in contents and not is_right(contents[key])]
    if wrong:
        raise WorkError(f"{path}: the checkpoint's {', '.join(wrong)} has the wrong type")
    if len(contents["prevalences"]) != len(contents["class_names"]):
        raise WorkError(f"{path}: the checkpoint has not one prevalence for each of its class_names")
    if contents["best_weights"] not in (RAW, *contents["averages"]):
        raise WorkError(f"{path}: the checkpoint's best_weights names an average it lacks")
    return contents


def _check_size(contents: Any, file_bytes: int) -> None:
    """Raise ValueError if walking the contents would take forever, or their tensors more memory than the file has.

    Values that share parts multiply at each level. A tensor with a stride of 0 repeats a number any number of times.
    """
    around, count, tensor_bytes = [(contents, 0)], 0, 0
    while around:
        value, depth = around.pop()
        count += 1
        if count > MOST_VALUES or depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_VALUES:,} values, or nested more than {MOST_DEPTH} deep")
        if isinstance(value, dict):
            around += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple, set)):
            around += [(item, depth + 1) for item in value]
        elif isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_meta or value.is_quantized:
                raise ValueError("a tensor that is no plain array of numbers")
            tensor_bytes += value.numel() * value.element_size()
            if tensor_bytes > MOST_SHARED * file_bytes:
                raise ValueError("tensors of more numbers than the file holds")


def _plain_mapping(most: int) -> Callable[[Any], bool]:
    """Return a check for a dict of at most ``most`` plain values, nested in any way, without tensors."""

    def check(value: Any) -> bool:
        around, count = [value], 0
        while around:
            item = around.pop()
            count += 1
            if count > most or not isinstance(item, (dict, list, tuple, str, int, float, type(None))):
                return False
            if isinstance(item, dict):
                around += [*item, *item.values()]
            elif isinstance(item, (list, tuple)):
                around += item
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)

    return check


def _is_average(value: Any) -> bool:
    return isinstance(value, dict) and _is_state_dict(value.get("model"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Checks of a checkpoint's values beyond their types, since a file may come from anybody.
FORMS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: _is_state_dict(value),
    "config": _plain_mapping(5000),
    "transforms": lambda value: _plain_mapping(50_000)(value) and all(isinstance(one, dict) for one in value.values()),
    "class_names": lambda value: all(isinstance(name, str) for name in value),
    "prevalences": lambda value: all(_is_number(share) and 0 <= share <= 1 for share in value),
    "iteration": lambda value: value >= 0,
    "step": lambda value: value >= 0,
    "metrics": lambda value: all(isinstance(key, str) and _is_number(number) for key, number in value.items()),
    "averages": lambda value: all(isinstance(name, str) and _is_average(one) for name, one in value.items()),
    "images": lambda value: value is None or _plain_mapping(1000)(value),
    "data_hash": lambda value: value is None or isinstance(value, str),
}
