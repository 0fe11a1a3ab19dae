"""Write the audit of a dataset: tables, charts, and a verdict on what to look at before training.

The audit uses the dataset's own tables and a sample of its images, so it needs no source files. It shows only
pseudonymous ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.datasets.image_files import load_image
from common.errors import list_some
from common.preprocessing.failures import count_reasons, is_no_slice
from common.preprocessing.groups import Identities, causes, large_group, picture_keys
from common.reports import page

SAMPLED_IMAGES = 400
HU_EDGES = np.arange(-1050, 2001, 50)
OUTLIERS_EACH, TILE = 3, 320
THUMBNAILS = 300  # in a page, some 6 MB
EMPTY_SHARE = 0.01  # of the pixels above -500 HU
BONE_HU, AIR_HU = 200, -800
EXAMPLES = 4
FOLD_TOLERANCE = 0.1
PREVALENCE_FACTOR = 2.0
TOP_ROWS = 8
CHOSEN = "chosen"  # choice of a series that is used
SHOWN_FACTS = ("vendor", "kernel", "contrast", "orientation", "series_slices", "thickness_mm")

Findings = list[tuple[bool, str]]


@dataclass(frozen=True)
class AuditedDataset:
    """The dataset to audit.

    - ``metadata``: the table as written, index ``id``. ``labels``: its label columns, none for an unlabelled dataset.
    - ``published``: the share of positives in other data, by label, or None to compare with nothing.
    - ``folds``: by name, the rows of each fold (sample_type, labels, group_id).
    - ``images``: the folder of the image files. ``suffix``: that of their names.
    - ``is_hu``: whether the images hold Hounsfield units.
    - ``by_study``: whether each study counts as a patient (--pre_group).
    - ``series``: index ``series_id``, study_id, choice, reason and facts as text; None for an older dataset.
    """

    name: str
    description: str
    metadata: pd.DataFrame
    failed: pd.DataFrame
    folds: dict[str, pd.DataFrame]
    labels: Sequence[str]
    published: dict[str, float] | None
    images: Path
    suffix: str
    is_hu: bool
    by_study: bool = False
    series: pd.DataFrame | None = None


def audit_page(data: AuditedDataset) -> str:
    """Return the audit as one HTML document."""
    verdict: Findings = []
    parts = [
        section(data, verdict)
        for section in (
            _counts,
            _series,
            _groups,
            _geometry,
            _storage,
            _intensities,
            _duplicates,
            _labels,
            _folds,
            _outliers,
        )
    ]
    verdict.sort(key=lambda row: not row[0])
    looks = sum(look for look, _ in verdict)
    lead = f"{looks} of {len(verdict)} points deserve a look before training." if looks else "Nothing stands out."
    gallery, named = _gallery(data, verdict)
    first = page.section("Verdict", page.paragraph(lead), page.findings(verdict, named))
    return page.page(f"Dataset {data.name}: audit", data.description, [first, *parts, gallery])


def _gallery(data: AuditedDataset, verdict: Findings) -> tuple[str, list[str]]:
    """Return pictures of the ids that the verdict names, each large when its id is clicked, and those ids.

    An id of a series, study or patient shows a slice from the middle.
    """
    table, pictures = data.metadata, {}
    words = dict.fromkeys(word for look, text in verdict if look for word in page.WORDS.findall(text))
    kinds = [name for name in ("series_id", "study_id", "patient_id", "group_id") if name in table]
    for word in [word for word in words if not word.isdigit()][:THUMBNAILS]:
        own, what = table.loc[table.index == word], "image"
        for name in kinds:
            if own.empty:
                own, what = table[table[name] == word], name.removesuffix("_id")
        if own.empty:
            continue
        shown = own.sort_values("slice_index", kind="stable").index[len(own) // 2]
        image = _load(data, shown)
        if image is not None:
            text = word if what == "image" else f"{what} {word}: a slice from the middle, {shown}"
            pictures[word] = _tile(image, data.is_hu), text
    if not pictures:
        return "", []
    said = "What the verdict names. A click enlarges a picture."
    return page.section("Pictures of the verdict", page.paragraph(said), page.enlarging(pictures)), list(pictures)


def _flag(verdict: Findings, ids: Sequence[str] | pd.Index, bad: str, good: str) -> None:
    """Add ``bad`` with a count and examples if there are ids, else ``good``."""
    verdict.append((True, f"{bad}: {len(ids):,} ({list_some(ids, EXAMPLES)}).") if len(ids) else (False, good))


def _text(values: pd.Series, count: int = TOP_ROWS) -> pd.DataFrame:
    """Return the most frequent values with their counts and shares, as text."""
    counts = values.value_counts()
    rest = counts.iloc[count:].sum()
    counts = counts.iloc[:count]
    if rest:
        counts["all others"] = rest
    shares = counts / len(values)
    return pd.DataFrame(
        {"images": [f"{n:,}" for n in counts], "share": [f"{s:.2%}" for s in shares]}, index=counts.index
    )


def _counts(data: AuditedDataset, verdict: Findings) -> str:
    table = data.metadata
    kinds = ["patient_id", "study_id", "series_id"]
    rows = {
        split: [f"{len(part):,}", *(f"{part[name][part[name] != ''].nunique():,}" for name in kinds)]
        for split, part in [*table.groupby("split"), ("all", table)]
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["images", "patients", "studies", "series"])
    failed = data.failed
    reasons = failed["reason"].value_counts()
    shown = pd.DataFrame({"files": [f"{count:,}" for count in reasons]}, index=reasons.index)
    total = len(table) + len(failed)
    other = is_no_slice(failed)
    faults, total = failed[~other], total - int(other.sum())
    if len(faults):
        verdict.append(
            (True, f"{len(faults):,} of {total:,} files gave no image ({count_reasons(faults)}): see failed.csv")
        )
    else:
        verdict.append((False, "Every file gave an image." if not len(failed) else "Every CT slice gave an image."))
    if other.any():
        verdict.append((False, f"{int(other.sum()):,} files are no CT slices ({count_reasons(failed[other])})."))
    train, test = (set(table.loc[table["split"] == split, "group_id"]) for split in ("train", "test"))
    _flag(verdict, sorted(train & test), "Patients in both train and test", "No patient stands in both train and test.")
    note = "Reasons are explained in docs/data.md." if len(failed) else "None."
    return page.section(
        "Files, patients and studies",
        page.cards(page.table("What there is", frame), page.table("Files that gave no image, by reason", shown, note)),
    )


def _series(data: AuditedDataset, verdict: Findings) -> str:
    """Show which series were chosen, why not the others, and the middle slice of some for each reason."""
    if data.series is None:
        return ""
    series, table = data.series, data.metadata
    named = table["series_id"].where(table["series_id"] != "", table["study_id"])
    rows, pictures = {}, {}
    for (choice, reason), part in series.groupby(["choice", "reason"]):
        slices = table[named.isin(part.index)]
        rows[f"{choice}: {reason}"] = [f"{len(part):,}", f"{part['study_id'].nunique():,}", f"{len(slices):,}"]
        for series_id, facts in part.iloc[:EXAMPLES].iterrows():
            own = table[named == series_id].sort_values("slice_index")
            image = _load(data, own.index[len(own) // 2]) if len(own) else None
            if image is not None:
                known = ", ".join(str(facts[name]) for name in SHOWN_FACTS if facts[name] not in ("", "unknown"))
                pictures[str(series_id)] = _tile(image, data.is_hu), f"{series_id}: {choice}, {reason}; {known}"
    without = set(series["study_id"]) - set(series["study_id"][series["choice"] == CHOSEN])
    _flag(verdict, sorted(without), "Studies without a series to use", "Every study has a series to use.")
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["series", "studies", "images"])
    note = "series.csv has the reason of each. docs/data.md explains the rules. A click enlarges a picture."
    return page.section(
        "Series",
        page.table("What was chosen, and why not the others", frame, note),
        page.enlarging(pictures, "series"),
    )


def _groups(data: AuditedDataset, verdict: Findings) -> str:
    """Show which images stay together in folds and intervals, and why."""
    table = data.metadata
    ids = table.index.to_numpy(dtype=object)
    columns = (table[name].to_numpy(dtype=object) for name in ("patient_id", "study_id"))
    images = Identities(*columns, _pictures(table).to_numpy(dtype=object), ids)
    if data.by_study:
        images = images.by_study()
    found = causes(images)
    nameless, alone = (images.patients == ""), (images.patients == "") & (images.studies == "")
    unknown = table.index[table["patient_id"] == ""]
    if len(unknown):
        some = list_some(unknown, EXAMPLES)
        verdict.append((True, f"{len(unknown):,} images have no patient id; their study counts as one: {some}"))
    study = found["study"]
    _flag(verdict, table.index[study.sizes > 1], "Images of patients who share a study (a study with several "
          "PatientIDs; such patients stay together)", "Every study has one PatientID.")  # fmt: skip
    large = large_group(table["group_id"].to_numpy(), images)
    if large is not None:
        name, studies, share = large
        verdict.append(
            (True, f"{share:.0%} of the images, of {studies} studies, are one group ({name}): a PatientID that stands "
             "for many patients? Then --pre_group=study takes each study for a patient.")
        )  # fmt: skip
    rows = {
        "all groups": [table["group_id"].nunique(), "", "", len(table)],
        "of a study, for want of a PatientID": [
            len(set(images.studies[nameless & ~alone])), "", "", int((nameless & ~alone).sum())
        ],
        "of one image, which names neither": [int(alone.sum()), "", "", int(alone.sum())],
    }  # fmt: skip
    texts = {"study": "joined by a study", "picture": "joined by a picture", "both": "joined by either"}
    for cause, text in texts.items():
        part = found[cause]
        rows[text] = [part.groups, part.patients, part.largest if part.groups else 0, int((part.sizes > 1).sum())]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["groups", "patients", "largest", "images"])
    frame = frame.map(lambda value: value if isinstance(value, str) else f"{value:,}")
    note = (
        "A group is what folds keep whole and intervals draw: a study here (--pre_group=study)."
        if data.by_study
        else "A group is what folds keep whole and intervals draw: a patient, with those of the same study or picture."
    )
    return page.section("Groups", page.cards(page.table("What stays together, by cause", frame, note)))


def _pictures(table: pd.DataFrame) -> pd.Series:
    """Return for each image the hash of a picture that can link patients, "" if it can't."""
    return pd.Series(picture_keys(table.rename(columns={"picture_hash": "digest"})), index=table.index)


