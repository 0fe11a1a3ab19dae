"""Predicts the studies of any DICOM folder or zip archive: tables, JSON, a picture of each series. Needs no dataset.

The files become a dataset for the time of the command, by the same parts and in the same form as the training's, so
that a slice gets the prediction that it would get in a preprocessed dataset. Identifiers are pseudonyms everywhere.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import load_checkpoint
from common.errors import UsageError, WorkError
from common.evaluation.calibration import calibration_of
from common.files import write_csv, write_json
from common.hardware import cpu_cores
from common.preprocessing.convert import ImageForm
from common.preprocessing.failures import count_reasons, failure_table, is_no_ct_image
from common.preprocessing.pseudonyms import Pseudonyms, load_key
from common.preprocessing.sources import open_tree
from common.preprocessing.tables import mark_repeated, metadata_table, unique_images
from common.preprocessing.workers import convert_files
from common.reports.montage import Highlight, draw_series, write_picture
from common.reports.page import NOTICE
from config import PredictConfig, PreprocessingConfig, TrainConfig, format_windows, parse_windows
from rsna_dataset import (
    DATASET_INFO,
    FORMAT_VERSION,
    LABELS,
    METADATA_FILE,
    RSNADataset,
    dataset_folder,
    find_competition,
    image_settings,
    read_dataset_info,
    read_metadata,
)
from rsna_pictures import OVERALL, grey_slices, heat_maps
from rsna_prediction import (
    TrainedNetwork,
    Views,
    dataset_folder_of,
    load_calibration,
    load_network,
    load_views,
    predict_rows,
)
from rsna_preprocessing import KEY_FILE, PUBLIC_ID, Source, file_tasks, image_form, list_source

logger = logging.getLogger(__name__)

DATASET = "source"
CAM_SLICES = 4


@dataclass(frozen=True)
class StudyResult:
    """A study's predictions: ``slices``, the metadata's rows with the probabilities of :data:`LABELS`; seconds."""

    study_id: str
    slices: pd.DataFrame
    pictures: list[str]
    seconds: dict[str, float]

    @property
    def highest(self) -> pd.Series:
        """Of each label the highest probability of the slices, which is the study's."""
        return self.slices[list(LABELS)].max()


def predict_source(config: PredictConfig) -> Path:
    """Predict the studies of ``--source`` and write all to ``--predict_output``; return that folder."""
    images = stored_form(config)
    folder = new_folder(config.predict_output)
    form = image_form(images)
    with tempfile.TemporaryDirectory(prefix=".work.", dir=folder) as work:
        inputs = Path(work)
        started = time.perf_counter()
        convert_source(config, images, form, inputs, folder)
        reading = time.perf_counter() - started
        trained = load_network(config.net_weight_file, config.n_jobs, inputs, DATASET, config.net_weights)
        calibration = load_calibration(config, trained)
        views = load_views(trained, config)
        rows = read_metadata(dataset_folder_of(trained), described=True)
        share = reading / len(rows)
        results = []
        for study_id, part in rows.groupby("study_id", sort=True):
            result = predict_study(trained, str(study_id), part, views, calibration, folder, share * len(part))
            print(describe_study(result))
            results.append(result)
    write_results(folder, config, trained, results)
    print(NOTICE)
    return folder


