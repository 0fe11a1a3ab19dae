"""Predict the studies in any DICOM folder, archive or file, without a dataset: tables, JSON, pictures, pages.

The command converts the files to a temporary dataset, with the same code and in the same form as the training's. So a
slice gets the same prediction as in a preprocessed dataset. All identifiers in the output are pseudonyms.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import load_checkpoint
from common.cli.console import progress, say, tell
from common.cli.values import format_windows, parse_windows
from common.errors import UsageError, WorkError, nearest_file
from common.files import remove_temporaries, write_csv, write_json
from common.preprocessing.failures import count_reasons, failure_table, is_no_slice, shown
from common.preprocessing.id_map import COLUMNS, IdMap, file_rows, map_rows
from common.preprocessing.isolation import PROJECT
from common.preprocessing.journal import record_table
from common.preprocessing.naming import misnamed, named_by_path
from common.preprocessing.pseudonyms import Pseudonyms, load_key
from common.preprocessing.records import ImageForm, Record, Task
from common.preprocessing.series import ORIENTATION, POSITION, describe_singles
from common.preprocessing.sources import open_tree
from common.preprocessing.tables import first_known, mark_repeated, metadata_table, unique_images
from common.preprocessing.workers import convert_files
from common.reports.montage import Heat, Highlight, draw_series, hottest_of, write_picture
from common.reports.page import NOTICE
from common.training.hardware import cpu_cores
from config import TrainConfig
from rsna.kinds.pictures import seen_pictures
from rsna.prediction.options import SourceConfig
from rsna.prediction.pictures import OVERALL, grey_slices, heat_maps, heat_text, shown_heat
from rsna.prediction.study_models import Predicted, StudyModel, check_models, first_weight_file, load_study_model
from rsna.prediction.study_page import StudyPages, file_stem
from rsna.prepare.competition import find_competition
from rsna.prepare.job import file_tasks, image_form
from rsna.prepare.options import PreprocessingConfig
from rsna.prepare.series_choice import (
    CHOSEN,
    NOT_CHOSEN,
    SERIES_FILE,
    describe_choice,
    read_series,
    series_of,
    series_table,
    without_choice,
)
from rsna.prepare.source import COMPETITION_NAMES, ID_MAP, KEY_FILE, Source, list_source, private_files
from rsna.prepare.tables import file_order
from rsna_dataset import (
    DATASET_INFO,
    FAILED_FILE,
    FORMAT_VERSION,
    LABELS,
    METADATA_FILE,
    RSNADataset,
    dataset_folder,
    image_settings,
    read_dataset_info,
    read_metadata,
)

logger = logging.getLogger(__name__)

DATASET = "source"
WORK = ".rsna_source"  # marks a folder as ours, so that its pictures and pages may be removed
SCANNED = ImageForm(0, (), "int16")  # the form of the pictures that people see
HEAT_SLICES = 4


@dataclass(frozen=True)
class StudyResult:
    """A study's result: ``slices`` are rows of metadata with probabilities, ``study`` the study's own probabilities."""

    study_id: str
    slices: pd.DataFrame
    study: pd.Series
    pictures: list[str]
    page: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ConvertedConfig(SourceConfig):
    """The options of ``--source`` after its files were converted to a dataset in ``data_input_folder``."""

    data_dataset: str = DATASET


def predict_source(config: SourceConfig) -> Path:
    """Predict the studies of ``--source``, write the results to ``--predict_output``, and return that folder."""
    images = stored_form(config)
    check_models(config)
    folder = config.predict_output
    made = not folder.exists()
    try:
        with work_folder(folder) as work:
            predict_to(config, images, work, folder)
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    print(NOTICE)
    return folder


def predict_to(config: SourceConfig, images: PreprocessingConfig, inputs: Path, folder: Path) -> None:
    """Convert ``--source`` to a dataset in ``inputs``, predict its studies, and write the results to ``folder``."""
    form = image_form(images)
    started = time.perf_counter()
    scanned, places = convert_source(config, images, form, inputs, folder)
    reading = time.perf_counter() - started
    model = load_study_model(ConvertedConfig(**vars(config) | {"data_input_folder": inputs}))
    rows = read_metadata(dataset_folder(inputs, DATASET), described=True)
    patients = rows.groupby("study_id")["patient_id"].first()
    rows = rows[rows["split"] != NOT_CHOSEN]
    series = read_series(folder / SERIES_FILE)
    series = series.assign(patient_id=series["study_id"].map(patients).fillna(""))
    for study_id, reasons in without_choice(series).items():
        say(f"{study_id}: not predicted, no eligible series: {reasons}")
    share = reading / max(len(rows), 1)
    pages = None
    if config.predict_viewer:
        pages = StudyPages(scanned, places, patients, series, model.describe(), str(model.document()["study"]))
    results = []
    for study_id, part in progress(list(rows.groupby("study_id", sort=True)), desc="predict", unit="study"):
        result = predict_study(model, str(study_id), part, folder, share * len(part), pages)
        say(describe_study(result))
        results.append(result)
    write_results(folder, model, results, series)
    if not results:
        raise WorkError(
            f"--source={config.source}: no study has a series to predict; {folder / SERIES_FILE} says why; "
            "--pre_series=all predicts all series"
        )


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Yield an empty work folder in ``output``, and remove it at the end; first remove what an earlier failure left.

    Raises UsageError if ``output`` can't be made, holds something else, or is in use by another prediction.
    """
    work = output / WORK
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not work.is_dir():
            raise UsageError(f"--predict_output={output}: is not empty; name a new folder")
        work.mkdir(exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"--predict_output={output}: can't be made ({error.strerror}); name another folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--predict_output={output}: another prediction is in progress there") from None
        except OSError as error:
            logger.warning("%s: can't be locked (%s); don't predict to it twice at once", output, error.strerror)
        finished = False
        try:
            for path in [*work.iterdir(), *output.glob("*.png"), *output.glob("*.html")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            remove_temporaries(output)
            yield work
            finished = True
        finally:
            shutil.rmtree(work)
            if not finished and any(output.iterdir()):  # failed.csv says why; a later run may overwrite the folder
                work.mkdir()
    finally:
        os.close(handle)


def stored_form(config: SourceConfig) -> PreprocessingConfig:
    """Return the preprocessing options of the training's images, from the weight file.

    Older weight files don't hold them: then read the training's dataset, and raise UsageError if it is gone.
    """
    weight_file = first_weight_file(config.net_weight_file)
    checkpoint = load_checkpoint(weight_file)
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
                f"{weight_file}: an older weight file, which doesn't say how its images were stored, and "
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
    config: SourceConfig, images: PreprocessingConfig, form: ImageForm, inputs: Path, output: Path
) -> tuple[Path, pd.DataFrame]:
    """Convert the files to the dataset ``inputs/datasets/source``, and list failed files in ``output/failed.csv``.

    Return a dataset's folder with the images as scanned, and where each image lies (index: image id).
    Raises UsageError if the source doesn't exist or is empty, WorkError if no file gave an image.
    """
    source = find_files(config.source)
    key_file = find_key(config, output)
    pseudonyms = Pseudonyms(load_key(key_file), COMPETITION_NAMES if source.competition else {})
    skip = (output, *private_files(key_file))
    files, refused = list_source(dataclasses.replace(source, competition=None), pseudonyms, skip)
    if files.empty and refused.empty:
        raise UsageError(f"--source={config.source}: holds no files")
    folder = dataset_folder(inputs, DATASET)
    (folder / "images").mkdir(parents=True)
    tasks = file_tasks(source.tree, files, folder / "images")
    jobs = cpu_cores(config.n_jobs or 0)
    found = convert_all(tasks, form, jobs, pseudonyms)
    files = named_by_path(files, record_table(found))
    again = misnamed(files, record_table(found), pseudonyms)
    if len(again):  # files that share a SOPInstanceUID
        tasks = file_tasks(source.tree, files.loc[again], folder / "images")
        found = [record for record in found if record.source_id not in again]
        found += convert_all(tasks, form, jobs, pseudonyms)
    records = record_table(found)
    failed = failure_table(records, files, refused)
    write_csv(output / FAILED_FILE, shown(failed).assign(notice=NOTICE))
    write_map(key_file, output, found, files, failed)
    if len(failed):
        other = int(is_no_slice(failed).sum())
        reasons = count_reasons(failed)
        logger.warning("%d files gave no image, %d of them no CT slices (%s)", len(failed), other, reasons)
    table = unique_images(records).sort_index()
    if table.empty:
        raise WorkError(
            f"--source={config.source}: none of {len(files)} files gave an image; {output / 'failed.csv'} says why"
        )
    table = mark_repeated(table.assign(split="test", group_id=first_known(table, "patient_id", "study_id")))
    metadata = metadata_table(table, pd.DataFrame(index=pd.Index([], name="id")), file_order(files, table))
    if singles := describe_singles(metadata):
        logger.warning("%s", singles)
    series = series_table(metadata.set_index("id"), config.series_mode(competition=source.competition is not None))
    write_csv(output / SERIES_FILE, series.assign(notice=NOTICE), index=True)
    if (series["choice"] != CHOSEN).any():
        tell(describe_choice(series))
    chosen = series_of(metadata.set_index("id")).isin(series.index[series["choice"] == CHOSEN])
    write_csv(folder / METADATA_FILE, metadata.assign(split=np.where(chosen, "test", NOT_CHOSEN)))
    info = {
        "format_version": FORMAT_VERSION,
        "image_form": form.name,
        "windows": None if images.pre_window is None else format_windows(images.pre_window),
        "dtype": form.dtype,
        "format": form.file_format,
        "labelled": 0,
    }
    write_json(folder / DATASET_INFO, info)
    scanned = folder
    if config.predict_viewer and form != SCANNED:
        scanned = dataset_folder(inputs, "scanned")
        (scanned / "images").mkdir(parents=True)
        convert_all(file_tasks(source.tree, files, scanned / "images"), SCANNED, jobs, pseudonyms)
    return scanned, table[[*POSITION, *ORIENTATION]]


