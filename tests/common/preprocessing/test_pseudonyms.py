"""Pseudonyms: the same in every run, of no use without the key, and the key where it is safe."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.preprocessing.pseudonyms import Pseudonyms, framed, is_made, load_key

KEY = bytes(range(32))
COMPETITION = Pseudonyms(KEY, {"patient": "ID_[0-9a-f]{8}", "image": "ID_[0-9a-f]{9}"})


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
    assert COMPETITION.of("image", "ID_a1b2c3d4e") == "ID_a1b2c3d4e"
    for value in ("12345678", "ID_MUELLER", "ID_19450312a", "ID_1945", "xID_a1b2c3d4", "ID_a1b2c3d4\nMueller"):
        assert COMPETITION.of("patient", value).startswith("patient_")
    assert COMPETITION.of("study", "ID_a1b2c3d4e5").startswith("study_")  # it says nothing of studies
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


def test_an_images_id_tells_frames_apart_and_nothing_else() -> None:
    names = Pseudonyms(KEY)
    assert names.image("instance_1", 1) == names.image("instance_1", 1)
    ids = {names.image(instance, frame) for instance in ("instance_1", "instance_11") for frame in (1, 2, 11, 12)}
    assert len(ids) == 8
    assert all(is_made("image", one) for one in ids)
    assert [framed("ID_a", 3, 1), framed("ID_a", 3, 12), framed("ID_a", 3, 20000)] == [
        "ID_a",
        "ID_a_0003",
        "ID_a_00003",
    ]


def test_a_new_key_is_announced_and_an_old_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_key(tmp_path / "pseudonyms.key")
    assert str(tmp_path / "pseudonyms.key") in capsys.readouterr().err
    load_key(tmp_path / "pseudonyms.key")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["dataset.json", "environment.json"])
def test_a_key_never_lies_in_what_is_passed_on(tmp_path: Path, what: str) -> None:
    (tmp_path / what).write_text("{}")
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        with pytest.raises(UsageError, match="passed on"):
            load_key(folder / "pseudonyms.key")
        assert not (folder / "pseudonyms.key").exists()
