"""Read YAML, JSON and NumPy files from others as plain values, within limits of bytes, depth and size.

A file of a few hundred bytes can expand to gigabytes (aliases of aliases), to any depth, or to a number too long to
print. A document beyond the limits is refused before it is built.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 4 * 2**20
MOST_DEPTH = 40
MOST_VALUES = 200_000
MOST_HOLES = 2**30  # a compressing file system shows zeros as holes
LARGEST_INTEGER = 2**63 - 1  # what a table's column, a tensor and SQLite can hold


class Unreadable(ValueError):
    """The file holds no usable document. The message says why, without values from the file."""


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Return the JSON document of a file: dict, list, str, int, float (finite), bool, None.

    Raises OSError if it can't be read, Unreadable if it is no JSON or beyond the limits.
    """
    return parse_json(read_text(path, most_bytes))


def read_yaml(path: Path, *, texts: bool = False, most_bytes: int = MOST_BYTES) -> Any:
    """Return the YAML document of a file as :func:`read_json` does; ``texts``: keep every scalar as text.

    Dates become ISO texts. Numbers may be infinite, as YAML allows. Raises OSError and Unreadable, as read_json.
    """
    return parse_yaml(read_text(path, most_bytes), texts=texts)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return a file's text (UTF-8, with or without a byte order mark); OSError, or Unreadable if it is too large."""
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text (byte {error.start})") from None


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return a file's content; OSError if it can't be read, Unreadable if it is too large."""
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise Unreadable(f"larger than {most_bytes:,} bytes")
    return content


def check_bytes(path: Path, most_bytes: int) -> None:
    """Raise Unreadable, before reading it, if a file is larger than this; OSError if it doesn't exist."""
    if path.stat().st_size > most_bytes:
        raise Unreadable(f"larger than {most_bytes:,} bytes")


def check_written(path: Path) -> None:
    """Raise Unreadable if most of a large file was never written; reading it would take for ever.

    An interrupted download or copy can leave such a file, if the program reserved the space first.
    """
    facts = path.stat()
    holes = facts.st_size - 512 * facts.st_blocks
    if holes > MOST_HOLES and holes > facts.st_size / 2:
        raise Unreadable(f"{holes:,} of its {facts.st_size:,} bytes were never written; copy it again")


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise Unreadable if the members of a zip file need more memory than the file has bytes.

    torch and NumPy don't compress, and in an honest file no member overlaps another.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Unreadable("a compressed zip file, which neither torch nor NumPy's savez writes")
    if sum(member.file_size for member in members) > Path(archive.filename).stat().st_size:
        raise Unreadable("a zip file whose parts lie in each other")


def read_arrays(path: Path, most_bytes: int) -> dict[str, np.ndarray]:
    """Return the arrays, without objects, in a file of ``numpy.savez``; OSError, or Unreadable (a ValueError)."""
    import numpy as np

    try:
        check_bytes(path, most_bytes)
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
        raise Unreadable(f"not a file of arrays ({' '.join(str(error).split())[:100]})") from None


def parse_json(text: str | bytes) -> Any:
    """Return a JSON document; see :func:`read_json`."""
    try:
        return plain_values(json.loads(text, parse_constant=_no_number), finite=True)
    except RecursionError:
        raise Unreadable(f"nested more than {MOST_DEPTH} deep") from None
    except Unreadable:
        raise
    except ValueError as error:  # from JSON, UTF-8, or a number with thousands of digits
        place = (
            f"line {error.lineno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else "a number of too many digits"
        )
        raise Unreadable(f"not a JSON file ({place})") from None


def parse_yaml(text: str, *, texts: bool = False) -> Any:
    """Return a YAML document; see :func:`read_yaml`. Size and depth are checked before it is built."""
    import yaml

    # Use libyaml's parser if PyYAML has it: it is ten times as fast.
    safe, base = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "BaseLoader"))
    try:
        _check_events(yaml.parse(text, Loader=base))
        return plain_values(yaml.load(text, Loader=base if texts else safe))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise Unreadable(f"not a YAML file ({place}{getattr(error, 'problem', None) or 'unreadable'})") from None
    except RecursionError:
        raise Unreadable(f"nested more than {MOST_DEPTH} deep") from None
    except Unreadable:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError):  # an impossible date, or a tag on another type
        raise Unreadable("a value is not of the type that its tag names") from None


def plain_values(document: Any, *, finite: bool = False) -> Any:
    """Return a document with the same values in plain types; Unreadable if it is beyond the limits.

    ``finite``: also refuse numbers that are not finite.
    """
    return _Walk(finite).plain(document, 0)


class _Walk:
    """Walks a document and counts its values; a shared part counts each time that it appears."""

    def __init__(self, finite: bool) -> None:
        self.finite = finite
        self.values = 0

    def plain(self, value: Any, depth: int) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise Unreadable(f"more than {MOST_VALUES:,} values")
        if depth > MOST_DEPTH:
            raise Unreadable(f"nested more than {MOST_DEPTH} deep")
        if isinstance(value, dict):
            return {self._key(key): self.plain(one, depth + 1) for key, one in value.items()}
        if isinstance(value, list):
            return [self.plain(one, depth + 1) for one in value]
        if self.finite and isinstance(value, float) and not math.isfinite(value):
            raise Unreadable("a number that is not finite")
        return _scalar(value)

    @staticmethod
    def _key(key: Any) -> str:
        if not isinstance(key, (str, bool, int, float)) and key is not None:
            raise Unreadable("a name is no text")
        return str(_scalar(key))


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # replaces half a surrogate pair
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise Unreadable("a whole number beyond 2**63")
        return value
    if hasattr(value, "isoformat"):  # YAML's dates
        return value.isoformat()
    raise Unreadable(f"a value of type {type(value).__name__}")


def _no_number(word: str) -> NoReturn:
    raise Unreadable(f"{word}, which is no JSON number")


def _check_events(events: Iterator[Any]) -> None:
    """Raise Unreadable if the document is too deep, or too large with its aliases expanded."""
    import yaml

    sizes: dict[str, int] = {}  # number of values that an anchor names
    open_: list[tuple[str | None, int]] = []  # of each open list or mapping: anchor, values before it
    total = 0

    def add(values: int) -> None:
        nonlocal total
        total += values
        if total > MOST_VALUES:
            raise Unreadable(f"more than {MOST_VALUES:,} values")

    for event in events:
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            add(1)
            open_.append((event.anchor, total))
            if len(open_) > MOST_DEPTH:
                raise Unreadable(f"nested more than {MOST_DEPTH} deep")
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before + 1
        elif isinstance(event, yaml.ScalarEvent):
            add(1)
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise Unreadable("a part holds itself")
            add(sizes.get(event.anchor, 1))  # the reader refuses an unknown anchor