def _geometry(data: AuditedDataset, verdict: Findings) -> str:
    table = data.metadata
    sizes = table["rows"].astype(str) + " × " + table["columns"].astype(str)
    series = table["series_id"].where(table["series_id"] != "", table["study_id"])
    slices = series.groupby(series).size()
    spacing = table["row_spacing_mm"].dropna()
    gaps = table.assign(series=series).sort_values(["series", "slice_index"])
    distance = gaps.groupby("series")["position_mm"].diff().dropna()
    _flag(verdict, table.index[table["row_spacing_mm"].isna()], "Images that don't say their pixel spacing",
          "Every image says its pixel spacing.")  # fmt: skip
    _flag(verdict, table.index[table["position_mm"].isna()], "Images that don't say where they lie",
          "Every slice says where it lies.")  # fmt: skip
    _flag(
        verdict,
        distance.index[distance == 0],
        "Slices at a repeated position",
        "No position is repeated.",
    )
    holes = series[["gap" in marks.split(";") for marks in table["geometry"]]].unique()
    _flag(verdict, holes, "Series with a gap of more than 1.5 times the distance of the slices around it",
          "No series has a gap.")  # fmt: skip
    _flag(verdict, slices.index[slices == 1], "Series of one slice, nothing for a model of several",
          "Every series has several slices.")  # fmt: skip
    rare = table.index[~sizes.isin([sizes.mode().iloc[0]])]
    if len(rare):
        some = list_some(rare, EXAMPLES)
        verdict.append((False, f"{len(rare):,} images are not {sizes.mode().iloc[0]}; training resizes them: {some}"))
    return page.section(
        "Sizes and geometry",
        page.cards(
            page.table("Rows × columns as scanned", _text(sizes)),
            _histogram("Pixel spacing, mm", spacing, 40),
            page.histogram(
                "Slices in a series", np.bincount(slices, minlength=2)[1:], np.arange(slices.max() + 1) + 0.5,
                f"Median {slices.median():.0f}, from {slices.min()} to {slices.max()}.",
            ),
            _histogram("Distance of neighbouring slices, mm", distance.clip(upper=distance.quantile(0.995)), 40),
            _histogram("Slice thickness as the files say, mm", table["thickness_mm"].dropna(), 30),
        ),
    )  # fmt: skip


