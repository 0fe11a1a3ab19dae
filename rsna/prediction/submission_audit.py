"""Audit any submission: faults for which the competition would refuse it, and remarks on what looks wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UserError, WorkError, list_some
from common.evaluation.metrics import prevalences_of
from common.evaluation.texts import format_table
from common.files import check_output, write_csv
from common.spreadsheets import table_form
from config import TrainConfig
from rsna.forms import check_submission, read_submission_texts
from rsna.prediction.options import FILLS, AuditConfig
from rsna_dataset import LABELS, PUBLISHED, SAMPLE_FILE, dataset_folder, read_dataset_info, read_metadata

SUSPECT_RATIO = 2.0  # between a label's mean and its prevalence, in either direction


@dataclass(frozen=True)
class Expected:
    """What a submission should look like: the rows of ``sample`` in order (None without a sample), and prevalences.

    ``origin`` says where the ``prevalences`` (index :data:`LABELS`) come from.
    """

    sample_path: Path | None
    sample: pd.Index | None
    prevalences: pd.Series
    origin: str


@dataclass(frozen=True)
class Audit:
    """The findings. The competition refuses a submission with ``faults``; ``remarks`` are only worth a look.

    - ``rows``: rows of the submission; index ID as written, column Label, NaN for text that is no number.
    - ``missing``: rows of the sample that the submission lacks.
    - ``table``: statistics by label.
    """

    rows: pd.DataFrame
    faults: list[str]
    remarks: list[str]
    missing: pd.Index
    table: pd.DataFrame


def audit_submission(config: AuditConfig) -> Path:
    """Print the audit of ``--audit``, fill in missing rows with ``--audit_fill``, and return the valid file.

    Raises WorkError if the submission is not valid and filling can't make it valid.
    """
    path = config.audit
    expected = expectations(config)
    target = None
    if config.audit_fill is not None:
        if expected.sample is None:
            raise WorkError(f"--audit_fill={config.audit_fill}: no sample submission says which rows are missing")
        target = config.output_file or path.with_name(f"{path.stem}_filled.csv")
        check_output("output_file", target)
    audit = examine(path, expected)
    print(describe_audit(audit, expected))
    faults = audit.faults + [_counted(audit.missing, "rows missing")] * (len(audit.missing) > 0)
    if audit.faults or (faults and target is None):
        hint = "" if audit.faults else "; --audit_fill=prevalence or half writes a file that has them"
        raise WorkError(f"{path}: not a valid submission: {'; '.join(faults)}{hint}")
    if target is None:
        print("valid")
        return path
    fill(audit, expected, config.audit_fill, target)
    check_submission(target, expected.sample_path)
    print(f"valid, with {len(audit.missing)} rows filled by {FILLS[config.audit_fill]}")
    return target


def expectations(config: AuditConfig) -> Expected:
    """Return rows and prevalences to expect, from --audit_sample or the dataset, else no rows and published ones."""
    folder = dataset_folder(
        config.data_input_folder or TrainConfig.data_input_folder, config.data_dataset or TrainConfig.data_dataset
    )
    if config.data_dataset is not None:
        read_dataset_info(folder)  # a dataset that the user names must exist
    path = config.audit_sample
    if path is None and (folder / SAMPLE_FILE).is_file():
        path = folder / SAMPLE_FILE
    sample = None if path is None else pd.Index(read_submission_texts(path)["ID"])
    try:
        known = read_metadata(folder)[list(LABELS)].dropna(how="all")
    except UserError:
        known = pd.DataFrame(columns=list(LABELS))
    if len(known) and (config.audit_sample is None or config.data_dataset is not None):
        prevalences = pd.Series(prevalences_of(known), list(LABELS))
        return Expected(path, sample, prevalences, f"of the {len(known)} labelled images of {folder}")
    return Expected(path, sample, pd.Series(PUBLISHED)[list(LABELS)], "published of the competition's stage 1")


def examine(path: Path, expected: Expected) -> Audit:
    """Audit a submission; UsageError if it can't be read, WorkError if it has no columns ID and Label."""
    texts = read_submission_texts(path)
    if texts.empty:
        raise WorkError(f"{path}: has no rows")
    rows = pd.DataFrame({"Label": pd.to_numeric(texts["Label"], errors="coerce").to_numpy(np.float64)}, texts["ID"])
    names = rows.index
    label = np.array([name.rpartition("_")[2] for name in names], dtype=object)
    image = np.array([name.rpartition("_")[0] for name in names], dtype=object)
    faults, remarks = written_otherwise(path), []
    odd = ~np.isin(label, LABELS) | (image == "")
    twice = names[names.duplicated()].unique()
    no_number = ~np.isfinite(rows["Label"].to_numpy())
    outside = ~no_number & ~rows["Label"].between(0, 1).to_numpy()
    missing = pd.Index([]) if expected.sample is None else expected.sample.difference(names, sort=False)
    extra = pd.Index([]) if expected.sample is None else names.difference(expected.sample, sort=False)
    extra = extra.difference(names[odd], sort=False)
    for found, what in (
        (names[odd], f"rows not <image>_<label> with a label of {', '.join(LABELS)}"),
        (twice, "rows there more than once"),
        (names[no_number], "values empty or no finite number"),
        (names[outside], "values outside 0..1"),
        (extra, "rows not in the sample"),
    ):
        if len(found):
            faults.append(_counted(found, what))
    good = ~(odd | no_number | outside)
    wide = pd.DataFrame({"image": image[good], "label": label[good], "value": rows["Label"].to_numpy()[good]})
    wide = wide.pivot_table(index="image", columns="label", values="value", aggfunc="first")
    wide = wide.reindex(columns=list(LABELS))
    if expected.sample is None:
        parts = wide.index[wide.isna().any(axis=1)]
        if len(parts):
            faults.append(_counted(parts, "images without a row for some label"))
    elif not len(missing) and not faults and not names.equals(expected.sample):
        remarks.append("the rows stand in another order than the sample's, which the competition accepts")
    remarks += consistency(wide) + distribution(wide, expected.prevalences)
    return Audit(rows, faults, remarks, missing, statistics(wide, expected.prevalences))