def convert_all(tasks: Sequence[Task], form: ImageForm, jobs: int, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert all files with a progress bar; return their records."""
    records: list[Record] = []
    with progress(total=len(tasks), desc="reading", unit="file") as bar:
        for chunk in convert_files(tasks, form, jobs, pseudonyms) if tasks else ():
            records += chunk
            bar.update(len({record.source_id for record in chunk}))
    return records


def find_key(config: SourceConfig, output: Path) -> Path:
    """Return the key file of the pseudonyms, whatever the current folder is.

    Take --pseudonym_key, or else the key in --data_input_folder, in the training's input folder, or in this project's
    ``input``.
    """
    if config.pseudonym_key is not None:
        place = config.pseudonym_key
    elif config.data_input_folder is not None:
        place = config.data_input_folder / KEY_FILE
    else:
        options = load_checkpoint(first_weight_file(config.net_weight_file))["config"]
        trained_on = PROJECT / str(options.get("data_input_folder", TrainConfig.data_input_folder))
        place = (trained_on if trained_on.is_dir() else PROJECT / TrainConfig.data_input_folder) / KEY_FILE
    if output.resolve() in place.resolve().parents:
        raise UsageError(f"--pseudonym_key={place}: lies in --predict_output, which is passed on without it")
    return place


def write_map(
    key_file: Path, output: Path, records: Sequence[Record], files: pd.DataFrame, failed: pd.DataFrame
) -> None:
    """Write beside the key which file and patient each predicted id stands for, and tell the user where."""
    place = hashlib.blake2b(os.fsencode(output.resolve()), digest_size=4).hexdigest()  # one map for each output folder
    id_map = IdMap(key_file.with_name(ID_MAP.format(f"predict_{place}")))
    rows = [row for row in map_rows(records, files["path"].get) if row[0]]
    rows = pd.concat([pd.DataFrame(rows, columns=list(COLUMNS)), file_rows(failed)], ignore_index=True)
    id_map.finish(rows)


def find_files(path: Path) -> Source:
    """Return the files that ``--source`` names; UsageError if there are none.

    In a folder with the competition's layout the ids are pseudonyms already, and they are kept.
    """
    tree = open_tree(path)
    if tree is None:
        raise UsageError(f"--source={path}: no such folder, archive or file{nearest_file(path)}")
    competition = find_competition(path) or find_competition(path.resolve().parent)
    return Source(tree, competition)


def predict_study(
    model: StudyModel, study_id: str, rows: pd.DataFrame, folder: Path, reading: float, pages: StudyPages | None
) -> StudyResult:
    """Predict a study, draw each of its series, and write its page where ``pages`` are wanted.

    ``reading`` is the time in seconds that its files took.
    """
    started = time.perf_counter()
    predicted = model.predict(rows)
    ended = time.perf_counter()
    slices = rows.drop(columns=list(LABELS)).join(predicted.slices).sort_values(["series_id", "slice_index"])
    pictures = []
    groups = [series for _, series in slices.groupby("series_id", sort=True)]
    heats = [series_heat(model, series) for series in groups]
    hottest = hottest_of(heat for found in heats for heat in found or ())
    for number, (series, found) in enumerate(zip(groups, heats, strict=True), start=1):
        stem = file_stem(study_id)
        name = f"{stem}.png" if len(groups) == 1 else f"{stem}_{number}.png"
        title = f"{stem}, series {number} of {len(groups)}"
        draw_one_series(model, title, series, predicted, found, hottest, folder / name)
        pictures.append(name)
    page = "" if pages is None else pages.write(folder, study_id, slices, predicted.study)
    seconds = {"reading": reading, "network": ended - started, "pictures": time.perf_counter() - ended}
    return StudyResult(study_id, slices, predicted.study, pictures, page, seconds)


def highest_slices(series: pd.DataFrame) -> np.ndarray:
    """Return the places of the slices to show large, those of the highest ``any`` first."""
    return np.argsort(-series[LABELS[OVERALL]].to_numpy(np.float64), kind="stable")[:HEAT_SLICES]


def series_heat(model: StudyModel, series: pd.DataFrame) -> list[Heat | None] | None:
    """Return the heat of a series' highest slices; None if a network has none."""
    datasets = [seen_pictures(network, series) for network in model.networks.values()]
    places = highest_slices(series)
    maps = mean_heat(model, datasets, places)
    if maps is None:
        return None
    first = next(iter(model.networks.values()))
    return shown_heat(first, datasets[0], places, maps, series[LABELS[OVERALL]].to_numpy(np.float64)[places])


def draw_one_series(
    model: StudyModel,
    title: str,
    series: pd.DataFrame,
    predicted: Predicted,
    heats: Sequence[Heat | None] | None,
    hottest: float,
    path: Path,
) -> None:
    """Draw a series with its probabilities and the heat of its highest slices to a PNG file."""
    probabilities = series[list(LABELS)].to_numpy(np.float64)
    places = highest_slices(series).tolist()
    highlights = [
        Highlight(
            place,
            None if heats is None else heats[number],
            f"slice {place}: any {probabilities[place, OVERALL]:.2f}, {likeliest(probabilities[place])}",
        )
        for number, place in enumerate(places)
    ]
    spacing = series["slice_spacing_mm"].iloc[0]
    known = "" if np.isnan(spacing) else f", {spacing:.1f} mm apart"
    lines = [f"highest slice: {describe_probabilities(probabilities.max(axis=0))}"]
    if model.judges_studies:
        lines.append(f"the study: {describe_probabilities(predicted.study)}")
    lines.append(f"by {model.describe()}")
    if heats is not None:
        networks = ", of the slice networks, without what the series adds" * model.judges_studies
        lines.append(heat_text(heats, f" for the study{networks}"))
    first = next(iter(model.networks.values()))
    write_picture(
        path,
        draw_series(
            f"{title}, {len(series)} slices{known}",
            lines,
            list(grey_slices(first, seen_pictures(first, series))),
            probabilities,
            LABELS,
            highlights,
            NOTICE,
            hottest,
        ),
    )


def describe_probabilities(values: np.ndarray | pd.Series) -> str:
    """Return the probabilities (6,) with their labels as text."""
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(LABELS, values, strict=True))


