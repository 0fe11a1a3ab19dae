"""Lineage: hashes of the images that a network learnt from, to find out which other images it has seen.

A lineage holds 64-bit hashes of pictures and of names (pseudonyms of patients and studies), of all images that the
network, or any network that it started from, was trained on. Pictures can always be compared. Names can be compared
only if the same key made the pseudonyms. Anyone with a lineage and a scan can tell whether the scan was trained on, so
share a lineage only with people who may know that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import WorkError
from common.files import atomic_path
from common.foreign import parse_json, read_arrays

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

NOTHING = np.zeros(0, dtype=np.uint64)
HEX_DIGITS = 16  # of 64 bits
PERSON = b"lineage"  # keeps these hashes different from other hashes of names
FORMAT_VERSION = 1
MOST_BYTES = 2**27  # of a file; 750,000 images in five folds take 8 MB


def picture_hashes(digests: Sequence[str]) -> Hashes:
    """Return the first 64 bits of pictures' hexadecimal hashes (N,); 0 for "", a picture that identifies nobody."""
    return np.fromiter((int(text[:HEX_DIGITS] or "0", 16) for text in digests), np.uint64, len(digests))


def name_hashes(names: npt.ArrayLike) -> Hashes:
    """Return a hash of each pseudonym (N,); 0 for ""."""
    different, place = np.unique(np.asarray(names).astype(str), return_inverse=True)
    digests = (hashlib.blake2b(name.encode(), digest_size=8, person=PERSON).digest() for name in different.tolist())
    values = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    return np.where(different == "", np.uint64(0), values)[place]


@dataclass(frozen=True)
class Images:
    """N images to compare: hashes of ``pictures`` (N,) and of ``names`` (N, K), 0 for none.

    ``key`` is the fingerprint of the key that made the names, "" if it is unknown. ``groups`` (N,) numbers the images'
    groups: if a network learnt from one image of a group, it has seen the whole group.
    """

    pictures: Hashes
    names: Hashes
    key: str
    groups: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lineage:
    """What a network learnt from: sorted hashes of ``pictures``, and of ``names`` by the fingerprint of their key.

    ``unknown`` names sources that never say what they learnt from: weights of other programs, CSV files. ``lost`` names
    networks of this program without lineage, whose training data is gone or changed.
    """

    pictures: Hashes = field(default_factory=lambda: NOTHING)
    names: Mapping[str, Hashes] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def __or__(self, other: Lineage) -> Lineage:
        """Return the union of both."""
        names = {
            key: np.union1d(self.names.get(key, NOTHING), other.names.get(key, NOTHING))
            for key in sorted({*self.names, *other.names})
        }
        return Lineage(
            np.union1d(self.pictures, other.pictures),
            names,
            tuple(dict.fromkeys(self.unknown + other.unknown)),
            tuple(dict.fromkeys(self.lost + other.lost)),
        )

    def state(self) -> dict[str, Any]:
        """Return the lineage for a checkpoint, in plain types and tensors (int64 with the bits of the hashes)."""
        return {
            "format_version": FORMAT_VERSION,
            "pictures": _tensor(self.pictures),
            "names": {key: _tensor(values) for key, values in self.names.items()},
            "unknown": list(self.unknown),
        }


