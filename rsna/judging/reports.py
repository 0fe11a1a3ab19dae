"""Write an experiment's report from the files in its folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from common.cli.arguments import from_dict, parse_args, to_dict
from common.errors import UsageError, UserError
from common.evaluation.metrics import WEIGHTED, constant_predictor, prevalences_of
from common.evaluation.resampling import Array
from common.experiments.folder import CONFIG
from common.files import write_text
from common.foreign import read_json
from common.preprocessing.labels import LEVEL
from common.reports.evaluation import evaluation_page
from common.reports.experiment import Evaluated, Together, experiment_page
from common.reports.judgement import Judgement, hash_images, write_judgement
from common.reports.leaderboard import HTML_FILE
from common.reports.record import REPORT_FILE, Record, read_record, results_folder, write_unknown_lineage
from common.reports.summary import Summary, read_summaries
from common.reports.together import folds_sections, members_section
from common.trackers.tracker import Tracker
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.judging.evaluation import Evaluation, constant_prevalences, evaluate_predictions, labelled_rows
from rsna.judging.options import DRAWS, EnsembleConfig, SecondLevelConfig
from rsna.judging.report_pictures import pictures_of
from rsna.judging.strata import described_images
from rsna.kinds.levels import level_of, studies_of
from rsna.training.lineage import overlap, overlap_lines
from rsna.training.outcome import (
    CROSS_VALIDATION_FILE,
    OUT_OF_FOLD_FILE,
    holds_out_folds,
    predictions_path,
    read_judged,
)
from rsna.training.provenance import written_provenance
from rsna_dataset import (
    AUDIT_FILE,
    LABEL_WEIGHTS,
    LABELS,
    METRIC,
    dataset_folder,
    read_dataset_info,
    read_fold,
    select_rows,
)


def write_report(folder: Path, status: str | None = None, tracker: Tracker | None = None) -> Path:
    """Write ``report.html`` into an experiment's folder from the files it has so far; return its path.

    ``tracker`` gets the evaluation of a run as a figure. It doesn't get the report, which shows slices of patients.
    """
    note_lineage(folder)
    record = read_record(folder, status)
    others = read_summaries(results_folder(folder), METRIC)
    if isinstance(record.config.get("members"), list):
        page = members_report(record, others)
    elif (folds := fold_records(folder)) or holds_out_folds(record.config):
        page = folds_report(record, others, folds)
    else:
        page = run_report(record, others, tracker)
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def note_lineage(folder: Path) -> None:
    """Note the networks of unknown lineage behind an experiment's predictions, for report and leaderboard."""
    path = predictions_path(folder)
    if path is None:
        return
    place = Path(str(read_record(folder, brief=True).config.get("data_input_folder", TrainConfig.data_input_folder)))
    lineages = written_provenance(path, place)[1].lineages
    names = (name for one in lineages for name in (*one.unknown, *(f"lost: {source}" for source in one.lost)))
    write_unknown_lineage(folder, list(dict.fromkeys(names)))


def fold_records(folder: Path) -> list[Record]:
    """Read the folds of a cross-validation, by name."""
    return [read_record(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))]


def rewrite_reports(folder: Path) -> Path:
    """Write an experiment's report and return its path; the folds of a cross-validation get theirs first."""
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        write_report(path.parent)
    return write_report(folder)


def run_report(record: Record, others: Sequence[Summary], tracker: Tracker | None = None) -> str:
    """Return the report of one run; ``tracker`` gets the evaluation."""
    rivals = [other for other in others if same_data(other, record)]
    constant, evaluated, missing = None, None, ""
    try:
        config = from_dict(TrainConfig, record.config, str(record.folder / CONFIG))
        rows, prevalences, constant = fold_and_constant(config)
        evaluated = judge(config, record.folder, [record.folder], rows, prevalences)
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    if tracker is not None and evaluated is not None:
        content = (evaluated.document, evaluated.predictions, evaluated.targets, evaluated.names)
        tracker.log_figure("evaluation", evaluation_page(f"Evaluation of {record.name}", "Validation set", *content))
    metric = record.judged_by(METRIC)
    return experiment_page(
        record, rivals, metric, to_dict(TrainConfig()), constant, evaluated, missing, links=links_of(record)
    )