def _histogram(title: str, values: pd.Series, bins: int) -> str:
    if values.empty:
        return page.table(title, pd.DataFrame(index=pd.Index([])), "No file says it.")
    counts, edges = np.histogram(values, bins=bins)
    note = f"Median {values.median():.4g}, from {values.min():.4g} to {values.max():.4g}, {len(values):,} values."
    return page.histogram(title, counts, edges, note)


def _storage(data: AuditedDataset, verdict: Findings) -> str:
    table = data.metadata
    mended = table["mended"].str.split(";").explode()
    marks = mended[mended != ""]
    doubtful = table.index[table["mended"].str.contains("doubtful")]
    _flag(verdict, doubtful, "Images that may hold wrapped values (wrap_doubtful) and were left alone",
          "No image is suspected of wrapped values that were not mended.")  # fmt: skip
    counts = marks.value_counts()
    frame = pd.DataFrame(
        {"images": [f"{n:,}" for n in counts], "share": [f"{n / len(table):.2%}" for n in counts]}, index=counts.index
    )
    kept = (table["crop_rows"] == table["rows"]) & (table["crop_columns"] == table["columns"])
    crop = (
        "" if kept.all() else f"Cropped to the head: {1 - kept.mean():.1%} of the images; in the others none was found."
    )
    if crop:
        verdict.append((bool(kept.mean() > 0.1), f"{crop} Judge it by crop_sheet.png."))
    return page.section(
        "How the pixels were stored",
        page.cards(
            page.table("BitsStored / PixelRepresentation / slope / intercept", _text(table["pixel_form"], 12),
                       "One line for each kind of scanner export."),
            page.table("Mended or marked", frame,
                       "padding: pixels outside the scanner's circle became air; wrap: 12-bit values were unwrapped."),
        ),
    )  # fmt: skip