def written_otherwise(path: Path) -> list[str]:
    """Return faults in the form of the table that this program reads but the competition refuses."""
    form = table_form(path)
    lacking = [name for name in ("ID", "Label") if name not in form.header]
    faults = [f"has no column {', '.join(lacking)}, in these capitals"] * bool(lacking)
    if form.separator != "," or form.skipped or form.encoding != "utf-8-sig":
        faults.append("is not UTF-8 text with a comma between ID and Label and the header in its first line")
    return faults


def consistency(wide: pd.DataFrame) -> list[str]:
    """Say how many images have an impossible ``any``: below one of the kinds, or above their sum."""
    whole = wide.dropna()
    kinds = whole[[name for name in LABELS if name != "any"]]
    below, above = kinds.max(axis=1) - whole["any"], whole["any"] - kinds.sum(axis=1)
    found = []
    for gap, what in ((below, "any below one of the kinds"), (above, "any above the kinds' sum")):
        wrong = gap.index[gap > 1e-9]
        if len(wrong):
            found.append(
                f"{len(wrong)} of {len(whole)} images have {what}, by {gap.max():.3g} at most ({gap.idxmax()})"
            )
    return found


def distribution(wide: pd.DataFrame, prevalences: pd.Series) -> list[str]:
    """Say which labels are constant, far from their prevalence, or so certain that an error costs much log loss."""
    found = []
    for name in LABELS:
        values = wide[name].dropna()
        if values.empty:
            continue
        ratio = values.mean() / prevalences[name] if prevalences[name] > 0 else np.inf
        if values.min() == values.max() and len(values) > 1:
            found.append(f"{name} is {values.iloc[0]:g} for every image")
        elif not 1 / SUSPECT_RATIO <= ratio <= SUSPECT_RATIO:
            found.append(f"{name} has a mean of {values.mean():.4f}, {ratio:.2g} times its prevalence")
        sure = int(((values < 1e-7) | (values > 1 - 1e-7)).sum())
        if sure:
            found.append(
                f"{name} is 0 or 1 to within 1e-7 for {sure} images: each that is wrong costs a log loss of 16 or more"
            )
    return found


def statistics(wide: pd.DataFrame, prevalences: pd.Series) -> pd.DataFrame:
    """Return a row for each label: prevalence, and the predictions' mean, quantiles and share from 0.5 up."""
    return pd.DataFrame(
        {
            "prevalence": prevalences.astype(float),
            "mean": wide.mean(),
            "lowest": wide.min(),
            "median": wide.median(),
            "99 %": wide.quantile(0.99),
            "highest": wide.max(),
            "from 0.5": (wide >= 0.5).mean(),
        }
    ).loc[list(LABELS)]


def fill(audit: Audit, expected: Expected, rule: str, path: Path) -> None:
    """Write all rows of the sample in its order; missing ones get 0.5 or their label's prevalence."""
    values = audit.rows["Label"].reindex(expected.sample)
    lacking = expected.sample.isin(audit.missing)
    labels = [name.rpartition("_")[2] for name in expected.sample[lacking]]
    values.loc[lacking] = 0.5 if rule == "half" else expected.prevalences[labels].to_numpy()
    write_csv(path, pd.DataFrame({"ID": expected.sample, "Label": values.to_numpy()}))


def describe_audit(audit: Audit, expected: Expected) -> str:
    """Return an audit as text for the console."""
    asked = "none" if expected.sample is None else f"{len(expected.sample)} rows"
    lines = [f"{len(audit.rows)} rows; sample submission: {asked}", f"prevalences {expected.origin}", ""]
    lines += [format_table(audit.table), ""]
    if len(audit.missing):
        lines.append(f"fault: {_counted(audit.missing, 'rows missing')}")
    lines += [f"fault: {line}" for line in audit.faults] + [f"look at: {line}" for line in audit.remarks]
    return "\n".join(lines)


def _counted(names: Iterable[str], what: str) -> str:
    names = list(names)
    return f"{what}: {len(names)} ({list_some(names)})"
