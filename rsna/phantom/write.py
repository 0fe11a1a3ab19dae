"""Write a phantom: synthetic head CT with bleeding, in the files and formats of the RSNA 2019 competition.

The phantom stands in for data that may not be passed on. It is drawn from formulas and a seed, holds no patient, and
says nothing about how well a model would do on real images.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError, WorkError
from common.files import atomic_path, check_output, write_csv, write_json
from common.foreign import read_json
from common.machine import usable_cores
from rsna.phantom.options import PhantomConfig
from rsna_dataset import TRUTH_FILE, TRUTH_MASKS

if TYPE_CHECKING:
    import pandas as pd

    from rsna.phantom.plan import StudyPlan
    from rsna.phantom.study import PhantomSettings

FORMAT_VERSION = 1
MARK_FILE = "phantom.json"  # written last: a phantom that has it is complete
TRAIN_CSV = "stage_2_train.csv"
SUBMISSION_CSV = "stage_2_sample_submission.csv"
ARCHIVE_TRUTH, STUDY_LABELS = "archive_truth.csv", "study_labels.csv"
FEWEST_PLANNED = 12
REPEATED_IDS = 4  # ids whose rows the train CSV holds twice
SHEET_STUDIES, SHEET_SLICES, SHEET_TILE = 10, 10, 192


def write_phantom(config: PhantomConfig) -> Path:
    """Write the phantom that the options describe, or keep an existing one. Return its folder.

    Raises UsageError for too few studies, for a contact sheet that is no PNG file, and for a folder that holds other
    things.
    """
    from rsna.phantom.plan import count_tests
    from rsna.phantom.study import PhantomSettings

    try:
        count_tests(_planned(config), config.phantom_test_share)
    except ValueError as error:
        raise UsageError(f"--phantom_studies={config.phantom_studies} is too few: {error}") from None
    sheet = config.phantom_contact_sheet
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"--phantom_contact_sheet={sheet}: is a PNG file; give a name that ends on .png")
        check_output("phantom_contact_sheet", sheet)
    folder = config.phantom_folder.absolute()
    if config.phantom_only_if_missing and _read_mark(folder) == _mark(config):
        print(f"phantom: {folder} stands already, with the same options")
    else:
        _check_target(folder)
        plans = _plans(config)
        settings = PhantomSettings(
            config.seed, config.phantom_image_size, config.phantom_difficulty, config.phantom_masks
        )
        _check_space(folder, plans, settings)
        with _new_folder(folder) as partial:
            truth = _write_images(plans, settings, partial, config)
            (_write_archive_tables if config.phantom_archive else _write_tables)(truth, partial, config.seed)
            write_json(partial / MARK_FILE, _mark(config))
        _print_summary(truth, folder, config)
    if sheet is not None:
        _write_contact_sheet(folder, config, sheet)
    return config.phantom_folder


def _plans(config: PhantomConfig) -> list[StudyPlan]:
    from rsna.phantom.plan import plan_studies

    return plan_studies(
        _planned(config),
        config.seed,
        config.phantom_difficulty,
        config.phantom_slices,
        config.phantom_test_share,
    )[: config.phantom_studies]


def _planned(config: PhantomConfig) -> int:
    """Return how many studies to plan. An archive needs no quirks, so the first few of a plan are enough."""
    return max(config.phantom_studies, FEWEST_PLANNED) if config.phantom_archive else config.phantom_studies


def _mark(config: PhantomConfig) -> dict[str, Any]:
    return {
        "phantom": FORMAT_VERSION,
        "studies": config.phantom_studies,
        "slices": config.phantom_slices,
        "image_size": config.phantom_image_size,
        "test_share": config.phantom_test_share,
        "difficulty": config.phantom_difficulty,
        "seed": config.seed,
    } | {name: True for name in ("archive", "masks") if getattr(config, f"phantom_{name}")}


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """Return the options of the complete phantom in ``folder``, None if there is none."""
    try:
        mark = read_json(folder / MARK_FILE)
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and "phantom" in mark else None


def _check_target(folder: Path) -> None:
    """Raise UsageError if ``folder`` holds something else than a phantom."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"--phantom_folder={folder} is a file or a link; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and _read_mark(folder) is None:
        raise UsageError(f"--phantom_folder={folder} holds other files than a phantom's; name a new folder")