def _intensities(data: AuditedDataset, verdict: Findings) -> str:
    table = data.metadata
    solid = table["solid"] >= EMPTY_SHARE
    _flag(verdict, table.index[table["hu_min"] == table["hu_max"]], "Constant images", "No image is constant.")
    _flag(verdict, table.index[~solid], "Images of hardly anything but air", "No image is empty.")
    _flag(verdict, table.index[(table["hu_max"] < BONE_HU) & (table["solid"] > 0.1)],
          f"Images with much tissue and nothing above {BONE_HU} HU (a wrong rescale, or no head)",
          "Every image with tissue has bone.")  # fmt: skip
    _flag(verdict, table.index[table["hu_min"] > AIR_HU], f"Images with nothing below {AIR_HU} HU (a wrong rescale?)",
          "Every image has air.")  # fmt: skip
    parts = [_histogram("Mean HU of an image", table["hu_mean"].dropna(), 50),
             _histogram("Share of pixels above −500 HU", table["solid"].dropna(), 40)]  # fmt: skip
    if data.is_hu:
        counts, read = _sampled_histogram(data)
        note = f"Share of all pixels of {read} images spread evenly over the dataset; bars of 50 HU, air left out."
        shown = HU_EDGES >= -900
        inside = counts[shown[:-1]] / max(counts.sum(), 1)
        parts.insert(0, page.histogram("Hounsfield units without air", inside, HU_EDGES[shown], note))
    return page.section("Hounsfield units", page.cards(*parts))