def folds_report(record: Record, others: Sequence[Summary], folds: Sequence[Record]) -> str:
    """Return the report of a cross-validation: its folds, and the out-of-fold predictions of all together."""
    rivals = [other for other in others if same_data(other, record)]
    summary = read_object(record.folder / CROSS_VALIDATION_FILE)
    facts = {str(fact.get("experiment")): fact for fact in objects(summary, "folds")}
    evaluated, missing, metric = None, "", record.judged_by(METRIC)
    try:
        config = from_dict(TrainConfig, record.config, str(record.folder / CONFIG))
        evaluated = judge(config, record.folder, [fold.folder for fold in folds])
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    together = Together(
        "all folds' predictions of the images that they held out, together",
        folds_sections(folds, facts, metric),
    )
    constant = summary.get("constant_log_loss")
    return experiment_page(
        record, rivals, metric, to_dict(TrainConfig()), constant, evaluated, missing, together, links_of(record)
    )


def members_report(record: Record, others: Sequence[Summary]) -> str:
    """Return the report of an ensemble or a second level, compared with its members."""
    names = [str(name) for name in record.config["members"]]
    members = {other.name: other for other in others if other.name in names}
    reported = [name for name in members if (results_folder(record.folder) / name / REPORT_FILE).is_file()]
    evaluated, missing = None, ""
    try:
        if record.config.get("data_dataset") is None:
            raise UsageError("the experiment names no dataset that has labels")
        place = {name: str(record.config[name]) for name in ("data_dataset", "data_input_folder")}
        evaluated = judge(parse_args(TrainConfig, [], place), record.folder, [])
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    document = read_object(record.folder / "ensemble.json")
    tables = {
        "weight": {row["name"]: row["weight"] for row in objects(document, "members")},
        "ensemble without it": {row["member"]: row["without"] for row in objects(document, "contributions")},
    }
    kind = EnsembleConfig if "ens_method" in record.config else SecondLevelConfig
    together = Together(
        "all images that the members were not trained on",
        [members_section(names, members, METRIC, reported, tables)],
        again(record),
    )
    return experiment_page(
        record,
        list(members.values()),
        METRIC,
        to_dict(kind(members=tuple(names))),
        None if evaluated is None else evaluated.constant,
        evaluated,
        missing,
        together,
        links_of(record),
    )


def links_of(record: Record) -> dict[str, str]:
    """Return the addresses of pages around a report: leaderboard, a fold's cross-validation, the dataset's audit."""
    folder = record.folder
    results = results_folder(folder)
    pages = {"Leaderboard": results / HTML_FILE}
    if results != folder.parent:
        pages["Cross-validation"] = folder.parent / REPORT_FILE
    place, name = (str(record.config.get(option)) for option in ("data_input_folder", "data_dataset"))
    with suppress(UsageError):  # anybody may have made the folder: a name that is none has no audit
        audit = dataset_folder(Path(place), name) / AUDIT_FILE
        if os.path.isfile(audit):  # noqa: PTH113 (False for a path that no system takes)
            pages["Audit of the dataset"] = audit
    return {text: quote(os.path.relpath(path, folder)) for text, path in pages.items()}


def again(record: Record) -> str:
    """Return the command that makes an experiment again, under a new name."""
    typed = [word for word in shlex.split(str(record.environment.get("command", ""))) if "--experiment_id" not in word]
    return shlex.join(["python", *typed, f"--experiment_id={record.folder.name}_again"])


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or unreadable file gives an empty one."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the objects in the list ``name`` of a document; anything else is left out."""
    found = document.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def same_data(one: Record | Summary, other: Record | Summary) -> bool:
    """Whether two experiments were validated on the same images, so that their values can be compared."""
    names = ("data_dataset", "data_fold", "data_input_folder", "dev_enabled", "tr_overfit")
    return all(one.config.get(name) == other.config.get(name) for name in names)


