"""Read an ensemble's members: their predictions, the labels, and which images their networks learnt from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UsageError, UserError, WorkError
from common.evaluation.ensembling import align
from common.experiments.folder import experiment_folder, experiment_options
from common.experiments.resume import read_options
from common.files import check_output
from common.foreign import Unreadable, read_json
from common.lineage import Overlap, Provenance
from common.spreadsheets import read_texts, table_form, to_numbers
from config import TrainConfig
from rsna.forms import SUBMISSION_COLUMNS, read_competition_labels, read_predictions
from rsna.judging.held_out import HeldOut, held_out_predictions
from rsna.judging.options import EnsembleConfig
from rsna.judging.strata import described_images
from rsna.kinds.levels import has_slice_labels
from rsna.training.lineage import overlap, overlap_lines, refuse_seen
from rsna.training.outcome import PREDICTION_FILES, experiment_predictions
from rsna.training.provenance import written_provenance
from rsna_dataset import (
    DATASET_INFO,
    IDENTITY_COLUMNS,
    LABELS,
    METADATA_FILE,
    dataset_folder,
    known_groups,
    read_dataset_info,
)

logger = logging.getLogger(__name__)

SAME_MODELS = "predicted_by_what_is_submitted"  # in ensemble.json
NO_PATIENTS = "has no column patient_id, so that weights can't be judged on other patients"


@dataclass(frozen=True)
class Members:
    """What an ensemble is made of; all mappings go by the member's name.

    ``predictions``: frames with the same rows in the same order. ``files``: the file that each was read from.
    ``labels``: labels from ``label_source``, not always of all predicted rows, with patient_id, study_id and group_id
    if known; None: no labels are known. ``described``: the dataset's metadata, for strata. ``submissions``: the
    members' files for the test set; empty unless all have one. ``provenance``: which networks predicted each row.
    ``seen``: which labelled images these networks learnt from, as far as that is known; None without a dataset.
    ``held``: predictions of the images in no fold, if all members made some.
    ``same_models``: whether the models that predict the test set also predicted the labelled images. False for a
    cross-validation: its models predict the test set together, and each labelled image alone.
    """

    predictions: dict[str, pd.DataFrame]
    files: dict[str, Path]
    labels: pd.DataFrame | None
    label_source: Path | None
    described: pd.DataFrame | None
    submissions: dict[str, Path]
    provenance: dict[str, Provenance]
    seen: Overlap | None = None
    held: HeldOut | None = None
    same_models: bool = True

    @property
    def known(self) -> pd.Index:
        """The predicted images that have labels, in the first member's order."""
        rows = next(iter(self.predictions.values())).index
        return rows[:0] if self.labels is None else rows.intersection(self.labels.index, sort=False)

    @property
    def together(self) -> Provenance:
        """Which networks made each row of the ensemble."""
        return reduce(Provenance.beside, self.provenance.values())

    @property
    def notes(self) -> list[str]:
        """Lines on what is unknown, or was left out, of the images that the members' networks learnt from."""
        if self.seen is not None:
            return overlap_lines(self.seen)
        unknown = self.together.unknown
        return [f"unknown lineage: {', '.join(unknown)}"] if unknown else []

    @property
    def all_submissions(self) -> bool:
        """Whether all files of predictions have the competition's form."""
        return all(is_submission(file) for file in self.files.values())


def read_members(config: EnsembleConfig) -> Members:
    """Read the members' predictions and the labels; UsageError or WorkError if they don't fit together."""
    if config.ens_output is not None:
        check_output("ens_output", config.ens_output)
    folders = {
        name: experiment_folder(config.output_dir, name, "member")
        for name in config.members
        if not name.endswith(".csv")
    }
    files = {name: experiment_predictions(folders[name]) if name in folders else Path(name) for name in config.members}
    predictions = align({name: read_predictions(file) for name, file in files.items()})
    labels, source, described = None, config.ens_labels, None
    if source is not None:
        labels = read_labels(source)
    elif folders:
        source, labels, described = dataset_labels(next(iter(folders.values())))
    submissions = {name: folder / "submission.csv" for name, folder in folders.items()}
    missing = [name for name in config.members if name not in folders or not submissions[name].is_file()]
    if folders and missing:
        logger.warning("no submission is written: %s has none (predict.py --split=test makes it)", ", ".join(missing))
    ids = next(iter(predictions.values())).index
    provenance = {name: member_provenance(file, ids) for name, file in files.items()}
    members = Members(
        predictions, files, labels, source, described, {} if missing else submissions, provenance,
        same_models=all(name not in folders or judged_as_submitted(folders[name]) for name in config.members),
    )  # fmt: skip
    check_labels(config, members)
    seen = check_lineage(members)
    return replace(members, seen=seen, held=read_held_out(config, folders, members))


def member_provenance(file: Path, ids: pd.Index) -> Provenance:
    """Return which networks made a member's predictions of ``ids``."""
    try:
        place = Path(read_options(file.parent)["data_input_folder"])
    except (WorkError, KeyError):
        place = TrainConfig.data_input_folder
    own, provenance = written_provenance(file, place)
    return provenance.rows(own.get_indexer(ids))


def check_lineage(members: Members) -> Overlap | None:
    """Return which labelled images the members' networks learnt from, as far as known; None without a dataset.

    Raises UsageError if a member learnt from images that judge the ensemble.
    """
    folder = None if members.label_source is None else members.label_source.parent
    if folder is None or not (folder / METADATA_FILE).is_file() or not (folder / DATASET_INFO).is_file():
        return None
    places = next(iter(members.predictions.values())).index.get_indexer(members.known)
    what, advice = f"{folder.name} that judge the ensemble", "give predictions of images that it was not trained on"
    for name, provenance in members.provenance.items():
        found = overlap(provenance.rows(places), folder, members.known)
        refuse_seen(found, str(members.files[name]), what, advice)
    return overlap(members.together.rows(places), folder, members.known)


