"""Average predictions of several models: python ensemble.py a.csv b.csv --weights=1,2; --help lists every option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import parse_args
from common.errors import UsageError, WorkError, command
from config import EnsembleConfig

if TYPE_CHECKING:
    import pandas as pd

ENSEMBLE_ROW = "ensemble"


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write the ensemble, print its scores where labels are known, and the file's path as the last line; return it."""
    config = parse_args(EnsembleConfig, argv)

    # Here, so that --help and a wrong flag answer at once.
    from common.ensembling import align, combine
    from common.files import check_output
    from rsna_dataset import read_predictions

    check_output("ens_output", config.ens_output)
    frames = align({str(file): read_predictions(file) for file in config.files})
    labels = None if config.ens_labels is None else read_labels(config.ens_labels)
    ensemble = combine(frames, config.weights or [1.0] * len(frames), config.ens_method)
    scores = None if labels is None else describe_scores(frames, ensemble, labels, str(config.ens_labels))
    write_predictions(ensemble, config.files, config.ens_output)
    if scores is not None:
        print(scores)
    print(f"{config.ens_method} of {len(frames)} files, {len(ensemble)} rows:")
    print(config.ens_output)
    return config.ens_output


def is_submission(path: Path) -> bool:
    """Whether a file that was read as predictions has the competition's long form, told by its header."""
    with path.open(encoding="utf-8-sig") as file:
        return [name.strip().strip('"') for name in file.readline().split(",")] == ["ID", "Label"]


def read_labels(path: Path) -> pd.DataFrame:
    """Return the known labels of a fold CSV, a metadata.csv or the competition's train CSV: index id, 0 or 1 a label.

    Images without labels (the test images of a metadata.csv) are left out. Raises UsageError where the file can't be
    read or has other columns, WorkError for a label that is not 0 or 1, an image with some labels only, or twice.
    """
    import numpy as np
    import pandas as pd

    from rsna_dataset import LABELS, read_competition_labels

    try:
        if is_submission(path):
            return read_competition_labels(path)
        header = pd.read_csv(path, nrows=0).columns
        missing = [name for name in ("id", *LABELS) if name not in header]
        if missing:
            raise UsageError(
                f"--ens_labels={path}: has no column {', '.join(missing)}; give a fold CSV, a metadata.csv "
                "or the competition's train CSV"
            )
        text = pd.read_csv(path, usecols=["id", *LABELS], dtype=str).set_index("id")
    except OSError as error:
        raise UsageError(f"--ens_labels={path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # pandas' ParserError and EmptyDataError, and a text that is not UTF-8
        raise UsageError(f"--ens_labels={path}: not a CSV file ({' '.join(str(error).split())})") from None
    if text.index.has_duplicates:
        raise WorkError(f"{path}: image {text.index[text.index.duplicated()][0]} stands there more than once")
    labelled = text[text.notna().any(axis=1)]
    numbers = labelled.apply(pd.to_numeric, errors="coerce")
    wrong = np.argwhere(~numbers.isin((0, 1)).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        found = labelled.iloc[row, column]
        raise WorkError(
            f"{path}: image {labelled.index[row]}, label {labelled.columns[column]}: "
            f"{'is empty' if pd.isna(found) else f'{found!r} is not 0 or 1'}"
        )
    return numbers.astype("int8")


def describe_scores(
    frames: Mapping[str, pd.DataFrame], ensemble: pd.DataFrame, labels: pd.DataFrame, source: str
) -> str:
    """Return the log losses of members, ensemble and constant predictor, and the ensemble's label table, as text.

    The constant predictor knows the prevalences of the labelled images that the files don't predict (a fold's train
    part), or of the scored ones where there are no others. Raises UsageError where no predicted image has labels.
    """
    from common.statistics import format_table, label_table, member_table
    from rsna_dataset import LABEL_WEIGHTS, LABELS

    known = ensemble.index.intersection(labels.index, sort=False)
    if len(known) == 0:
        raise UsageError(f"--ens_labels={source}: knows none of the {len(ensemble)} predicted images")
    others = labels.drop(index=known)
    basis = others if len(others) else labels
    names = list(LABELS)
    members = {name: frame.loc[known, names].to_numpy() for name, frame in (*frames.items(), (ENSEMBLE_ROW, ensemble))}
    shared = (labels.loc[known, names].to_numpy(), names, LABEL_WEIGHTS, basis[names].mean().to_numpy())
    origin = "other labelled" if len(others) else "same"
    return "\n".join(
        (
            f"{len(known)} of {len(ensemble)} images have labels in {source}; the constant predictor knows the "
            f"prevalences of the {len(basis)} {origin} images",
            "",
            format_table(member_table(members, *shared)),
            "",
            format_table(label_table(members[ENSEMBLE_ROW], *shared).rename_axis(ENSEMBLE_ROW)),
            "",
        )
    )


def write_predictions(ensemble: pd.DataFrame, files: Sequence[Path], path: Path) -> None:
    """Write a submission with rows and order of the first file where all are submissions, else the wide form."""
    from common.files import write_csv
    from rsna_dataset import check_submission, write_submission

    if all(is_submission(file) for file in files):
        write_submission(ensemble, files[0], path)
        check_submission(path, files[0])
    else:
        write_csv(path, ensemble.rename_axis("id").reset_index())


if __name__ == "__main__":
    main()
