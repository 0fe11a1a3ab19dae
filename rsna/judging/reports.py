"""The report of an experiment and the leaderboard of all, from what their folders hold."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.cli.arguments import from_dict, parse_args, to_dict
from common.cli.values import Windows, format_windows
from common.datasets.image_files import SUFFIXES
from common.datasets.images import read_image
from common.dicom.pictures import window
from common.errors import UsageError, UserError
from common.evaluation.metrics import binary_log_losses, constant_predictor, normalized_weights, prevalences_of
from common.evaluation.resampling import Array
from common.experiments.folder import CONFIG, create_experiment, lock_experiment, plain
from common.experiments.logfile import LOG_FILE
from common.files import remove_temporaries, write_text
from common.foreign import read_json
from common.reports.evaluation import evaluation_page
from common.reports.experiment import Evaluated, Together, experiment_page
from common.reports.leaderboard import HTML_FILE, update_leaderboard
from common.reports.montage import fit, overlay
from common.reports.record import (
    FINISHED,
    REPORT_FILE,
    RUNNING,
    Record,
    read_record,
    results_folder,
    write_status,
    write_unknown_lineage,
)
from common.reports.summary import Summary, read_summaries
from common.reports.together import folds_sections, members_section
from common.trackers.jsonl import FILE_NAME
from common.trackers.tracker import Tracker
from common.training import distributed
from common.training.memory import is_out_of_memory
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.judging.evaluation import constant_prevalences, described_images, evaluate_predictions, labelled_rows
from rsna.judging.options import DRAWS, EnsembleConfig, SecondLevelConfig
from rsna.kinds.slices import select_rows
from rsna.prediction.pictures import grey_slices, heat_maps
from rsna.prediction.trained import dataset_folder_of, load_network
from rsna.training.lineage import overlap, overlap_lines
from rsna.training.outcome import CROSS_VALIDATION_FILE, PREDICTION_FILES, holds_out_folds, predictions_path
from rsna.training.provenance import written_provenance
from rsna_dataset import LABEL_WEIGHTS, LABELS, METRIC, RSNADataset, dataset_folder, read_dataset_info, read_fold

logger = logging.getLogger(__name__)

PICTURES_EACH, TILE = 9, 180


def write_report(folder: Path, status: str | None = None, tracker: Tracker | None = None) -> Path:
    """Write ``report.html`` into an experiment's folder, of what there is, and return its path.

    ``tracker`` gets a run's evaluation as a figure, but not the report, which shows slices of patients.
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
    """Note in an experiment's folder on what of unknown lineage its predictions depend, for report and leaderboard."""
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
    """Write an experiment's report, of a cross-validation those of its folds before it; return the first's path."""
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        write_report(path.parent)
    return write_report(folder)


def conclude(folder: Path, status: str | None, *, report: bool = True, tracker: Tracker | None = None) -> None:
    """End an experiment: write its report, then its status, then the leaderboard, and tell where all is.

    The status comes after the report. So a run that is killed in between is not marked as finished, and the next start
    concludes it. A failure here is a warning and doesn't change how the run ended. ``status`` is None for an experiment
    that goes on elsewhere.
    """
    with no_reason_to_fail(folder):
        write_report(folder, status, tracker) if report else note_lineage(folder)
    with no_reason_to_fail(folder):
        if status is not None:
            write_status(folder, status)
        if report:
            update_leaderboard(results_folder(folder), METRIC, {} if status is None else {folder: status})
    distributed.tell(whereabouts(folder))


@contextmanager
def put_together(
    output_dir: Path, experiment_id: str | None, options: Mapping[str, Any], typed: Sequence[str]
) -> Iterator[Path]:
    """Yield the folder, under its lock, of a new experiment that is made of others, and conclude it.

    One of this name with the same options that was killed while it was written is written again.
    """
    folder = None if experiment_id is None else output_dir / experiment_id
    if folder is None or not is_left(folder, options):
        folder = create_experiment(output_dir, experiment_id, options, typed).folder
    with lock_experiment(folder):
        remove_temporaries(folder)
        write_status(folder, RUNNING)
        yield folder
        conclude(folder, FINISHED)


