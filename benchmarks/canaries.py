"""Plant names, numbers and dates wherever a DICOM export can hold them and search all that the commands write:
python benchmarks/canaries.py

Planted are: elements of every text value representation, at the top, in sequences and in private blocks, the file
meta part, fields that decide whether a file is read, names of files, folders and archives, keys of label tables. What
public reports found leaking is among them: a DICOMDIR's records (dicom-anonymizer issue 41), accession numbers
copied to private and other elements (DICOMAnonymizer issues 10 and 23), names in private elements (deid issues 6
and 112), UIDs of the file meta part and of sequences (deid issue 259), two PatientIDs in a study (RSNA/anonymizer
issue 18). Searched are the bytes of every file that was written (archives and PNG texts unpacked), their names, and all
that was printed: for each text, its parts, other cases and alphabets, without accents, zeros and signs.

The key's folder is left out but searched apart: what is planted must be found in the maps of ids, or the search is
worth nothing. Exit code 1 where anything else holds a canary.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import importlib
import io
import os
import re
import sys
import tempfile
import time
import unicodedata
import urllib.parse
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydicom import Dataset, config
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PROJECT = Path(__file__).resolve().parent.parent
# Value representations of text (PS3.5 6.2) with the most characters that a canary may take there.
TEXT_KINDS = {"AE": 16, "AS": 4, "CS": 16, "DA": 8, "DT": 26, "TM": 13, "DS": 16, "IS": 12, "LO": 64, "LT": 200,
              "PN": 64, "SH": 16, "ST": 200, "UC": 200, "UI": 64, "UR": 200, "UT": 200}  # fmt: skip
GENERATED, GENERATED_UID, GENERATED_NUMBER = "QXVALUE", "1.2.826.0.1.771177", "8344719205"
GENERATED_DATE = "18930417"
PICTURE = re.compile(rb"base64,([0-9A-Za-z+/=]+)")
BEGINNING = 4  # bytes of a text, which none is shorter than
SHORTEST = 5  # of a part that is looked for: shorter ones stand in other texts by chance
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "ñ": "n"})
# Decide whether and how a file is read: given a usual value in files that shall give an image.
USUAL = {"RescaleType": "HU", "BurnedInAnnotation": "NO", "LossyImageCompression": "00", "FrameType": "ORIGINAL",
         "NumberOfFrames": "1", "SpecificCharacterSet": "ISO_IR 192"}  # fmt: skip
SPOILT = {  # files that give no image, by an element that quotes itself where a message is careless
    "modality": {"Modality": "QXMODALITY"},
    "photometric": {"PhotometricInterpretation": "QXPHOTOMETRIC"},
    "slope": {"RescaleSlope": "81234567"},  # QXSLOPEX in the file
    "intercept": {"RescaleIntercept": "81234568"},
    "frames": {"NumberOfFrames": "918273645"},
    "scout": {"ImageType": ["QXIMAGETYPE", "PRIMARY", "LOCALIZER"]},
    "screen": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE", "QXSCREEN"]},
    "burned": {"BurnedInAnnotation": "YES", "SeriesDescription": "QXBURNEDIN"},
    "unit": {"RescaleType": "QXUNITOFMAP", "ImageType": ["DERIVED", "SECONDARY", "PERFUSION"]},
    "charset": {"SpecificCharacterSet": "QXCHARSET", "RescaleSlope": "0", "PatientName": "Qxumlaut\xfcber^Jo"},
}
NO_NUMBERS = {b"81234567": b"QXSLOPEX", b"81234568": b"QXCEPTXX"}  # pydicom would not write such a number
PEOPLE = [  # name, number, birth date and accession number, each as it stands in a header and, in part, in file names
    ("Quastelborg^Wendelin", "0009174563028", "19310203", "ACC88172635490"),
    ("Zwürgelmöß^Jürg-Öttchen", "MRN-5550192837", "19450812", "0077123456789"),
    ("van der Brinkhuysen^Aafje", "PID 4471928374", "19520430", "66.1928.3746"),
    ("O'Fennimorgh^Séan", "5566-778899-01", "19680917", "QACC-1029384756"),
    ("Shirakawabe^Ichizou=白河辺^一蔵=しらかわべ^いちぞう", "8837465520", "19770101", "99887711223"),
    ("Петрошкевич^Глебослав", "ПН-90817263", "19830611", "7712983746510"),
]


@dataclass(frozen=True)
class Planted:
    """A text and where it was put."""

    text: str
    place: str


def forms(text: str) -> set[str]:
    """Return what to look for, in lower case: the text and its parts, without accents, umlauts, zeros and signs."""
    whole = {text, *re.split(r"[\^=/\\ ,;'_.|-]+", text), text.replace("^", " "), re.sub(r"\.(dcm|zip)$", "", text)}
    found = set()
    for part in whole:
        low = unicodedata.normalize("NFC", part).lower().strip()
        plain = "".join(c for c in unicodedata.normalize("NFKD", low) if not unicodedata.combining(c))
        for spelt in (low, low.translate(UMLAUTS), plain):
            bare = "".join(c for c in spelt if c.isalnum())
            found |= {spelt, bare, re.sub(r"[^0-9a-z]+", "_", spelt).strip("_"), bare.lstrip("0")}
            if re.fullmatch(r"(19|20)\d{6}", bare):
                year, month, day = bare[:4], bare[4:6], bare[6:]
                found |= {
                    f"{year}-{month}-{day}",
                    f"{day}.{month}.{year}",
                    f"{month}/{day}/{year}",
                    f"{year}/{month}/{day}",
                }
    return {form for form in found if _tells(form)}


def _tells(form: str) -> bool:
    """Whether a text is too long, or of too rare letters, to stand somewhere by chance."""
    if not form.isascii():
        return len(form) >= 2
    if form.replace(".", "").isdigit():
        return len(form) >= 8
    return len(form) >= SHORTEST


@dataclass(frozen=True)
class Wanted:
    """What to look for in bytes in lower case: texts as they are, and numbers that are no part of a longer one."""

    texts: tuple[bytes, ...]
    numbers: tuple[bytes, ...]

    def find(self, content: bytes) -> tuple[int, int] | None:
        """Return where the first canary stands."""
        there = self._beginnings(content)
        for text in self.texts:
            if text[:BEGINNING] in there and (place := content.find(text)) >= 0:
                return place, place + len(text)
        for number in self.numbers:
            if number[:BEGINNING] in there:
                found = re.search(rb"(?<![0-9.])" + re.escape(number) + rb"(?![0-9])", content)
                if found:
                    return found.span()
        return None

    def _beginnings(self, content: bytes) -> set[bytes]:
        """Return the first bytes of canaries that stand in the content: weights are searched in a hundredth of time."""
        known = np.array(sorted({text[:BEGINNING] for text in (*self.texts, *self.numbers)}), dtype=f"S{BEGINNING}")
        likely = np.zeros(2**16, dtype=bool)
        likely[known.view(">u2").reshape(-1, 2)[:, 0]] = True
        data = np.frombuffer(content, np.uint8)
        pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
        places = np.flatnonzero(likely[pairs[: len(data) - BEGINNING + 1]])
        words = pairs[places].astype(np.uint32) << 16 | pairs[places + 2]
        return {text for text, word in zip(known.tolist(), known.view(">u4"), strict=True) if word in words}


def wanted_forms(planted: Iterable[Planted]) -> Wanted:
    """Return every form of what was planted, in UTF-8, JSON's and addresses' spelling."""
    bare_uid = GENERATED_UID.replace(".", "")
    texts = {text.lower().encode() for text in (GENERATED, GENERATED_UID, bare_uid)}
    numbers = {GENERATED_NUMBER.encode()}
    for form in {form for one in planted for form in forms(one.text)}:
        if GENERATED.lower() in form or form.startswith((GENERATED_UID, bare_uid)):
            continue
        if form.replace(".", "").isdigit():
            numbers.add(form.encode())
            continue
        texts |= {form.encode(), urllib.parse.quote(form).lower().encode(), form.encode("ascii", "backslashreplace")}
    return Wanted(tuple(sorted(texts)), tuple(sorted(numbers)))


def contents(content: bytes) -> Iterator[bytes]:
    """Yield what a file holds: its bytes, and unpacked what is packed in it (zip, gzip, a page's pictures, PNG texts).

    A picture in a page is looked through as what it is: among a million letters of its code stand names by chance.
    """
    yield PICTURE.sub(b"", content)
    for picture in PICTURE.finditer(content):
        yield from contents(base64.b64decode(picture[1] + b"=="))
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    yield from contents(archive.read(info))
    elif content.startswith(b"\x1f\x8b"):
        yield from contents(gzip.decompress(content))
    elif content.startswith(b"\x89PNG"):
        for chunk in re.finditer(rb"(?s)(....)(zTXt|iTXt|tEXt|eXIf)", content):
            body = content[chunk.end() : chunk.end() + int.from_bytes(chunk[1], "big")]
            for start in (place.end() for place in re.finditer(rb"\0\0", body)):
                try:
                    yield zlib.decompress(body[start:])
                except zlib.error:
                    continue


def search(paths: Iterable[Path], wanted: Wanted, root: Path) -> tuple[list[str], Counter[str]]:
    """Return where a canary stands (file and the text around it) and how many files of each kind were searched."""
    hits: list[str] = []
    kinds: Counter[str] = Counter()
    for path in sorted(paths):
        kinds[path.suffix or "no suffix"] += 1
        name = str(path.relative_to(root))
        for content in (name.encode(), *contents(path.read_bytes())):
            low = content.lower() if content.isascii() else _lower(content)
            if (found := wanted.find(low)) is not None:
                around = low[max(0, found[0] - 40) : found[1] + 40]
                hits.append(f"{name}: {around!r}")
                break
    return hits, kinds


def _lower(content: bytes) -> bytes:
    """Return bytes in lower case, also of other alphabets where they are text."""
    try:
        return content.decode("utf-8").lower().encode()
    except UnicodeDecodeError:
        return content.lower()


# --- planting ---------------------------------------------------------------------------------------------------------


class Planter:
    """Writes files of a head CT that are full of canaries and remembers what it planted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.planted: list[Planted] = []
        self.count = 0

    def put(self, text: str, place: str) -> str:
        """Note that ``text`` is planted and return it."""
        self.planted.append(Planted(text, place))
        return text

    def text_for(self, kind: str) -> str:
        """Return a canary that a value representation can hold; "" where it is too short for any."""
        self.count += 1
        short = {"DA": GENERATED_DATE, "DT": GENERATED_DATE, "IS": GENERATED_NUMBER, "DS": GENERATED_NUMBER,
                 "AS": "", "TM": "", "UI": f"{GENERATED_UID}.{self.count}"}  # fmt: skip
        return short.get(kind, f"{GENERATED}{self.count:05d}")

    def fill(self, dataset: Dataset, place: str) -> None:
        """Give every element of text that pydicom knows and that ``dataset`` lacks a canary of its own."""
        for tag, (kind, *_, keyword) in DicomDictionary.items():
            if kind in TEXT_KINDS and keyword and keyword not in dataset and tag >> 16 not in (0, 2, 0x28, 0x7FE0):
                if keyword in USUAL:
                    setattr(dataset, keyword, USUAL[keyword])
                elif text := self.text_for(kind):
                    self.put(text, f"{place}: {kind}")
                    setattr(dataset, keyword, f"{text}^{text}" if kind == "PN" else text)

    def private(self, dataset: Dataset, person: tuple[str, str, str, str]) -> None:
        """Add private blocks: text of each kind and of none, binary, a sequence, copies of name and number."""
        name, number, birth, accession = person
        block = dataset.private_block(0x0009, "SECTRA_Ident_01", create=True)
        block.add_new(0x01, "LO", self.put(accession, "private: LO"))
        block.add_new(0x02, "UN", self.put(name, "private: UN").encode())
        own = dataset.private_block(0x0029, self.put("QXPRIVATECREATOR", "private: creator"), create=True)
        own.add_new(0x10, "OB", f"xx{number}{birth}xx".encode())
        own.add_new(0x11, "UT", self.put("QXPRIVATETEXT", "private: UT"))
        item = Dataset()
        item.PatientName = name
        own.add_new(0x12, "SQ", Items([item]))

    def slice(self, number: int, person: tuple[str, str, str, str], **values: object) -> FileDataset:
        """Return a slice of a head whose header is full of canaries; ``values`` replace elements."""
        generator = np.random.default_rng(number)
        yy, xx = np.mgrid[-1:1:64j, -1:1:64j]
        radius = np.hypot(xx, yy)
        stored = np.where(radius < 0.7, 1064, 24) + generator.integers(0, 20, (64, 64))
        stored = np.where((radius > 0.6) & (radius < 0.7), 2024, stored).astype(np.uint16)
        name, patient, birth, accession = person
        uid = self.put(f"1.2.826.0.1.551155.{number + 100}", "SOPInstanceUID")
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = uid
        meta.SourceApplicationEntityTitle = self.put("QXSOURCEAET", "file meta: AE")
        meta.ImplementationVersionName = self.put("QXIMPLVERSION", "file meta: SH")
        meta.PrivateInformationCreatorUID = self.put("1.2.826.0.1.99.881188", "file meta: UI")
        meta.PrivateInformation = self.put("QXMETAPRIVATE", "file meta: OB").encode()
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SpecificCharacterSet = USUAL["SpecificCharacterSet"]
        study = f"1.2.826.0.1.441144.{PEOPLE.index(person) + 10}"
        elements = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": uid, "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientName": self.put(name, "PatientName"),
            "PatientID": self.put(patient, "PatientID"), "PatientBirthDate": self.put(birth, "PatientBirthDate"),
            "AccessionNumber": self.put(accession, "AccessionNumber"), "RequestedProcedureID": accession,
            "StudyInstanceUID": self.put(study, "StudyInstanceUID"), "SeriesInstanceUID": f"{study}.1",
            "ImagePositionPatient": [0, 0, 5 * (number % 10)], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [3, 3], "SliceThickness": 5, "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "Rows": 64, "Columns": 64, "BitsAllocated": 16,
            "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": -1024,
        }  # fmt: skip
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        self.private(dataset, person)
        item = Dataset()
        item.SpecificCharacterSet = USUAL["SpecificCharacterSet"]
        if number == 0:  # of every element once is enough
            self.fill(dataset, "top")
            self.fill(item, "sequence")
        item.PatientName, item.AccessionNumber = name, accession
        item.ReferencedSOPInstanceUID = f"{uid}.7"
        dataset.RequestAttributesSequence = [item]
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
            for text in value if isinstance(value, list) else [value]:
                if "QX" in str(text).upper() or str(text).isdigit():
                    self.put(str(text), f"spoilt: {keyword}")
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        return dataset

    def write(self, name: str, dataset: FileDataset) -> Path:
        """Write a file whose name and folders are canaries too."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in Path(name).parts:
            if part != "scans":
                self.put(part, "name of a file or folder")
        dataset.save_as(path, enforce_file_format=True)
        return path


def plant(root: Path) -> tuple[list[Planted], dict[str, str]]:
    """Fill a folder with files full of canaries; return what was planted, and labels by the key of each image.

    The slices of six patients, under names of theirs; files that give no image for a reason each; what no reader
    should have to do with.
    """
    planter = Planter(root)
    labels: dict[str, str] = {}
    reading, writing = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    try:
        for number, person in enumerate(PEOPLE):
            family, _, given = person[0].partition("=")[0].partition("^")
            names = [f"{family}_{given}/IM0001.dcm", f"{person[2]}/{family.upper().replace(' ', '')}{number}.dcm",
                     f"scans/{person[1].lstrip('0')}_{number}"]  # fmt: skip
            for place, name in enumerate(names):
                path = planter.write(name, planter.slice(10 * number + place, person))
                values = "0,0,0,0,1,1" if place == 1 else "0,0,0,0,0,0"
                labels[name if place != 1 else f"1.2.826.0.1.551155.{10 * number + place + 100}"] = values
            if number == 1:  # two files of one SOPInstanceUID, two PatientIDs in a study
                (root / "twin").mkdir()
                (root / "twin" / path.name).write_bytes(path.read_bytes())
                other = planter.slice(97, person, PatientID="QXOTHERPATIENT")
                planter.write(f"QXOTHER_{family}.dcm", other)
        for place, values in enumerate(SPOILT.values()):
            dataset = planter.slice(60 + place, PEOPLE[0], **values)
            path = planter.write(f"QXSPOILT{place}/{PEOPLE[0][1]}_{place}.dcm", dataset)
            for number, text in NO_NUMBERS.items():
                path.write_bytes(path.read_bytes().replace(number, planter.put(text.decode(), "spoilt").encode()))
        cut = planter.write("QXCUTFILE.dcm", planter.slice(80, PEOPLE[0]))
        cut.write_bytes(cut.read_bytes()[:-100])
        planter.put("1.2.826.0.1.661166.4", "spoilt: TransferSyntaxUID")
        path = planter.write("QXSYNTAX.dcm", planter.slice(82, PEOPLE[0]))
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.826.0.1.661166.4", 1))
        records = planter.slice(83, PEOPLE[3])
        record = Dataset()
        record.DirectoryRecordType, record.PatientName, record.PatientID = "PATIENT", PEOPLE[3][0], PEOPLE[3][1]
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(records, keyword)
        records.DirectoryRecordSequence = [record]
        planter.write("QXDIRECTORY", records)
    finally:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = reading, writing
    notes = planter.put("QXNOTES Quastelborg.txt", "name of a file or folder")
    (root / notes).write_text("no DICOM file of Quastelborg")
    (root / planter.put("=QXFORMULA(1).dcm", "name of a file or folder")).write_bytes(b"none")
    (root / planter.put("QXLINK.dcm", "name of a file or folder")).symlink_to(root.parent / "elsewhere.dcm")
    return planter.planted, labels


def write_labels(path: Path, labels: dict[str, str]) -> Path:
    """Write a table of labels by path or UID."""
    names = "epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any"
    path.write_text("\n".join([f"path,{names}", *(f"{key},{values}" for key, values in labels.items())]) + "\n")
    return path


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder, with a member whose name climbs out of it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"QXARCHIVECOMMENT"
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                archive.write(file, file.relative_to(folder))
        archive.writestr("../QXCLIMBING/evil.dcm", b"none")
    return path


# --- running ----------------------------------------------------------------------------------------------------------


def commands(work: Path, archive: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each command with the exit code that it should have, each after the one before has ended."""
    key = f"--pseudonym_key={work / 'vault/pseudonyms.key'}"
    results, export = work / "out/results", f"--source={work / 'export'}"
    place, output = f"--data_input_folder={work / 'out/input'}", f"--output_dir={results}"
    small = ["--net_model=test_resnet", "--data_image_size=32", "--tr_batch_size=2", "--tr_iteration_num=2",
             "--tr_iteration_valid=2", "--n_jobs=1"]  # fmt: skip
    data = [place, "--data_dataset=folder", output]
    best = f"--net_weight_file={results}/1/best.pt"
    folds = f"--net_weight_file={results}/cv"
    installed = ",".join(name for name in ("tensorboard", "mlflow", "trackio") if find_spec(name))
    read = ["preprocessing.py", place, key, "--n_jobs=1", "--pre_max_failed=1", "--pre_folds=3", "--pre_audit=1",
            f"--pre_labels={work / 'labels.csv'}"]  # fmt: skip
    yield 0, [*read, f"--pre_source={work / 'export'}", "--data_dataset=folder"]
    yield 0, [*read, f"--pre_source={archive}", "--data_dataset=zip", "--pre_crop=head"]
    yield 1, [*read, f"--pre_source={archive}", "--data_dataset=zip", "--pre_crop=head", "--pre_max_failed=0"]
    yield 1, ["preprocessing.py", place, key, "--n_jobs=1", f"--pre_source={work / 'export'}",
              f"--pre_labels={work / 'wrong.csv'}", "--data_dataset=wrong"]  # fmt: skip
    yield 0, ["preprocessing.py", place, "--data_dataset=folder", "--pre_verify=1"]
    if find_spec("distributed"):
        yield 0, [*read, f"--pre_source={work / 'export'}", "--data_dataset=dask", "--pre_scheduler=dask"]
    trackers = [f"--trackers={installed}"] if installed else []
    yield 0, ["train.py", *data, *small, "--experiment_id=1", *trackers, "--verbosity=2"]
    yield from cross_validation([*data, *small, "--experiment_id=cv", "--data_fold=0,1,2"])
    yield 0, ["predict.py", folds, "--features=1", "--n_jobs=1"]
    yield 0, ["train.py", *data, "--experiment_id=series", "--net_kind=sequence", "--seq_features=cv", "--seq_width=8",
              "--tr_batch_size=1", "--tr_iteration_num=2", "--tr_iteration_valid=2", "--n_jobs=1"]  # fmt: skip
    yield 0, ["second_level.py", "cv", output, "--level_trees=2", "--experiment_id=level"]
    yield 0, ["ensemble.py", "cv", "level", output, "--experiment_id=both", "--ens_fit=weights"]
    yield 0, ["ensemble.py", f"{results}/cv/predictions_oof.csv", f"--ens_output={work}/out/one.csv",
              f"--ens_labels={work}/out/input/datasets/folder/metadata.csv"]  # fmt: skip
    yield 0, ["evaluate.py", "--experiment_id=1", output, "--n_jobs=1"]
    yield 0, ["evaluate.py", "--experiment_id=both", output, "--eval_compare=cv"]
    yield 0, ["predict.py", best, "--split=valid", "--n_jobs=1"]
    yield 0, ["predict.py", best, "--split=test", "--n_jobs=1"]
    yield 0, ["predict.py", folds, "--split=test", "--n_jobs=1"]
    yield 0, ["predict.py", folds, key, export, f"--predict_output={work / 'out/predicted'}",
              f"--sequence={results}/series/best.pt"]  # fmt: skip
    yield 0, ["predict.py", best, key, f"--source={archive}", f"--predict_output={work / 'out/predicted_zip'}"]
    for form in ("checkpoint", "torch_export", *(["onnx"] if find_spec("onnxscript") else [])):
        yield 0, ["export.py", best, f"--export_format={form}", f"--export_file={work / 'out' / form}"]
    line = f"{place} --data_dataset=folder {' '.join(small)} --experiment_id=swept --optim_lr=0.01"
    (work / "lines.txt").write_text(line + "\n")
    yield 0, ["sweep.py", f"--lines={work / 'lines.txt'}", output]
    yield 0, ["report.py", output, "--experiment_id=1,cv,level,both,series,swept"]