def judged_as_submitted(folder: Path) -> bool:
    """Whether the models that make an experiment's submission also made its labelled predictions.

    False for a cross-validation, and for what is made from one: one fold's model predicts each labelled image, but the
    mean of all folds' models predicts the test set.
    """
    if experiment_predictions(folder).name != PREDICTION_FILES[0]:
        return True
    try:
        return read_json(folder / "ensemble.json").get(SAME_MODELS) is True
    except (OSError, Unreadable, AttributeError):
        return False


def read_held_out(config: EnsembleConfig, folders: Mapping[str, Path], members: Members) -> HeldOut | None:
    """Return all members' predictions of the images in no fold; None if a member made none.

    Raises UsageError if --ens_calibrate needs them. A mean of several models is less sure than each model: maps fitted
    to single models' predictions would make it worse.
    """
    flag = f"--ens_calibrate={config.ens_calibrate}"
    try:
        if len(folders) < len(config.members):
            raise UsageError("members that are files have no predictions of such images; name experiments")
        held = held_out_predictions(dataset_of(next(iter(folders.values()))), folders)
        learnt = known_groups(members.labels.loc[members.known])
        again = np.isin(learnt, known_groups(held.rows))
        if again.any():
            raise UsageError(f"{again.sum()} images of the folds are of patients who are held out now; train anew")
    except UserError as error:
        if config.ens_calibrate == "none" or members.same_models:
            return None
        raise UsageError(
            f"{flag}: the submission is of several models together and the labelled predictions of each alone, so that "
            f"maps need images that none of them saw: {error}"
        ) from None
    return held


def dataset_of(folder: Path) -> Path:
    """Return the folder of the dataset that an experiment was trained on; UsageError if it can't be found."""
    try:
        config = experiment_options(folder)
        dataset = dataset_folder(Path(config["data_input_folder"]), str(config["data_dataset"]))
        read_dataset_info(dataset)
    except (KeyError, TypeError, UserError) as error:
        raise UsageError(f"{folder}: its dataset can't be found ({error}); name the labels by --ens_labels") from None
    return dataset


def dataset_labels(folder: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Return metadata.csv of the dataset that an experiment was trained on: its path, its labelled rows, all rows."""
    dataset = dataset_of(folder)
    described = described_images(dataset)
    labels = described[described[list(LABELS)].notna().all(axis=1)]
    labels = labels[[*LABELS, *IDENTITY_COLUMNS]] if has_slice_labels(described[described["split"] != "test"]) else None
    return dataset / METADATA_FILE, labels, described


def check_labels(config: EnsembleConfig, members: Members) -> None:
    """Raise UsageError if options need labels that are missing, or the named labels don't fit the predictions."""
    asked = [
        f"--{name}={value}"
        for name, value in (("ens_fit", config.ens_fit), ("ens_calibrate", config.ens_calibrate))
        if value != "none"
    ]
    if members.labels is None:
        if asked:
            raise UsageError(f"{asked[0]} needs labels: name them by --ens_labels")
        return
    rows = len(next(iter(members.predictions.values())))
    if members.known.empty:
        raise UsageError(f"{members.label_source}: knows none of the {rows} predicted images")
    if asked and "patient_id" not in members.labels:
        raise UsageError(f"{asked[0]}: {members.label_source} {NO_PATIENTS}; name a fold CSV or metadata.csv")
    if config.ens_fit != "none" and len(config.members) < 2:
        raise UsageError(f"--ens_fit={config.ens_fit} needs at least two members")


def is_submission(path: Path) -> bool:
    """Whether the header of a file of predictions is that of the competition's long form."""
    return table_form(path).has(SUBMISSION_COLUMNS)


def read_labels(path: Path) -> pd.DataFrame:
    """Read the labels of a fold CSV, a metadata.csv or the competition's train CSV: index ``id``, each label 0 or 1.

    The former two also give patient_id, study_id and group_id. Images without labels (the test images of a
    metadata.csv) are left out. Raises UsageError if the file can't be read or has other columns. Raises WorkError for a
    label that is not 0 or 1, for an image with some labels only, and for an image that stands there twice.
    """
    form = table_form(path)
    if form.has(SUBMISSION_COLUMNS):
        return read_competition_labels(path)
    missing = [name for name in ("id", *LABELS) if not form.has([name])]
    if missing:
        raise UsageError(
            f"--ens_labels={path}: has no column {', '.join(missing)}; give a fold CSV, a metadata.csv "
            "or the competition's train CSV"
        )
    named = [name for name in IDENTITY_COLUMNS if form.has([name])]
    text = read_texts(path, ["id", *LABELS, *named]).set_index("id")
    if text.index.has_duplicates:
        raise WorkError(f"{path}: image {text.index[text.index.duplicated()][0]} stands there more than once")
    labelled = text[(text[list(LABELS)] != "").any(axis=1)]
    values = labelled[list(LABELS)]
    numbers = values.apply(lambda column: pd.Series(to_numbers(column), column.index))
    wrong = np.argwhere(~numbers.isin((0, 1)).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        found = values.iloc[row, column]
        raise WorkError(
            f"{path}: image {values.index[row]}, label {values.columns[column]}: "
            f"{f'{found!r} is not 0 or 1' if found else 'is empty'}"
        )
    return numbers.astype("int8").join(labelled[named])