def is_left(folder: Path, options: Mapping[str, Any]) -> bool:
    """Whether an experiment with these options was begun in ``folder`` and ended before it was finished."""
    if not (folder / CONFIG).is_file():
        return False
    record = read_record(folder)
    return record.status not in (FINISHED, RUNNING) and record.config == plain(options)


def whereabouts(folder: Path) -> list[str]:
    """Return a line for each thing of a run that a person may look for, of those that are there."""
    places = {
        "report": folder / REPORT_FILE,
        "weights": folder / BEST,
        "all values": folder / FILE_NAME,
        "log": folder / LOG_FILE,
        "leaderboard": results_folder(folder) / HTML_FILE,
    }
    return [f"{name:<12} {path}" for name, path in places.items() if path.is_file()]


@contextmanager
def no_reason_to_fail(folder: Path) -> Iterator[None]:
    """Make a warning of what prevents a report: it is no reason to lose a run, nor may it hide why one failed."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s: no report (%s); python report.py writes it later", folder, reason)


def run_report(record: Record, others: Sequence[Summary], tracker: Tracker | None = None) -> str:
    """Return the report of one run; ``tracker`` gets its evaluation."""
    rivals = [other for other in others if same_data(other, record)]
    constant, evaluated, missing = None, None, ""
    try:
        config = from_dict(TrainConfig, record.config, str(record.folder / CONFIG))
        rows, constant = fold_and_constant(config)
        evaluated = evaluate(record.folder, config, rows)
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    if tracker is not None and evaluated is not None:
        content = (evaluated.document, evaluated.predictions, evaluated.targets, evaluated.names)
        tracker.log_figure("evaluation", evaluation_page(f"Evaluation of {record.name}", "Validation set", *content))
    return experiment_page(record, rivals, METRIC, to_dict(TrainConfig()), constant, evaluated, missing)


def folds_report(record: Record, others: Sequence[Summary], folds: Sequence[Record]) -> str:
    """Return the report of a cross-validation: its folds, and all their predictions of what they held out."""
    rivals = [other for other in others if same_data(other, record)]
    summary = read_object(record.folder / CROSS_VALIDATION_FILE)
    facts = {str(fact.get("experiment")): fact for fact in objects(summary, "folds")}
    evaluated, missing = None, ""
    try:
        config = from_dict(TrainConfig, record.config, str(record.folder / CONFIG))
        evaluated = evaluate_together(record, config, [fold.folder for fold in folds])
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    together = Together(
        "all folds' predictions of the images that they held out, together",
        folds_sections(folds, facts, METRIC),
    )
    constant = summary.get("constant_log_loss")
    return experiment_page(record, rivals, METRIC, to_dict(TrainConfig()), constant, evaluated, missing, together)


def members_report(record: Record, others: Sequence[Summary]) -> str:
    """Return the report of an ensemble or a second level; its rivals are its members."""
    names = [str(name) for name in record.config["members"]]
    members = {other.name: other for other in others if other.name in names}
    reported = [name for name in members if (results_folder(record.folder) / name / REPORT_FILE).is_file()]
    evaluated, missing = None, ""
    try:
        if record.config.get("data_dataset") is None:
            raise UsageError("the experiment names no dataset that has labels")
        place = {name: str(record.config[name]) for name in ("data_dataset", "data_input_folder")}
        evaluated = evaluate_together(record, parse_args(TrainConfig, [], place), [])
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
    )


def again(record: Record) -> str:
    """Return the command that made an experiment, with another name for the new one."""
    typed = [word for word in shlex.split(str(record.environment.get("command", ""))) if "--experiment_id" not in word]
    return shlex.join(["python", *typed, f"--experiment_id={record.folder.name}_again"])


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the objects of a list in a document; what is there otherwise is left out."""
    found = document.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def same_data(one: Record | Summary, other: Record | Summary) -> bool:
    """Whether two experiments were validated on the same images, so that their values can be compared."""
    names = ("data_dataset", "data_fold", "data_input_folder", "dev_enabled", "tr_overfit")
    return all(one.config.get(name) == other.config.get(name) for name in names)