def likeliest(probabilities: np.ndarray) -> str:
    """Return the likeliest kind of hemorrhage of a slice (6,) as text."""
    kind = int(np.argmax(probabilities[:OVERALL]))
    return f"{LABELS[kind]} {probabilities[kind]:.2f}"


def mean_heat(model: StudyModel, datasets: Sequence[RSNADataset], places: np.ndarray) -> np.ndarray | None:
    """Return the networks' mean heat (B, h, w) of ``any`` for some slices; None if a network has none."""
    maps = []
    for trained, dataset in zip(model.networks.values(), datasets, strict=True):
        found = heat_maps(trained, dataset, places)
        if found is None:
            return None
        maps.append(found)
    return np.mean(maps, axis=0)


def describe_study(result: StudyResult) -> str:
    """Return a line with a study's result and its time."""
    total = sum(result.seconds.values())
    parts = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    return (
        f"{result.study_id}: {len(result.slices)} slices in {total:.1f} s ({parts}); any {result.study['any']:.3f}, "
        f"{likeliest(result.study.to_numpy())}"
    )


def write_results(folder: Path, model: StudyModel, results: list[StudyResult], series: pd.DataFrame) -> None:
    """Write ``slices.csv``, ``studies.csv`` and ``predictions.json``.

    ``series`` is series.csv, with the patient_id. A study without a chosen series has no probabilities, and the reason.
    """
    places = ["patient_id", "study_id", "series_id", "slice_index", "position_mm"]
    columns = [*places, *LABELS]
    parts = [result.slices[columns] for result in results]
    slices = pd.concat(parts or [pd.DataFrame(columns=columns, index=pd.Index([], name="id"))]).assign(notice=NOTICE)
    patients = series.groupby("study_id")["patient_id"].first()
    studies = pd.DataFrame(
        [
            {
                "study_id": result.study_id,
                "patient_id": result.slices["patient_id"].iloc[0],
                "series": result.slices["series_id"].nunique(),
                "slices": len(result.slices),
                **result.study.to_dict(),
                "highest_slice": result.slices["any"].idxmax(),
                "seconds": round(sum(result.seconds.values()), 3),
                "reason": "",
                "notice": NOTICE,
            }
            for result in results
        ]
        + [
            {
                "study_id": study_id,
                "patient_id": patients[study_id],
                "series": 0,
                "slices": 0,
                **dict.fromkeys(LABELS, np.nan),
                "highest_slice": "",
                "seconds": 0.0,
                "reason": f"no eligible series: {reasons}",
                "notice": NOTICE,
            }
            for study_id, reasons in without_choice(series).items()
        ]
    )
    write_csv(folder / "slices.csv", slices, index=True)
    write_csv(folder / "studies.csv", studies)
    write_json(folder / "predictions.json", results_document(model, results, series))


def results_document(model: StudyModel, results: list[StudyResult], series: pd.DataFrame) -> dict[str, Any]:
    """Return the content of predictions.json: notice, models, and each study with its slices, series and times.

    A study without a chosen series has ``probabilities`` null, and the reason.
    """
    listed = {
        study_id: rows[["choice", "reason"]].rename_axis("series_id").reset_index().to_dict("records")
        for study_id, rows in series.groupby("study_id")
    }
    return {
        "notice": NOTICE,
        "models": model.document(),
        "labels": list(LABELS),
        "studies": [
            {
                "study_id": result.study_id,
                "reason": None,
                "series": listed.get(result.study_id, []),
                "probabilities": {name: float(value) for name, value in result.study.items()},
                "pictures": result.pictures,
                "page": result.page or None,
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
        ]
        + [
            {
                "study_id": study_id,
                "reason": f"no eligible series: {reasons}",
                "series": listed[study_id],
                "probabilities": None,
                "pictures": [],
                "page": None,
                "seconds": {},
                "slices": [],
            }
            for study_id, reasons in without_choice(series).items()
        ],
    }