def new_folder(path: Path) -> Path:
    """Make an empty folder; UsageError where it can't be made or holds something."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"--predict_output={path}: is not empty; name a new folder")
    except OSError as error:
        raise UsageError(f"--predict_output={path}: can't be made ({error.strerror}); name another folder") from None
    return path


def stored_form(config: PredictConfig) -> PreprocessingConfig:
    """Return the preprocessing of the training's images, which the weight file knows.

    Weight files of before it did so need the training's dataset; UsageError where that is gone.
    """
    checkpoint = load_checkpoint(config.net_weight_file)
    options = checkpoint.get("images")
    if options is None:
        place = checkpoint["config"]
        folder = dataset_folder(
            Path(config.data_input_folder or place.get("data_input_folder", TrainConfig.data_input_folder)),
            str(place.get("data_dataset", TrainConfig.data_dataset)),
        )
        try:
            options = image_settings(read_dataset_info(folder))
        except UsageError:
            raise UsageError(
                f"{config.net_weight_file}: an older weight file, which doesn't say how its images were stored, and "
                f"its dataset {folder} is not here; name its place by --data_input_folder, or train again"
            ) from None
    windows = options.get("pre_window") or "none"
    return PreprocessingConfig(
        pre_source=config.source,
        pre_size=options.get("pre_size", PreprocessingConfig.pre_size),
        pre_window=None if windows == "none" else parse_windows(windows),
        pre_type=options.get("pre_type", PreprocessingConfig.pre_type),
        pre_crop=options.get("pre_crop", PreprocessingConfig.pre_crop),
    )


def convert_source(
    config: PredictConfig, images: PreprocessingConfig, form: ImageForm, inputs: Path, output: Path
) -> None:
    """Make the dataset ``inputs/datasets/source`` of the files, and ``failed.csv`` in ``output`` of those that fail.

    Raises UsageError where there is no such source or it is empty, WorkError where no file gave an image.
    """
    source = find_files(config.source)
    pseudonyms = Pseudonyms(
        load_key((config.data_input_folder or TrainConfig.data_input_folder) / KEY_FILE),
        PUBLIC_ID if source.competition else None,
    )
    files, refused = list_source(dataclasses.replace(source, competition=None), pseudonyms, skip=(output,))
    if files.empty and refused.empty:
        raise UsageError(f"--source={config.source}: holds no files")
    folder = dataset_folder(inputs, DATASET)
    (folder / "images").mkdir(parents=True)
    tasks = file_tasks(source.tree, files, folder / "images")
    jobs = cpu_cores(config.n_jobs or 0)
    found = [record for chunk in convert_files(tasks, form, jobs, pseudonyms) for record in chunk] if tasks else []
    records = pd.DataFrame([dataclasses.asdict(record) for record in found], columns=record_columns())
    failed = failure_table(records, files, refused)
    write_csv(output / "failed.csv", failed.assign(notice=NOTICE))
    if len(failed):
        other = int(is_no_ct_image(failed).sum())
        reasons = count_reasons(failed)
        logger.warning("%d files gave no image, %d of them no CT images (%s)", len(failed), other, reasons)
    table = unique_images(records).sort_index()
    if table.empty:
        raise WorkError(
            f"--source={config.source}: none of {len(files)} files gave an image; {output / 'failed.csv'} says why"
        )
    table = mark_repeated(table.assign(split="test"))
    write_csv(folder / METADATA_FILE, metadata_table(table, pd.DataFrame(index=pd.Index([], name="id"))))
    info = {
        "format_version": FORMAT_VERSION,
        "image_form": form.name,
        "windows": None if images.pre_window is None else format_windows(images.pre_window),
        "dtype": form.dtype,
        "format": form.file_format,
        "labelled": 0,
    }
    write_json(folder / DATASET_INFO, info)


def record_columns() -> list[str]:
    """Return the columns of the table of a conversion's records."""
    from common.preprocessing.convert import Record

    return [field.name for field in dataclasses.fields(Record)]


def find_files(path: Path) -> Source:
    """Return what ``--source`` names; UsageError where there is nothing.

    The ids of the competition's own files, which stand in a folder of its layout, are pseudonyms already and stay.
    """
    tree = open_tree(path)
    if tree is None:
        raise UsageError(f"--source={path}: no such folder or zip archive")
    competition = find_competition(path) or find_competition(path.resolve().parent)
    return Source(tree, competition)


def predict_study(
    trained: TrainedNetwork,
    study_id: str,
    rows: pd.DataFrame,
    views: Views | None,
    calibration: dict[str, float] | None,
    folder: Path,
    reading: float,
) -> StudyResult:
    """Predict a study's slices and draw each of its series; ``reading``: the seconds that its files took."""
    started = time.perf_counter()
    frame = predict_rows(trained, rows, views, workers=0)
    if calibration is not None:
        frame = calibration_of(frame, calibration)
    predicted = time.perf_counter()
    slices = rows.drop(columns=list(LABELS)).join(frame).sort_values(["series_id", "slice_index"])
    pictures = []
    groups = list(slices.groupby("series_id", sort=True))
    for number, (_, series) in enumerate(groups, start=1):
        name = f"{study_id}.png" if len(groups) == 1 else f"{study_id}_{number}.png"
        draw_one_series(trained, study_id, f"series {number} of {len(groups)}", series, folder / name)
        pictures.append(name)
    seconds = {"reading": reading, "network": predicted - started, "pictures": time.perf_counter() - predicted}
    return StudyResult(study_id, slices, pictures, seconds)