def fold_and_constant(config: TrainConfig) -> tuple[pd.DataFrame, float]:
    """Return the fold's rows, and the weighted log loss of the constant predictor on its validation images."""
    if config.is_cross_validation:
        raise UsageError("a cross-validation: name one of its folds, which are experiments of their own")
    rows = read_fold(
        dataset_folder(config.data_input_folder, config.data_dataset), config.data_dataset, config.data_fold
    )
    train, valid = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    prevalences = prevalences_of(train[list(LABELS)])
    return rows, constant_predictor(prevalences, valid[list(LABELS)].to_numpy(), LABEL_WEIGHTS)


def evaluate(folder: Path, config: TrainConfig, rows: pd.DataFrame) -> Evaluated | None:
    """Evaluate the experiment's predictions of the validation images; None where it has none yet."""
    path = predictions_path(folder)
    if path is None:
        return None
    frame = read_predictions(path)
    known = rows.loc[rows.index.intersection(frame.index)]
    train = select_rows(rows, "train", config.dev_enabled)[list(LABELS)].to_numpy(dtype=np.float64)
    return judge(config, path, frame.loc[known.index], known, train.mean(axis=0), [folder])


def evaluate_together(record: Record, config: TrainConfig, experiments: Sequence[Path]) -> Evaluated | None:
    """Evaluate out-of-fold predictions; None where there are none yet. For ``experiments`` see :func:`judge`.

    For what the constant predictor knows see :func:`rsna.judging.evaluation.constant_prevalences`.
    """
    path = predictions_path(record.folder)
    if path is None:
        return None
    frame = read_predictions(path)
    rows = labelled_rows(dataset_folder(config.data_input_folder, config.data_dataset))
    known = rows.loc[rows.index.intersection(frame.index)]
    if known.empty:
        raise UsageError(f"{path}: predicts none of the labelled images of {config.data_dataset}")
    prevalences = constant_prevalences(rows, known.index)
    return judge(config, path, frame.loc[known.index], known, prevalences, experiments)


def judge(
    config: TrainConfig,
    path: Path,
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    prevalences: Array,
    experiments: Sequence[Path],
) -> Evaluated:
    """Evaluate predictions of labelled ``rows`` (the same ids in the same order), with pictures of some of them.

    ``path``: the file that the predictions ``frame`` are of, which tells what the networks behind them learnt from.
    ``experiments``: folders of those whose best.pt predicted the images, each those in its predictions_valid.csv.
    """
    data = dataset_folder(config.data_input_folder, config.data_dataset)
    found = evaluate_predictions(frame, rows, prevalences, DRAWS, described_images(data))
    ids, provenance = written_provenance(path, config.data_input_folder)
    met = overlap(provenance.rows(ids.get_indexer(frame.index)), data, frame.index)
    document = found.document | {"lineage": met.document() | {"notes": overlap_lines(met, left_out=False)}}
    predictions, targets = frame[list(LABELS)].to_numpy(np.float64), rows[list(LABELS)].to_numpy(np.float64)
    chosen = {title: order[:PICTURES_EACH] for title, order in worth_a_look(predictions, targets).items()}
    places = np.unique(np.concatenate(list(chosen.values())))
    heat, note = heat_pictures(config, rows.iloc[places], experiments)
    info = read_dataset_info(data)
    pictures: dict[str, Sequence[tuple[np.ndarray, str]]] = {title: [] for title in chosen}
    for title, order in chosen.items():
        for place in order:
            image_id = str(frame.index[place])
            image = read_image(data / "images" / f"{image_id}{SUFFIXES[info['format']]}", info["image_form"])
            picture = beside(windowed(image, config.data_windows), heat.get(image_id))
            pictures[title].append((picture, described(image_id, predictions[place], targets[place])))
    constant = constant_predictor(prevalences, targets, LABEL_WEIGHTS)
    note = f"{windows_shown(config.data_windows, info['image_form'])} {note}"
    return Evaluated(document, predictions, targets, LABELS, constant, pictures, note)


