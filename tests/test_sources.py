"""Where files come from: folders and zip archives, ids, and everything that leads out of them."""

from __future__ import annotations

import os
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from common.dicom.errors import DicomError
from common.errors import UsageError
from common.preprocessing.sources import (
    FLOOD_BYTES,
    FolderTree,
    ZipMember,
    ZipTree,
    open_tree,
    printable,
    read_source,
    stem,
)


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refusals(tree: FolderTree | ZipTree) -> dict[str, str]:
    return dict(tree.list()[1][["path", "reason"]].to_numpy())


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_files_own_name_is_without_folders_and_dcm() -> None:
    assert [stem(path) for path in ("a/IM1.dcm", "b/IM2.DCM", "c/d/IM3", "IM4.x", "a/.dcm")] == [
        "IM1",
        "IM2",
        "IM3",
        "IM4.x",
        ".dcm",
    ]


def test_a_path_is_listed_in_one_line_however_it_is_encoded() -> None:
    assert printable("a\nb/\udcff\x1b[31m") == "a\\nb/\\xff\\x1b[31m"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_with_all_below_it_but_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, "b/2.dcm", "a/1", "3", ".git/x", "a/._1", "own/y")
    files, refused = FolderTree(tmp_path).list(skip=[tmp_path / "own"])
    assert files["path"].tolist() == ["3", "a/1", "b/2.dcm"]
    assert files["bytes"].tolist() == [1, 3, 7]
    assert refused.empty
    assert FolderTree(tmp_path).list("b", recursive=False)[0]["path"].tolist() == ["b/2.dcm"]


def test_links_are_followed_within_the_source_and_refused_out_of_it(tmp_path: Path) -> None:
    root = write(tmp_path / "source", "a/1.dcm")
    write(tmp_path, "outside/2.dcm", "source-too/3.dcm")
    (root / "in.dcm").symlink_to(root / "a/1.dcm")
    (root / "relative.dcm").symlink_to("a/1.dcm")
    (root / "out.dcm").symlink_to(tmp_path / "outside/2.dcm")
    (root / "near.dcm").symlink_to(tmp_path / "source-too/3.dcm")  # the name begins as the source's
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "twice").symlink_to(root / "a")  # what lies there is listed once
    (root / "a/loop").symlink_to(root)
    (root / "nothing.dcm").symlink_to(root / "gone")
    tree = FolderTree(root)
    assert tree.list()[0]["path"].tolist() == ["a/1.dcm", "in.dcm", "relative.dcm"]
    assert refusals(tree) == dict.fromkeys(("out.dcm", "near.dcm", "folder", "nothing.dcm"), "link")


def test_the_source_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "disk", "1.dcm")
    (tmp_path / "source").symlink_to(tmp_path / "disk")
    assert FolderTree(tmp_path / "source").list()[0]["path"].tolist() == ["1.dcm"]


def test_pipes_are_refused_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusals(FolderTree(tmp_path)) == {"pipe": "special"}
    with pytest.raises(DicomError, match="not a regular file"):
        read_source(tmp_path / "pipe")


def test_a_file_that_cannot_be_read_is_a_failure_and_one_without_the_mark_is_never_too_large(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="cannot be opened") as failure:
        read_source(tmp_path / "gone")
    assert failure.value.reason == "unreadable"
    big = tmp_path / "video"
    big.write_bytes(b"0" * 1000)
    with pytest.raises(DicomError) as failure:
        read_source(big, limit=999)
    assert failure.value.reason == "not_dicom"
    big.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 900)
    with pytest.raises(DicomError) as failure:
        read_source(big, limit=999)
    assert failure.value.reason == "too_large"


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_gives_the_same_bytes_as_the_files_that_went_in(tmp_path: Path, method: int) -> None:
    members = {f"top/{number}.dcm": os.urandom(number * 100) + b"a" * 5000 for number in range(5)}
    tree = open_tree(packed(tmp_path / "a.zip", members | {"top/.hidden": b"x"}, method))
    files, refused = tree.list()
    assert refused.empty
    assert {row.path: read_source(tree.file_at(row)) for row in files.itertuples()} == members
    assert tree.find("top/3.dcm").read_bytes() == members["top/3.dcm"]
    assert tree.find("top/9.dcm") is None
    assert tree.has_files("top", ".dcm")
    assert not tree.has_files("", ".dcm")
    assert str(tree.find("top/3.dcm")) == f"{tmp_path}/a.zip/top/3.dcm"