def draw_one_series(trained: TrainedNetwork, study_id: str, which: str, series: pd.DataFrame, path: Path) -> None:
    """Draw a series to a PNG file."""
    config = trained.config
    dataset = RSNADataset(
        dataset_folder_of(trained), series, trained.pipeline, config.data_image_size, config.seed, config.data_context
    )
    probabilities = series[list(LABELS)].to_numpy(np.float64)
    order = np.argsort(-probabilities[:, OVERALL], kind="stable")[:CAM_SLICES]
    heat = heat_maps(trained, dataset, order)
    highlights = [
        Highlight(
            int(place),
            None if heat is None else heat[number],
            f"slice {place}: any {probabilities[place, OVERALL]:.2f}, {likeliest(probabilities[place])}",
        )
        for number, place in enumerate(order)
    ]
    spacing = series["slice_spacing_mm"].iloc[0]
    known = "" if np.isnan(spacing) else f", {spacing:.1f} mm apart"
    highest = probabilities.max(axis=0)
    said = ", ".join(f"{name} {value:.2f}" for name, value in zip(LABELS, highest, strict=True))
    lines = [f"highest slice: {said}"]
    if heat is not None:
        cells = " x ".join(map(str, heat.shape[1:]))
        lines.append(
            f"colour: Grad-CAM of any on the highest slices ({cells} cells, each slice to its own highest), no outline"
        )
    write_picture(
        path,
        draw_series(
            f"{study_id}, {which}, {len(series)} slices{known}",
            lines,
            list(grey_slices(trained, dataset)),
            probabilities,
            LABELS,
            highlights,
            NOTICE,
        ),
    )


def likeliest(probabilities: np.ndarray) -> str:
    """Return the likeliest kind of hemorrhage of a slice (6,) as text."""
    kind = int(np.argmax(probabilities[:OVERALL]))
    return f"{LABELS[kind]} {probabilities[kind]:.2f}"


def describe_study(result: StudyResult) -> str:
    """Say in one line what a study got and how long it took."""
    total = sum(result.seconds.values())
    parts = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    highest = result.highest
    return (
        f"{result.study_id}: {len(result.slices)} slices in {total:.1f} s ({parts}); any {highest['any']:.3f}, "
        f"{likeliest(highest.to_numpy())}"
    )


def write_results(folder: Path, config: PredictConfig, trained: TrainedNetwork, results: list[StudyResult]) -> None:
    """Write ``slices.csv``, ``studies.csv`` and ``predictions.json``."""
    places = ["patient_id", "study_id", "series_id", "slice_index", "position_mm"]
    slices = pd.concat([result.slices for result in results])[[*places, *LABELS]].assign(notice=NOTICE)
    studies = pd.DataFrame(
        [
            {
                "study_id": result.study_id,
                "patient_id": result.slices["patient_id"].iloc[0],
                "series": result.slices["series_id"].nunique(),
                "slices": len(result.slices),
                **result.highest.to_dict(),
                "highest_slice": result.slices["any"].idxmax(),
                "seconds": round(sum(result.seconds.values()), 3),
                "notice": NOTICE,
            }
            for result in results
        ]
    )
    write_csv(folder / "slices.csv", slices, index=True)
    write_csv(folder / "studies.csv", studies)
    write_json(folder / "predictions.json", results_document(config, trained, results))


def results_document(config: PredictConfig, trained: TrainedNetwork, results: list[StudyResult]) -> dict[str, Any]:
    """Return predictions.json: the notice, which network it was, and each study with its slices and seconds."""
    return {
        "notice": NOTICE,
        "network": {
            "model": trained.config.net_model,
            "weights": trained.weights,
            "iteration": trained.iteration,
            "calibrated": config.calibrate,
            "views": config.tta_views if config.tta else 0,
        },
        "labels": list(LABELS),
        "studies": [
            {
                "study_id": result.study_id,
                "probabilities": {name: float(value) for name, value in result.highest.items()},
                "pictures": result.pictures,
                "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
                "slices": [
                    {
                        "id": str(row.Index),
                        "series_id": row.series_id,
                        "slice_index": int(row.slice_index),
                        "position_mm": None if np.isnan(row.position_mm) else float(row.position_mm),
                        "probabilities": [float(getattr(row, name)) for name in LABELS],
                    }
                    for row in result.slices.itertuples()
                ],
            }
            for result in results
        ],
    }