def worth_a_look(predictions: Array, targets: Array) -> dict[str, np.ndarray]:
    """Return by title the places of slices, most interesting first: worst, best and least sure."""
    losses = binary_log_losses(predictions, targets) @ normalized_weights(LABEL_WEIGHTS, len(LABELS))
    bleeding = np.flatnonzero(targets[:, -1] == 1)
    doubt = np.abs(predictions[:, -1] - 0.5)
    return {
        "Worst slices: the highest log loss": np.argsort(-losses, kind="stable"),
        "Best slices with hemorrhage: the lowest log loss": bleeding[np.argsort(losses[bleeding], kind="stable")],
        "Most uncertain slices: any nearest to 0.5": np.argsort(doubt, kind="stable"),
    }


def heat_pictures(
    config: TrainConfig, rows: pd.DataFrame, experiments: Sequence[Path]
) -> tuple[dict[str, np.ndarray], str]:
    """Return pictures (TILE, TILE, 3) with Grad-CAM of ``any`` by image id, and what they show or why there are none.

    Each image by the network that predicted it.
    """
    found: dict[str, np.ndarray] = {}
    cells = ""
    if not experiments:
        return found, "No heat: the experiment has no network of its own."
    try:
        for folder in experiments:
            own = pd.read_csv(folder / PREDICTION_FILES[1], usecols=["id"], dtype=str)["id"]
            asked = rows.loc[rows.index.intersection(own)]
            if asked.empty:
                continue
            trained = load_network(
                folder / BEST, data_input_folder=config.data_input_folder, data_dataset=config.data_dataset
            )
            options = trained.config
            dataset = RSNADataset(
                dataset_folder_of(trained),
                asked,
                trained.pipeline,
                options.data_image_size,
                options.seed,
                options.data_context,
            )
            for place, grey in enumerate(grey_slices(trained, dataset)):
                heat = heat_maps(trained, dataset, np.array([place]))
                if heat is None:
                    return {}, f"No heat: {options.net_model} has no Grad-CAM."
                cells = " × ".join(map(str, heat.shape[1:]))
                found[str(asked.index[place])] = overlay(fit(grey, TILE), heat[0])
    except Exception as error:
        if not (isinstance(error, (UserError, OSError)) or is_out_of_memory(error)):
            raise
        return {}, f"No heat: {' '.join(str(error).split())}"
    return found, (
        f"Right heat: Grad-CAM of any ({cells} cells, each slice to its own highest), where the network's last feature "
        "map raised any; no colour: nowhere. It outlines nothing."
    )


def windowed(image: np.ndarray, windows: Windows) -> list[np.ndarray]:
    """Return an image, HU (H, W) or windowed (H, W, C), in its first two windows, uint8 (TILE, TILE) each."""
    if image.ndim == 2:
        image = np.stack([window(image, center, width) for center, width in windows[:2]], axis=-1)
    elif image.dtype == np.uint8:
        image = image.astype(np.float32) / np.float32(255)
    levels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return [fit(levels[..., channel], TILE) for channel in range(min(2, image.shape[2]))]


def windows_shown(windows: Windows, image_form: str) -> str:
    """Say which windows :func:`windowed` shows."""
    if image_form != "hu":
        return "Left the dataset's windows, the first two."
    return f"Left windows of {format_windows(windows[:2]).replace(',', ' and ')} HU (center/width)."


def beside(greys: Sequence[np.ndarray], coloured: np.ndarray | None) -> np.ndarray:
    """Return square pictures side by side: grey (H, W), or BGR (H, W, 3) where there is a coloured one."""
    if coloured is None:
        return np.hstack(list(greys))
    return np.hstack([*(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) for grey in greys), coloured])


def described(image_id: str, predictions: Array, targets: Array) -> str:
    """Say what an image shows and what was predicted."""
    true = [name for name, value in zip(LABELS[:-1], targets, strict=False) if value == 1]
    likely = sorted(zip(predictions[:-1], LABELS, strict=False), reverse=True)[:2]
    said = ", ".join(f"{name} {value:.2f}" for value, name in likely)
    return f"{image_id}: {', '.join(true) or 'nothing'}; predicted any {predictions[-1]:.2f}, {said}"
