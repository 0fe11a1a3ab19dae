"""Group the images that belong together: of one patient, of one study, or of patients who share an identical picture.

Everything treats a group as a unit: folds and hold-out keep it whole, intervals draw it, an evaluation leaves it out as
a whole. PatientID alone is not enough: some archives give several to one study, and public data has the same pictures
under several patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.errors import WorkError

SOLID_SHARE = 0.01  # of the pixels
LINKED_SHARE = 0.01
LINKED_MIN_PATIENTS = 1000
LARGE_SHARE, SEVERAL_STUDIES = 0.5, 5  # a group with more of the images and more studies is hardly one patient
EXAMPLES = 5


@dataclass(frozen=True)
class Identities:
    """The patient, study and picture of each of N images, "" if unknown, and their ids; arrays of shape (N,).

    ``pictures`` come from :func:`picture_keys`, which also returns "" for a picture that links nobody.
    """

    patients: np.ndarray
    studies: np.ndarray
    pictures: np.ndarray
    image_ids: np.ndarray

    def persons(self) -> np.ndarray:
        """Return the person of each image (N,): its patient, or if unknown its study, or if unknown its own id."""
        study = np.where(self.studies != "", self.studies, self.image_ids)
        return np.where(self.patients != "", self.patients, study).astype(object)

    def by_study(self) -> Identities:
        """Return these identities without patients, so that each study counts as a patient."""
        return Identities(np.full(len(self.image_ids), "", object), self.studies, self.pictures, self.image_ids)


def picture_keys(records: pd.DataFrame) -> np.ndarray:
    """Return for each record the picture that links patients who share it, (N,), or "".

    ``records`` has the columns digest, hu_min, hu_max and solid. Constant pictures, and those with hardly anything but
    air, link nobody: they are identical by chance.
    """
    telling = (records["hu_min"] < records["hu_max"]) & (records["solid"] >= SOLID_SHARE)
    return np.where(telling, records["digest"], "").astype(object)


def group_images(images: Identities) -> np.ndarray:
    """Return the name of each image's group (N,). Images that share a patient, study or picture are in one group.

    This is transitive: if A and B share a study, and B and C a picture, all three are one group. A group has the name
    of its first person (see :meth:`Identities.persons`).
    """
    persons, names = pd.factorize(images.persons(), sort=True)
    edges = []
    size = len(names)
    for keys in (images.studies, images.pictures):  # each image is an edge from its person to its study or picture
        place, found = pd.factorize(keys)
        known = np.asarray(keys != "", dtype=bool)
        edges.append((persons[known], size + place[known]))
        size += len(found)
    rows, columns = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    first = pd.Series(np.arange(len(names))).groupby(component[: len(names)]).transform("min").to_numpy()
    return names[first][persons]


@dataclass(frozen=True)
class Cause:
    """One cause that joins patients: it makes ``groups`` groups of ``patients`` patients altogether.

    ``sizes`` (N,) is the number of patients in each image's group by this cause alone.
    """

    groups: int
    patients: int
    sizes: np.ndarray

    @property
    def largest(self) -> int:
        """Number of patients in the largest group."""
        return int(self.sizes.max(initial=0))


def causes(images: Identities) -> dict[str, Cause]:
    """Return what joins patients, by cause: a shared ``study``, a shared ``picture``, and ``both`` together."""
    nothing = np.full(len(images.image_ids), "", object)
    persons = images.persons()
    parts = {
        "study": Identities(images.patients, images.studies, nothing, images.image_ids),
        "picture": Identities(images.patients, np.where(images.patients == "", images.studies, "").astype(object),
                              images.pictures, images.image_ids),
        "both": images,
    }  # fmt: skip
    found = {}
    for cause, part in parts.items():
        groups = pd.Series(group_images(part))
        sizes = pd.Series(persons).groupby(groups).nunique()
        joined = sizes[sizes > 1]
        found[cause] = Cause(len(joined), int(joined.sum()), groups.map(sizes).to_numpy())
    return found


def describe_links(images: Identities) -> dict[str, str]:
    """Return, for each cause (``study``, ``picture``) that joins patients, a line that says how many.

    Raises WorkError if there are more than :data:`LINKED_MIN_PATIENTS` patients and pictures join more than
    :data:`LINKED_SHARE` of them to one group. That is no coincidence but a fault, such as a scanner's test image.
    """
    found = causes(images)
    lines = {}
    texts = {"study": "studies of several PatientIDs join", "picture": "pixel-identical pictures link"}
    for cause, text in texts.items():
        part = found[cause]
        if part.groups:
            examples = ", ".join(sorted(images.image_ids[part.sizes == part.largest])[:EXAMPLES])
            lines[cause] = (
                f"{text} {part.patients} patients to {part.groups} groups; the largest has {part.largest} patients "
                f"(images {examples})"
            )
    patients = len(np.unique(images.persons().astype(str)))
    if patients > LINKED_MIN_PATIENTS and found["picture"].largest > LINKED_SHARE * patients:
        raise WorkError(f"{lines['picture']}, too many to be true; look at these images")
    return lines


def large_group(groups: np.ndarray, images: Identities) -> tuple[str, int, float] | None:
    """Return the name, number of studies and share of images of a group too large for one patient, None without one."""
    names, place, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    if len(names) == 0 or counts.max() <= LARGE_SHARE * len(groups):
        return None
    largest = int(counts.argmax())
    studies = len(set(images.studies[place == largest]) - {""})
    return (names[largest], studies, counts[largest] / len(groups)) if studies > SEVERAL_STUDIES else None