def fold_and_constant(config: TrainConfig) -> tuple[pd.DataFrame, Array, float]:
    """Return the fold's rows, the prevalences of its training images, and the constant predictor's validation score."""
    if config.is_cross_validation:
        raise UsageError("a cross-validation: name one of its folds, which are experiments of their own")
    rows = read_fold(
        dataset_folder(config.data_input_folder, config.data_dataset), config.data_dataset, config.data_fold
    )
    train, valid = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    level = level_of(valid)
    prevalences = prevalences_of(level.truth(train))
    return rows, prevalences, constant_predictor(prevalences, level.truth(valid).to_numpy(), LABEL_WEIGHTS)


def judge(
    config: TrainConfig,
    folder: Path,
    experiments: Sequence[Path],
    rows: pd.DataFrame | None = None,
    prevalences: Array | None = None,
) -> Evaluated | None:
    """Evaluate an experiment's predictions of the labelled ``rows``; None if it has no predictions yet.

    The leaderboard's share of it is kept in the folder, see :func:`keep_judgement`.

    ``experiments``: see :func:`rsna.judging.report_pictures.pictures_of`. ``rows`` None: all labelled images of the
    dataset. ``prevalences`` (6,) None: those of :func:`rsna.judging.evaluation.constant_prevalences`.
    """
    path = predictions_path(folder)
    if path is None:
        return None
    data = dataset_folder(config.data_input_folder, config.data_dataset)
    frame, labelled = read_predictions(path), labelled_rows(data) if rows is None else rows
    rows = labelled.loc[labelled.index.intersection(frame.index)]
    if rows.empty:
        raise UsageError(f"{path}: predicts none of the labelled images of {config.data_dataset}")
    frame = frame.loc[rows.index]
    prevalences = constant_prevalences(labelled, rows.index) if prevalences is None else prevalences
    judged = read_judged(path)
    if judged is not None and len(pd.Index(studies_of(rows)).difference(judged.index)):
        judged = None  # of other images: somebody replaced one of the files
    described = described_images(data)
    found = evaluate_predictions(frame, rows, prevalences, DRAWS, described, judged)
    what = "out of fold" if path.name == OUT_OF_FOLD_FILE else f"fold {config.data_fold}"
    of_studies = LEVEL in described and (described.loc[rows.index, LEVEL] == "study").any()
    level = "slices with their studies' labels" if of_studies and found.level.units == "slices" else found.level.units
    keep_judgement(folder, found, rows, str(read_dataset_info(data).get("hash", "0")), level, what)
    ids, provenance = written_provenance(path, config.data_input_folder)
    met = overlap(provenance.rows(ids.get_indexer(frame.index)), data, frame.index)
    document = found.document | {"lineage": met.document() | {"notes": overlap_lines(met, left_out=False)}}
    constant = float(found.table.loc[WEIGHTED, "constant_log_loss"])
    pictures, note = pictures_of(config, frame, rows, experiments)
    return Evaluated(document, found.study.predictions, found.study.targets, LABELS, constant, pictures, note)


def keep_judgement(folder: Path, found: Evaluation, rows: pd.DataFrame, dataset: str, level: str, what: str) -> None:
    """Write to an experiment's folder what the leaderboard needs of its evaluation; see :class:`Judgement`."""
    study, weighted = found.study, found.study.samples["log_loss"][WEIGHTED]
    units = found.level.patients(rows)
    low, high = (None if np.isnan(end) else float(end) for end in weighted.ends)
    constant, area = float(found.table.loc[WEIGHTED, "constant_log_loss"]), study.samples["auroc"]["any"].value
    judged = Judgement(
        dataset,
        hash_images(units.index, study.targets, units.to_numpy()),
        len(units),
        study.bootstrap.count,
        level,
        what,
        found.level.metric,
        float(weighted.value),
        low,
        high,
        float(weighted.value) / constant if constant else None,
        None if np.isnan(area) else float(area),
    )
    positive, known = (study.targets == 1).any(axis=1), study.known.any(axis=1)
    place, count = study.bootstrap.place, study.bootstrap.count
    sides = (np.bincount(place, side & known, count) for side in (positive, ~positive))
    write_judgement(folder, judged, weighted.parts, *sides)