def _sampled_histogram(data: AuditedDataset) -> tuple[np.ndarray, int]:
    places = np.unique(np.linspace(0, len(data.metadata) - 1, SAMPLED_IMAGES).round().astype(int))
    counts, read = np.zeros(len(HU_EDGES) - 1, dtype=np.int64), 0
    for image_id in data.metadata.index[places]:
        image = _load(data, image_id)
        if image is not None:
            counts += np.histogram(image.clip(HU_EDGES[0], HU_EDGES[-1]), HU_EDGES)[0]
            read += 1
    return counts, read


def _load(data: AuditedDataset, image_id: str) -> np.ndarray | None:
    try:
        return load_image(data.images / f"{image_id}{data.suffix}")
    except (OSError, ValueError):  # --pre_verify=1 reports these
        return None


def _duplicates(data: AuditedDataset, verdict: Findings) -> str:
    table = data.metadata
    keys = _pictures(table)
    repeated = keys[(keys != "") & keys.duplicated(keep=False)]
    rows = table.loc[repeated.index].assign(picture=repeated)
    across = rows.groupby("picture")["patient_id"].nunique()
    shared = rows[rows["picture"].isin(across.index[across > 1])]
    frame = pd.DataFrame(
        {
            "pictures": [f"{rows['picture'].nunique():,}", f"{shared['picture'].nunique():,}"],
            "images": [f"{len(rows):,}", f"{len(shared):,}"],
            "patients": [f"{rows['patient_id'].nunique():,}", f"{shared['patient_id'].nunique():,}"],
        },
        index=["found more than once", "under several patients"],
    )
    _flag(verdict, shared.index, "Images identical to another patient's (folds keep such patients together)",
          "No picture stands under two patients.")  # fmt: skip
    if data.labels:
        known = rows.dropna(subset=list(data.labels), how="all")
        differing = known.groupby("picture")[list(data.labels)].nunique().max(axis=1)
        wrong = known.index[known["picture"].isin(differing.index[differing > 1])]
        _flag(
            verdict, wrong, "Pixel-identical images with different labels", "Identical pictures have the same labels."
        )
    note = "Constant pictures and those of air don't count."
    return page.section("Pixel-identical pictures", page.cards(page.table("Pictures", frame, note)))


def _labels(data: AuditedDataset, verdict: Findings) -> str:
    if not data.labels:
        verdict.append((True, "The dataset is unlabelled: it can be predicted, not trained on or scored."))
        return page.section("Labels", page.paragraph("None."))
    labels, table = list(data.labels), data.metadata
    known = table.dropna(subset=labels, how="all")
    missing = table.index[(table["split"] == "train") & table[labels].isna().any(axis=1)]
    _flag(verdict, missing, "Training images without labels", "Every training image is labelled.")
    frame = pd.DataFrame({"this dataset": known[labels].mean()})
    whole = known[labels].notna().all(axis=None)
    if not whole:
        frame["images with this label"] = known[labels].notna().sum()
    note = (
        f"Share of positive images among {len(known):,} labelled ones{'' if whole else ', for each label by itself'}."
    )
    if data.published is not None:
        frame["published"] = pd.Series(data.published)
        note += " Published: the 674,258 training images of the competition's first stage."
        ratio = frame["this dataset"] / frame["published"]
        odd = [f"{name} {frame.loc[name, 'this dataset']:.2%} against {frame.loc[name, 'published']:.2%}"
               for name in labels if not 1 / PREVALENCE_FACTOR <= ratio[name] <= PREVALENCE_FACTOR]  # fmt: skip
        verdict.append((True, "Prevalences far from the published ones: " + "; ".join(odd)) if odd
                       else (False, "Prevalences are within a factor of 2 of the published ones."))  # fmt: skip
    rare = [name for name in labels if known[name].sum() < 50]
    if rare:
        verdict.append(
            (True, f"Fewer than 50 positive images of {', '.join(rare)}: metrics of these are mostly chance.")
        )
    if "any" in labels:
        both = known.dropna(subset=labels)
        others = both[[name for name in labels if name != "any"]].max(axis=1)
        _flag(verdict, both.index[others != both["any"]], "Images whose label any contradicts the others",
              "any is 1 exactly where another label is.")  # fmt: skip
    positive = known.groupby("study_id")[labels].max().mean()
    return page.section(
        "Labels",
        page.cards(
            page.pairs("Prevalence by image", frame, note),
            page.pairs(
                "Prevalence by study", positive.to_frame("this dataset"), "Share of studies with a positive image."
            ),
        ),
    )