def read_lineage(state: Any, source: str) -> Lineage:
    """Return the lineage from a :meth:`Lineage.state`; WorkError, naming ``source``, if it is damaged."""
    try:
        if state["format_version"] != FORMAT_VERSION:
            raise ValueError(f"of format {state['format_version']}")
        names = {str(key): _hashes(values) for key, values in state["names"].items()}
        return Lineage(_hashes(state["pictures"]), names, tuple(map(str, state["unknown"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkError(f"{source}: what it says of its lineage is damaged ({' '.join(str(error).split())})") from None


def _tensor(values: Hashes) -> Any:
    import torch

    return torch.from_numpy(values.view(np.int64).copy())


def _hashes(tensor: Any) -> Hashes:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise ValueError("hashes are no list of 64-bit numbers")
    return np.unique(tensor.numpy().view(np.uint64))


def learnt(images: Images, places: npt.NDArray[np.int64]) -> Lineage:
    """Return the lineage of a network trained on the images at ``places``."""
    names = images.names[places].ravel()
    known = {images.key: _known(names)} if images.key and names.any() else {}
    return Lineage(_known(images.pictures[places]), known)


def _known(values: Hashes) -> Hashes:
    found = np.unique(values)
    return found[found != 0]


@dataclass(frozen=True)
class Overlap:
    """The result of comparing N images with lineages.

    - ``seen``: a network learnt from the image, or from another image of its group.
    - ``unchecked``: neither picture nor name could be compared with all networks that predicted the image.
    - ``by_picture``: only the picture could be compared, since the names come from another key.
    - ``unknown``, ``lost``: as in :class:`Lineage`, of all these networks.
    """

    seen: Flags
    unchecked: Flags
    by_picture: Flags
    unknown: tuple[str, ...]
    lost: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the counts that a result must report, in JSON's types."""
        left = ~self.seen
        return {
            "images_left_out": int(self.seen.sum()),
            "images_unchecked": int((self.unchecked & left).sum()),
            "images_checked_by_picture_alone": int((self.by_picture & left).sum()),
            "unknown_lineage": list(self.unknown),
            "lost_lineage": list(self.lost),
        }


def _compare(lineage: Lineage, images: Images) -> tuple[Flags, Flags, bool]:
    """Return which images a lineage has seen, which pictures could be compared, and whether names could be."""
    pictured = images.pictures != 0
    direct = _among(images.pictures, lineage.pictures)
    named = bool(images.key) and images.key in lineage.names
    if named:
        direct |= _among(images.names, lineage.names[images.key]).any(axis=1)
    groups = np.zeros(int(images.groups.max(initial=-1)) + 1, dtype=bool)
    groups[images.groups[direct]] = True
    return groups[images.groups], pictured, named


def _among(values: Hashes, known: Hashes) -> Flags:
    """Return whether each value is in ``known``, which is sorted; 0 never is."""
    if not len(known):
        return np.zeros(values.shape, dtype=bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return (known[places] == values) & (values != 0)


@dataclass(frozen=True)
class Provenance:
    """Which of S networks made the predictions (or features) of N images: ``used`` (N, S), and their ``lineages``."""

    lineages: tuple[Lineage, ...]
    used: Flags

    @classmethod
    def of(cls, lineages: Sequence[Lineage], count: int) -> Provenance:
        """Return the provenance of ``count`` images that all the networks predicted."""
        return cls(tuple(lineages), np.ones((count, len(lineages)), dtype=bool))

    @property
    def unknown(self) -> tuple[str, ...]:
        """The sources with unknown lineage."""
        return tuple(dict.fromkeys(name for lineage in self.lineages for name in lineage.unknown))

    def beside(self, other: Provenance) -> Provenance:
        """Return the provenance of a result that was made from both, row by row."""
        return Provenance(self.lineages + other.lineages, np.hstack([self.used, other.used]))

    def rows(self, places: npt.ArrayLike) -> Provenance:
        """Return the provenance of the images at ``places``."""
        return Provenance(self.lineages, self.used[np.asarray(places, dtype=np.int64)])

    def overlap(self, images: Images, places: npt.NDArray[np.int64]) -> Overlap:
        """Compare the N predicted images, at ``places`` among ``images``, with the lineages of their networks.

        ``images`` are those of a whole dataset, so that groups are complete. A place of -1 is an unknown image, which
        stays unchecked. All code that must know whether an image was seen asks here.
        """
        count = len(places)
        seen, unchecked, by_picture = (np.zeros(count, dtype=bool) for _ in range(3))
        unknown: dict[str, None] = {}
        lost: dict[str, None] = {}
        there = places >= 0
        for column, lineage in enumerate(self.lineages):
            used = self.used[:, column]
            if not used.any():
                continue
            unknown |= dict.fromkeys(lineage.unknown)
            lost |= dict.fromkeys(lineage.lost)
            learnt_from, pictured, named = _compare(lineage, images)
            seen |= used & there & learnt_from[places]
            silent = bool(lineage.unknown or lineage.lost)
            compared = there & (pictured[places] | (named & (images.names[places] != 0).any(axis=1)))
            unchecked |= used & (~compared | silent)
            by_picture |= used & compared & (not named)
        return Overlap(seen, unchecked & ~seen, by_picture & ~unchecked & ~seen, tuple(unknown), tuple(lost))

    def write(self, path: Path, content: bytes) -> None:
        """Write a file that belongs to the predictions with ``content``; shared hashes are stored once.

        750,000 images in five folds take 8 MB.
        """
        sources = [{"unknown": source.unknown, "lost": source.lost} for source in self.lineages]
        keys = sorted({key for source in self.lineages for key in source.names})
        meta = {"format_version": FORMAT_VERSION, "made_for": content_hash(content), "sources": sources, "keys": keys}
        arrays = {"used": _packed(self.used), "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
        parts = {"pictures": [source.pictures for source in self.lineages]}
        parts |= {f"names_{n}": [s.names.get(key, NOTHING) for s in self.lineages] for n, key in enumerate(keys)}
        for name, values in parts.items():
            together = np.unique(np.concatenate([NOTHING, *values]))
            members = [np.isin(together, part, assume_unique=True) for part in values]
            arrays[name] = together
            arrays[f"{name}_in"] = _packed(np.stack(members, axis=1) if members else np.zeros((0, 0), bool))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def read_provenance(path: Path, content: bytes) -> Provenance | None:
    """Read a file of :meth:`Provenance.write`; None if it belongs to other predictions, WorkError if it is damaged."""
    try:
        arrays = read_arrays(path, MOST_BYTES)
        meta = parse_json(arrays["meta"].tobytes())
        if meta["format_version"] != FORMAT_VERSION:
            raise ValueError(f"of format {meta['format_version']}")
        count = len(meta["sources"])
        pictures = _parts(arrays, "pictures", count)
        names = {key: _parts(arrays, f"names_{n}", count) for n, key in enumerate(meta["keys"])}
        lineages = [
            Lineage(
                pictures[n],
                {key: parts[n] for key, parts in names.items() if len(parts[n])},
                tuple(source["unknown"]),
                tuple(source["lost"]),
            )
            for n, source in enumerate(meta["sources"])
        ]
        used = _unpacked(arrays["used"], count)
        made_for = str(meta["made_for"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from None
    return Provenance(tuple(lineages), used) if made_for == content_hash(content) else None


def content_hash(content: bytes) -> str:
    """Return the hash that identifies a file of predictions."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _packed(flags: Flags) -> npt.NDArray[np.uint8]:
    return np.packbits(flags, axis=1, bitorder="little")


def _unpacked(packed: npt.NDArray[np.uint8], count: int) -> Flags:
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-count // 8):
        raise ValueError("flags are no table of bytes")
    return np.unpackbits(packed, axis=1, count=count, bitorder="little").astype(bool)


def _parts(arrays: Mapping[str, npt.NDArray[Any]], name: str, count: int) -> list[Hashes]:
    """Return the hashes of each of ``count`` sources."""
    values = arrays[name]
    if values.dtype != np.uint64:
        raise ValueError("hashes are no list of 64-bit numbers")
    members = _unpacked(arrays[f"{name}_in"], count)
    return [values[members[:, n]] for n in range(count)]
