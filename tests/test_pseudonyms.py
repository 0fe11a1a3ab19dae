"""Pseudonyms: the same in every run, of no use without the key, and never a part of a name in an image's id."""

from __future__ import annotations

import stat
import threading
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag

from common.dicom.elements import MAX_READS
from common.dicom.errors import DicomError
from common.errors import UsageError
from common.preprocessing.pseudonyms import Pseudonyms, identifying_texts, load_key

KEY = bytes(range(32))
COMPETITION = Pseudonyms(KEY, "ID_[0-9a-f]+")


def header(**values: object) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_a_pseudonym_depends_on_key_kind_and_value_alone() -> None:
    names = Pseudonyms(KEY)
    assert names.of("patient", "12345") == Pseudonyms(KEY).of("patient", "12345")
    assert len({names.of("patient", "1"), names.of("study", "1"), names.of("patient", "2")}) == 3
    assert names.of("patient", "1") != Pseudonyms(KEY[::-1]).of("patient", "1")
    assert names.of("patient", "") == ""


@given(st.text(min_size=1))
def test_a_pseudonym_is_a_plain_name_that_holds_nothing_of_the_value(value: str) -> None:
    pseudonym = Pseudonyms(KEY).of("patient", value)
    kind, _, digits = pseudonym.partition("_")
    assert kind == "patient"
    assert len(digits) == 16
    int(digits, 16)


def test_the_competitions_identifiers_stay_and_others_in_its_folders_do_not() -> None:
    assert COMPETITION.of("patient", "ID_a1b2c3d4") == "ID_a1b2c3d4"
    for value in ("12345678", "ID_MUELLER", "xID_a1b2", "ID_a1b2\nMueller"):
        assert COMPETITION.of("patient", value).startswith("patient_")
    assert Pseudonyms(KEY).of("patient", "ID_a1b2c3d4").startswith("patient_")


def test_the_key_is_made_once_for_the_owner_alone_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pseudonyms.key"
    key = load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert len(key) == 32
    assert [file.name for file in path.parent.iterdir()] == ["pseudonyms.key"]
    path.chmod(0o644)
    load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_runs_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        keys.append(load_key(tmp_path / "pseudonyms.key"))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31, "\xff"])
def test_a_damaged_key_is_never_replaced_by_another(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pseudonyms.key"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"pseudonyms\.key: not a key"):
        load_key(path)
    assert path.read_bytes() == text.encode("latin-1")


def test_the_key_is_not_shown() -> None:
    assert KEY.hex() not in repr(COMPETITION) + str(COMPETITION) + COMPETITION.fingerprint
    assert repr(KEY)[2:20] not in repr(COMPETITION)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("1.2.826.0.1.77", {"SOPInstanceUID": "1.2.826.0.1.77"}),
        ("CT.1_2_826_0_1_77.x", {"StudyInstanceUID": "1.2.826.0.1.77"}),
        ("IM_00123456_1", {"PatientID": "00123456"}),
        ("MUELLER_HANS_1", {"PatientName": "Mueller^Hans"}),
        ("M_ller-Lohse", {"PatientName": "X^Müller-Lohse"}),
        ("scan_19450312", {"PatientBirthDate": "19450312"}),
        ("acc4711007", {"AccessionNumber": "4711007"}),
        ("of_Dr_Kowalski", {"ReferringPhysicianName": "Kowalski^J"}),
        ("StElsewhere_2", {"InstitutionName": "St. Elsewhere"}),
    ],
)
def test_an_id_that_tells_who_the_patient_is_becomes_a_pseudonym(name: str, values: dict[str, str]) -> None:
    dataset = header(**values)
    hidden = Pseudonyms(KEY).name(name, dataset)
    assert hidden.startswith("image_")
    assert hidden == Pseudonyms(KEY).name(name, dataset)
    nested = Dataset()
    nested.RequestAttributesSequence = [dataset]
    assert Pseudonyms(KEY).name(name, nested) == hidden


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("IM_0001", {"PatientID": "IM", "PatientName": "Doe^J"}),  # too short to tell anything
        ("MUELLER_1", {"PatientName": "Meier^Hans"}),
        ("ORIGINAL_1", {"ImageType": ["ORIGINAL", "PRIMARY"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),
        ("1.2.840.10008.5.1.4.1.1.2", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),  # every CT file has it
        ("x1", {}),
    ],
)
def test_other_ids_stay_as_they_are(name: str, values: dict[str, str]) -> None:
    assert Pseudonyms(KEY).name(name, header(**values)) == name


def test_the_competitions_names_stay_whatever_the_header_says() -> None:
    dataset = header(SOPInstanceUID="ID_a1b2c3d4e")
    assert COMPETITION.name("ID_a1b2c3d4e", dataset) == "ID_a1b2c3d4e"
    assert Pseudonyms(KEY).name("ID_a1b2c3d4e", dataset).startswith("image_")


def test_a_damaged_value_hides_no_other() -> None:
    dataset = header(PatientID="12345678")
    dataset.PatientWeight = "1"
    dataset["PatientWeight"]._value = object()
    assert "12345678" in list(identifying_texts(dataset))


def test_texts_in_sequences_of_defined_length_are_found_and_too_many_elements_refused() -> None:
    item = Dataset()
    item.PatientComments = "canary in a sequence"
    outer = Dataset()
    outer.RequestAttributesSequence = [item]
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = True, True
    write_dataset(stream, outer)
    content = stream.getvalue()
    read = read_dataset(BytesIO(content), True, True)
    assert list(identifying_texts(read)) == ["canary in a sequence"]
    assert isinstance(read.get_item("RequestAttributesSequence"), RawDataElement)  # not converted: that has no bound
    many = Dataset()
    many[0x00400275] = RawDataElement(
        BaseTag(0x00400275), "SQ", 8 * MAX_READS, b"\xfe\xff\x00\xe0\0\0\0\0" * MAX_READS, 0, True, True
    )
    with pytest.raises(DicomError, match="too many elements"):
        list(identifying_texts(many))