def _check_space(folder: Path, plans: list[StudyPlan], settings: PhantomSettings) -> None:
    needed = int(sum(plan.slices for plan in plans) * (settings.image_size**2 * (2 + settings.masks) + 2000) * 1.05)
    parent = next(p for p in folder.parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise WorkError(
            f"{folder}: the phantom needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make space or "
            "ask for fewer --phantom_studies"
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. It replaces ``folder`` when all is written.

    A killed run leaves only the temporary folder, and the next run empties it. A lock keeps two
    runs from filling the same folder at once.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise WorkError(f"{partial}: cannot be made ({error.strerror}); check --phantom_folder") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkError(f"{partial}: another run is writing this phantom; wait for it to end") from None
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
        if folder.exists():
            # Remove the mark first: a half removed phantom must not look complete.
            (folder / MARK_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        os.close(handle)


def _write_images(
    plans: list[StudyPlan], settings: PhantomSettings, folder: Path, config: PhantomConfig
) -> list[dict[str, Any]]:
    """Write all DICOM files, one task for each study. Return the rows of the truth file in the order of studies."""
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    from common.cli.console import progress
    from rsna.phantom.archive import write_archive_study
    from rsna.phantom.study import write_study

    for name in () if config.phantom_archive else ("stage_2_train", "stage_2_test"):
        (folder / name).mkdir()
    if settings.masks:
        (folder / TRUTH_MASKS).mkdir()
    jobs = min(config.n_jobs or usable_cores(), len(plans))
    write = write_archive_study if config.phantom_archive else write_study
    tasks = (joblib.delayed(write)(plan, settings, folder) for plan in plans)
    truth: list[dict[str, Any]] = []
    try:
        studies = joblib.Parallel(n_jobs=jobs, return_as="generator", pre_dispatch="2*n_jobs", batch_size=1)(tasks)
        for rows in progress(studies, total=len(plans), desc="phantom", unit="study"):
            truth += rows
    except TerminatedWorkerError as error:
        raise WorkError(f"{folder}: a worker process was killed (out of memory?); use a smaller --n_jobs") from error
    except OSError as error:
        raise WorkError(
            f"{folder}: writing failed ({error.strerror}); check disk and mode, then start again"
        ) from error
    return truth


def _write_archive_tables(truth: list[dict[str, Any]], folder: Path, seed: int) -> None:
    """Write what each series is, and the labels of the studies by StudyInstanceUID."""
    import pandas as pd

    from rsna.phantom.study import LABELS

    frame = pd.DataFrame(truth)
    write_csv(folder / ARCHIVE_TRUTH, frame)
    write_csv(folder / STUDY_LABELS, frame[["StudyInstanceUID", *LABELS]].drop_duplicates())


def _write_tables(truth: list[dict[str, Any]], folder: Path, seed: int) -> None:
    """Write the train CSV, the sample submission and the truth file."""
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(truth)
    train = frame[frame["split"] == "train"].sort_values("id")
    rng = np.random.default_rng([seed, 4])
    repeated = rng.choice(train["id"].to_numpy(), min(REPEATED_IDS, len(train)), replace=False)
    rows = _long_form(train)
    again = _long_form(train[train["id"].isin(repeated)])
    # The second copies are whole blocks in the middle of the file.
    place = len(rows) // 12 * 6
    rows = pd.concat([rows.iloc[:place], again, rows.iloc[place:]])
    write_csv(folder / TRAIN_CSV, rows)

    submission = _long_form(frame[frame["split"] == "test"].sort_values("id"))
    submission["Label"] = 0.5
    write_csv(folder / SUBMISSION_CSV, submission)

    marked = frame["quirks"].where(~frame["id"].isin(repeated), frame["quirks"] + ";repeated_rows")
    frame["quirks"] = marked.str.strip(";")
    write_csv(folder / TRUTH_FILE, frame)


def _long_form(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn one row for each image into the competition's rows ``ID_xxxxxxxxx_<label>,Label``."""
    import numpy as np
    import pandas as pd

    from rsna.phantom.study import LABELS

    ids = np.repeat(frame["id"].to_numpy(dtype=object), len(LABELS))
    names = np.tile(np.array(LABELS, dtype=object), len(frame))
    return pd.DataFrame({"ID": ids + "_" + names, "Label": frame[list(LABELS)].to_numpy().ravel()})


def _print_summary(truth: list[dict[str, Any]], folder: Path, config: PhantomConfig) -> None:
    import pandas as pd

    from rsna.phantom.study import LABELS

    frame = pd.DataFrame(truth)
    if config.phantom_archive:
        print(
            f"phantom: an archive of {len(frame)} series of {frame['study'].nunique()} studies in {folder / 'archive'}"
        )
        return
    shares = ", ".join(f"{label} {frame[label].mean():.1%}" for label in LABELS)
    print(f"phantom: {len(frame)} images of {frame['study_id'].nunique()} studies in {folder}; positive: {shares}")


def _write_contact_sheet(folder: Path, config: PhantomConfig, path: Path) -> None:
    """Draw studies × slices in the brain window with their labels. Studies with each kind of bleeding come first."""
    import cv2
    import numpy as np
    import pandas as pd

    from rsna.phantom.bleeding import KINDS
    from rsna.phantom.study import PhantomSettings, render_study

    settings = PhantomSettings(config.seed, config.phantom_image_size, config.phantom_difficulty)
    plans = _plans(config)
    truth = pd.read_csv(folder / TRUTH_FILE, keep_default_na=False)
    studies = [rows.reset_index(drop=True) for _, rows in truth.groupby("study_id", sort=False)]
    chosen: list[int] = []
    for _ in range(2):
        for kind in KINDS:
            chosen += [i for i in range(len(plans)) if kind in plans[i].kinds and i not in chosen][:1]
    chosen = [*chosen[: SHEET_STUDIES - 2], *[i for i in range(len(plans)) if i not in chosen]][:SHEET_STUDIES]
    sheet = []
    for index in chosen:
        rows = studies[index]
        picked = np.unique(np.linspace(1, len(rows) - 2, SHEET_SLICES).round().astype(int).clip(0))
        tiles = []
        for number, picture in zip(picked, render_study(plans[index], settings, set(picked.tolist())), strict=True):
            labels = [short for short, kind in zip(("EDH", "IPH", "IVH", "SAH", "SDH"), KINDS, strict=True)
                      if rows.loc[number, kind]]  # fmt: skip
            tiles.append(_tile(picture.hu, f"{index}/{number} {' '.join(labels)}", bool(labels)))
        tiles += [np.zeros_like(tiles[0])] * (SHEET_SLICES - len(tiles))
        sheet.append(np.hstack(tiles))
    content = cv2.imencode(".png", np.vstack(sheet))[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())
    print(f"contact sheet: {path}")


def _tile(hu: Any, text: str, positive: bool) -> Any:
    """Draw a slice in the brain window (centre 40, width 80) on a square tile with a line of text."""
    import cv2
    import numpy as np

    side = max(hu.shape)
    square = np.full((side, side), -1024, np.float32)
    square[: hu.shape[0], : hu.shape[1]] = hu
    small = cv2.resize(square.clip(0, 80), (SHEET_TILE, SHEET_TILE), interpolation=cv2.INTER_AREA)
    tile = cv2.cvtColor((small / 80 * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    colour = (80, 200, 255) if positive else (150, 150, 150)
    cv2.putText(tile, text, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)
    return tile