def test_what_climbs_out_of_an_archive_or_links_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"ok/1.dcm": b"1", "../2.dcm": b"2", "/3.dcm": b"3", "a/../../4.dcm": b"4"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("C:/5.dcm", b"5")
        archive.writestr("a\\..\\6.dcm", b"6")
        link = zipfile.ZipInfo("7.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    tree = ZipTree(path)
    assert tree.list()[0]["path"].tolist() == ["ok/1.dcm"]
    names = ("../2.dcm", "/3.dcm", "a/../../4.dcm", "C:/5.dcm", "a\\..\\6.dcm")
    assert refusals(tree) == dict.fromkeys(names, "name") | {"7.dcm": "link"}


def test_of_two_files_with_one_name_the_last_counts_and_the_other_is_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"1.dcm": b"first"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("1.dcm", b"second")
    tree = ZipTree(path)
    assert tree.find("1.dcm").read_bytes() == b"second"
    assert refusals(tree) == {"1.dcm": "duplicate"}


def test_other_packings_and_encrypted_files_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"1.dcm": b"1" * 100}, zipfile.ZIP_LZMA)
    assert refusals(ZipTree(path)) == {"1.dcm": "packing"}
    path = packed(tmp_path / "b.zip", {"1.dcm": b"1" * 100}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted file
    path.write_bytes(content)
    assert refusals(ZipTree(path)) == {"1.dcm": "packing"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_a_failure_of_that_file_only(tmp_path: Path, method: int) -> None:
    path = packed(tmp_path / "a.zip", {"1.dcm": b"1" * 4000, "2.dcm": b"2" * 4000}, method)
    content = bytearray(path.read_bytes())
    place = content.index(b"1.dcm") + 12
    content[place] ^= 0xFF
    path.write_bytes(content)
    tree = ZipTree(path)
    with pytest.raises(DicomError, match="damaged") as failure:
        read_source(tree.find("1.dcm"))
    assert failure.value.reason == "unreadable"
    assert read_source(tree.find("2.dcm")) == b"2" * 4000


def test_no_more_is_unpacked_than_the_directory_says_or_the_limit_allows(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"bomb.dcm": bytes(10**7)})
    member = ZipTree(path).find("bomb.dcm")
    assert member.packed_bytes < 20_000
    with pytest.raises(DicomError) as failure:
        read_source(member, limit=10**6)
    assert failure.value.reason == "too_large"
    liar = ZipMember(member.archive, member.name, 1000, member.offset, member.packed_bytes, member.method, member.crc)
    with pytest.raises(DicomError, match="damaged"):
        read_source(liar)


def test_a_flood_is_refused_and_hardly_unpacked_and_a_large_file_is_unpacked_in_its_own_size(tmp_path: Path) -> None:
    noise = os.urandom(2**20) * 20
    members = {
        "flood.dcm": bytes(128) + b"DICM" + bytes(FLOOD_BYTES),
        "flood.csv": b"ID,Label\n" + b"0" * FLOOD_BYTES,
        "film.mp4": noise,
        "large.dcm": bytes(128) + b"DICM" + noise,
    }
    tree = ZipTree(packed(tmp_path / "a.zip", members))
    refused = {}
    tracemalloc.start()
    for name in ("flood.dcm", "film.mp4"):
        with pytest.raises(DicomError) as failure:
            read_source(tree.find(name))
        refused[name] = failure.value.reason
    with pytest.raises(OSError, match="made to fill memory"):
        tree.find("flood.csv").open()
    assert tracemalloc.get_traced_memory()[1] < 2**22
    assert refused == {"flood.dcm": "too_large", "film.mp4": "not_dicom"}
    assert read_source(tree.find("large.dcm")) == members["large.dcm"]
    assert tracemalloc.get_traced_memory()[1] < 1.3 * len(members["large.dcm"]) + 2**22
    tracemalloc.stop()


def patched(path: Path, name: str, field: int, change: int) -> ZipTree:
    """The archive with a number of a member's entry in the directory changed: 20 packed bytes, 42 place."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(name.encode()) - 46  # the name's second place is the directory
    (value,) = struct.unpack_from("<L", content, entry + field)
    struct.pack_into("<L", content, entry + field, value + change)
    path.write_bytes(content)
    return ZipTree(path)


def test_members_that_share_their_bytes_cost_themselves_and_no_other(tmp_path: Path) -> None:
    members = {f"{number}.dcm": os.urandom(200) for number in range(4)}
    path = packed(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
    assert refusals(ZipTree(path)) == {}
    tree = patched(path, "1.dcm", 20, 300)
    assert refusals(tree) == {"1.dcm": "packing"}
    assert [read_source(tree.find(name)) for name in ("0.dcm", "2.dcm", "3.dcm")] == [
        members[name] for name in ("0.dcm", "2.dcm", "3.dcm")
    ]
    path = packed(tmp_path / "b.zip", members, zipfile.ZIP_STORED)
    size = 30 + len("0.dcm") + 200
    assert refusals(patched(path, "1.dcm", 42, -size)) == {"1.dcm": "packing"}


def test_a_cut_archive_that_holds_a_whole_one_is_named_beside_what_that_holds(tmp_path: Path) -> None:
    inner = packed(tmp_path / "inner.zip", {"a.dcm": b"a" * 50, "b.dcm": b"b" * 60}).read_bytes()
    outer = packed(tmp_path / "outer.zip", {"lost.dcm": b"l" * 70, "inner.zip": inner}, zipfile.ZIP_STORED)
    content = outer.read_bytes()
    outer.write_bytes(content[: content.index(inner) + len(inner)])
    tree = ZipTree(outer)
    assert sorted(tree.list()[0]["path"]) == ["a.dcm", "b.dcm"]
    assert read_source(tree.find("b.dcm")) == b"b" * 60
    assert list(refusals(tree).values()) == ["packing"]


def test_a_file_that_is_no_archive_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"x\.zip: not a whole zip archive"):
        open_tree(tmp_path / "x.zip")
    whole = packed(tmp_path / "y.zip", {"a": b"1" * 1000}).read_bytes()
    (tmp_path / "y.zip").write_bytes(whole[:-30])
    with pytest.raises(UsageError, match="not a whole zip archive"):
        open_tree(tmp_path / "y.zip")
    assert open_tree(tmp_path / "nothing") is None