def _folds(data: AuditedDataset, verdict: Findings) -> str:
    if not data.folds:
        return page.section("Folds", page.paragraph("None: folds need labels."))
    labels = list(data.labels)
    rows, uneven, torn = {}, [], []
    for name, fold in data.folds.items():
        valid = fold[fold["sample_type"] != "train"]
        train = fold[fold["sample_type"] == "train"]
        rows[name] = [f"{len(valid):,}", f"{valid['group_id'].nunique():,}"] + [
            f"{valid[n].mean():.2%}" for n in labels
        ]
        torn += sorted(set(train["group_id"]) & set(valid["group_id"]))
        overall = fold[labels].mean()
        off = (valid[labels].mean() / overall - 1).abs()
        if len(train):
            uneven += [
                f"{name}: {n} {valid[n].mean():.2%} instead of {overall[n]:.2%}"
                for n in labels
                if off[n] > FOLD_TOLERANCE
            ]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["images", "patients", *labels])
    _flag(verdict, torn, "Patients on both sides of a fold", "No patient is on both sides of a fold.")
    verdict.append(
        (True, "Folds are uneven (few patients have the label): " + "; ".join(uneven[:EXAMPLES])) if uneven
        else (False, "Every fold has each label within 10 % of its overall share.")
    )  # fmt: skip
    return page.section("Folds", page.table("What each fold validates on", frame, "Shares of positive images."))


def _outliers(data: AuditedDataset, verdict: Findings) -> str:
    """Draw the images with the most extreme values of each measure, each image once."""
    table = data.metadata
    largest = table[["rows", "columns"]].max(axis=1)
    wanted: list[tuple[pd.Index, str]] = [
        (table.index[table["mended"].str.contains("doubtful")][:OUTLIERS_EACH], "may be wrapped"),
        (table["hu_mean"].nlargest(OUTLIERS_EACH).index, "highest mean HU"),
        (table["hu_mean"].nsmallest(OUTLIERS_EACH).index, "lowest mean HU"),
        (table["hu_max"].nsmallest(OUTLIERS_EACH).index, "lowest maximum"),
        (table["hu_max"].nlargest(OUTLIERS_EACH).index, "highest maximum"),
        (table["solid"].nlargest(OUTLIERS_EACH).index, "most tissue"),
        (table["row_spacing_mm"].nlargest(OUTLIERS_EACH).index, "largest pixels"),
        (table["row_spacing_mm"].nsmallest(OUTLIERS_EACH).index, "smallest pixels"),
        (largest.nlargest(OUTLIERS_EACH).index, "largest picture"),
        (largest.nsmallest(OUTLIERS_EACH).index, "smallest picture"),
    ]
    pictures: dict[str, tuple[np.ndarray, str]] = {}
    for ids, reason in wanted:
        for image_id in ids:
            image = None if image_id in pictures else _load(data, image_id)
            if image is None:
                continue
            row = table.loc[image_id]
            text = f"{image_id}: {reason}; {row['rows']} × {row['columns']}, {row['hu_min']} to {row['hu_max']} HU"
            pictures[image_id] = _tile(image, data.is_hu), f"{text}, mean {row['hu_mean']:.0f}"
    grey = "Grey from black at −1000 HU to white at 1000 HU." if data.is_hu else "The first window."
    return page.section(
        "Outliers", page.paragraph(f"The images at the ends of each range. {grey}"), page.enlarging(pictures, "outlier")
    )


def _tile(image: np.ndarray, is_hu: bool) -> np.ndarray:
    """Return a small grey picture, uint8: HU from -1000 to 1000, or the first window."""
    grey = (image.astype(np.float32) + 1000) / 2000 if is_hu else image[..., 0].astype(np.float32)
    if not is_hu and image.dtype == np.uint8:
        grey /= 255
    scale = TILE / max(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)