def cross_validation(flags: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the trainings of a cross-validation's folds, each as its command starts it, and then the command itself.

    It finds all folds finished and puts them together: a process for each fold would take most of the time.
    """
    from common.cli.arguments import parse_args
    from config import TrainConfig
    from rsna.training.folds import claimed, fold_plan

    options = parse_args(TrainConfig, flags)
    with claimed(options, None, flags) as parent:
        for fold in options.data_fold:
            yield 0, ["train.py", *fold_plan(options, parent.folder, fold).command]
    yield 0, ["train.py", *flags]


def run(command: Sequence[str], said: Path) -> int:
    """Run a command within this process and return its exit code; what it and its helpers print goes to a file."""
    main = importlib.import_module(command[0].removesuffix(".py")).main
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(stream.fileno()) for stream in streams]
    with said.open("wb") as file:
        try:
            for stream in streams:
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
            main(list(command[1:]))
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        finally:
            for stream, descriptor in zip(streams, kept, strict=True):
                stream.flush()
                os.dup2(descriptor, stream.fileno())
                os.close(descriptor)
    return 0


def main() -> None:
    """Plant, run all, search, and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only_preprocessing", action="store_true", help="run nothing that trains or predicts")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "out").mkdir()
        planted, labels = plant(work / "export")
        archive = pack(work / "export", work / "QXARCHIVENAME.zip")
        planted += [Planted(text, "archive") for text in ("QXARCHIVENAME", "QXARCHIVECOMMENT", "QXCLIMBING")]
        write_labels(work / "labels.csv", labels | {"QXNOBODY.dcm": "0,0,0,0,0,0"})
        planted.append(Planted("QXNOBODY", "key of a label"))
        write_labels(work / "wrong.csv", labels | {"QXWRONGLABEL.dcm": "0,0,0,0,QXNUMBER,0"})
        planted += [Planted(text, "label table") for text in ("QXWRONGLABEL", "QXNUMBER")]
        by_place = Counter(re.sub(r": .*", "", one.place) for one in planted)
        print(f"planted: {len(planted)} texts: {', '.join(f'{place} {n}' for place, n in sorted(by_place.items()))}")
        failed = []
        os.chdir(work / "out")
        for number, (code, command) in enumerate(commands(work, archive)):
            if options.only_preprocessing and command[0] != "preprocessing.py":
                break
            said, start = work / "out" / f"printed_{number}.txt", time.process_time()
            found = run(command, said)
            # The user's own words on the command line are repeated to the user: the archive's path, and no other name.
            said.write_bytes(said.read_bytes().replace(os.fsencode(archive), b"ARCHIVE"))
            print(f"{command[0]}: exit code {found} ({time.process_time() - start:.0f} s)", flush=True)
            if found != code:
                failed.append(command[0])
                print(" ".join(command), said.read_text("utf-8", "replace")[-2000:], sep="\n")
        wanted = wanted_forms(planted)
        hits, kinds = search((path for path in (work / "out").rglob("*") if path.is_file()), wanted, work)
        print(f"searched: {sum(kinds.values())} files: {', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items()))}")
        control, _ = search((work / "vault").glob("id_map_*.csv"), wanted, work)
        print(
            f"found where they belong: in {len(control)} of {len(list((work / 'vault').glob('id_map_*')))} maps of ids"
        )
        print(f"found elsewhere: {len(hits)}")
        for hit in hits:
            print(f"  {hit}")
        os.chdir(PROJECT)
        sys.exit(bool(hits or failed or not control))


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    main()
