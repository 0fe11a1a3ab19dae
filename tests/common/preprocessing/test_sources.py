"""Where files come from: folders and zip archives, ids, and everything that leads out of them."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from common.dicom.errors import DicomError
from common.errors import UsageError
from common.preprocessing.archives import Member, TarTree, ZipTree
from common.preprocessing.packed import FLOOD_BYTES
from common.preprocessing.sources import FileTree, FolderTree, open_tree, printable, read_source, stem


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
    liar = Member(member.archive, member.name, 1000, member.offset, member.packed_bytes, member.method, member.crc)
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


# --- folders of archives, tar, gzip, single files ---------------------------------------------------------------------

REAL_FILES = ("CT_small.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm")  # of pydicom's own


@pytest.fixture(scope="module")
def real() -> dict[str, bytes]:
    """Real files, which pydicom brings along, by names as in an export."""
    contents = (Path(get_testdata_file(name, download=False)).read_bytes() for name in REAL_FILES)
    return {f"case{number}/CT/{name}": content for number, (name, content) in enumerate(zip(REAL_FILES, contents,
            strict=True))}  # fmt: skip


def tarred(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(tree: FolderTree | ZipTree | TarTree | FileTree) -> dict[str, bytes]:
    return {row.path: read_source(tree.file_at(row)) for row in tree.list()[0].itertuples()}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_archive_gives_the_same_bytes_as_the_files_that_went_in(
    tmp_path: Path, real: dict[str, bytes], form: int
) -> None:
    long = "x" * 90 + "/" + "ä" * 60 + ".dcm"  # beyond the 100 bytes that a plain header has for a name
    members = real | ({long: b"long"} if form != tarfile.USTAR_FORMAT else {}) | {"a/.hidden": b"h"}
    tree = open_tree(tarred(tmp_path / "a.tar", {f"./{name}": content for name, content in members.items()}, form))
    assert contents(tree) == {name: content for name, content in members.items() if name != "a/.hidden"}
    assert tree.list()[1].empty
    assert tree.find("case0/CT/CT_small.dcm").read_bytes() == members["case0/CT/CT_small.dcm"]


def test_a_folder_of_archives_is_read_as_if_they_were_folders(tmp_path: Path, real: dict[str, bytes]) -> None:
    (first, one), (second, two), (third, three) = real.items()
    (tmp_path / "sub").mkdir()
    packed(tmp_path / "sub/part 1.ZIP", {first: one, "../climbs.dcm": b"x", "inner.zip": b"PK"})
    tarred(tmp_path / "part2.tar", {second: two})
    (tmp_path / "plain.dcm").write_bytes(three)
    (tmp_path / "IM4.dcm.gz").write_bytes(gzip.compress(three))
    (tmp_path / "no.zip").write_bytes(b"text")  # no archive but by its name
    packed(tmp_path / "empty.zip", {})
    tarred(tmp_path / "part3.tar.gz", {third: three}, mode="w:gz")
    cut = packed(tmp_path / "cut.zip", real).read_bytes()
    (tmp_path / "cut.zip").write_bytes(cut[: len(cut) // 2])
    tree = open_tree(tmp_path)
    found = tree.list()[0]
    assert contents(FolderTree(tmp_path / "sub")) == {f"part 1.ZIP/{first}": one}
    rows = {row.path: row for row in found.itertuples()}
    assert list(rows) == sorted(["IM4.dcm.gz", "no.zip", f"part2.tar/{second}", "plain.dcm", f"sub/part 1.ZIP/{first}"])
    assert read_source(tree.file_at(rows["IM4.dcm.gz"])) == three == read_source(tree.file_at(rows["plain.dcm"]))
    assert rows["IM4.dcm.gz"].bytes == len(three)  # what it takes on the disk once it is converted
    assert read_source(tree.file_at(rows[f"part2.tar/{second}"])) == two
    assert str(tree.file_at(rows[f"part2.tar/{second}"])) == f"{tmp_path}/part2.tar/{second}"
    assert refusals(tree) == {
        "sub/part 1.ZIP/../climbs.dcm": "name",
        "sub/part 1.ZIP/inner.zip": "archive",
        "part3.tar.gz": "archive",
        "cut.zip": "packing",
        "empty.zip": "not_dicom",
    }
    assert not any("archive" in row for row in FolderTree(tmp_path).list(recursive=False)[0])


@pytest.mark.parametrize(
    "pack",
    [lambda one: one, gzip.compress, lambda one: gzip.compress(one[:999]) + gzip.compress(one[999:])],
    ids=["plain", "packed", "packed in parts"],
)
def test_a_single_file_is_a_source_of_its_own_also_packed_by_gzip(
    tmp_path: Path, real: dict[str, bytes], pack: Callable[[bytes], bytes]
) -> None:
    content = real["case0/CT/CT_small.dcm"]
    (tmp_path / "IM1").write_bytes(pack(content))
    (tmp_path / "neighbour.dcm").write_bytes(content)
    assert contents(open_tree(tmp_path / "IM1")) == {"IM1": content}
    theirs = Path(get_testdata_file("zipMR.gz", download=False))  # packed by somebody else
    assert contents(open_tree(theirs)) == {"zipMR.gz": subprocess.check_output(["gzip", "-dc", theirs])}
    inside = packed(tmp_path / "a.zip", {"IM1.dcm.gz": pack(content)})
    assert contents(open_tree(inside)) == {"IM1.dcm.gz": content}


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.tgz", b"", "a tar archive packed by gzip, which can't be read in place: gunzip makes a tar"),
        ("scan.nii.gz", gzip.compress(bytes(1000)), "packed by gzip, and no DICOM file"),
        ("a.rar", b"Rar!\x1a\x07\x01\x00", "a RAR archive, which can't be read in place: unpack it"),
        ("a.tar.xz", lzma.compress(b"x" * 100), "packed by xz"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\0", "a 7-Zip archive"),
        ("a.tar", b"text" * 300, "not a whole tar archive"),
        ("IM1.dcm", b"text", "neither a folder, a DICOM file (the mark DICM is missing) nor a zip or tar archive"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,  # gzip's has the time in it
)
def test_a_file_that_can_not_be_a_source_is_named_as_what_it_is(
    tmp_path: Path, real: dict[str, bytes], name: str, content: bytes, part: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content) if content else tarred(path, real, mode="w:gz")
    with pytest.raises(UsageError) as caught:
        open_tree(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert part in str(caught.value)


def test_gzip_floods_and_what_is_no_dicom_file_are_refused_at_their_beginning(tmp_path: Path) -> None:
    start = bytes(128) + b"DICM"
    files = {
        "flood.dcm.gz": (gzip.compress(start + bytes(10**8)), "too_large"),
        "scan.nii.gz": (gzip.compress(bytes(10**8)), "not_dicom"),
        "cut.dcm.gz": (gzip.compress(start + os.urandom(5000))[:-2000], "unreadable"),
        "bad.dcm.gz": (gzip.compress(start + bytes(5000))[:-6] + b"\0" * 6, "unreadable"),
    }
    tracemalloc.start()
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DicomError) as failure:
            read_source(tmp_path / name)
        assert failure.value.reason == reason
    assert tracemalloc.get_traced_memory()[1] < 2 * FLOOD_BYTES
    tracemalloc.stop()


def test_tar_members_that_lead_out_link_or_repeat_cost_themselves(tmp_path: Path) -> None:
    tarred(tmp_path / "a.tar", {"ok.dcm": b"1", "../up.dcm": b"2", "/root.dcm": b"3", "twice.dcm": b"4"})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("twice.dcm"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"special{kind.decode()}.dcm")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    tree = TarTree(tmp_path / "a.tar")
    assert contents(tree) == {"ok.dcm": b"1", "twice.dcm": b""}
    assert refusals(tree) == {
        "../up.dcm": "name", "/root.dcm": "name", "twice.dcm": "duplicate", "special2.dcm": "link",
        "special1.dcm": "link", "special6.dcm": "special", "special3.dcm": "special",
    }  # fmt: skip


def header(size: bytes, kind: bytes = b"0", name: bytes = b"b.dcm") -> bytes:
    """A tar header with this text as its size, and the sum that it should have."""
    fields = (name, b"644", b"", b"", size, b"0", b" " * 8, kind, b"", b"ustar\0", b"00")
    block = bytearray(struct.pack("100s8s8s8s12s12s8sc100s6s2s", *fields).ljust(512, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "second",
    [
        b"\x01" * 512,  # garbage where a header should be
        header(b"\xff" * 11 + b"\x00"),  # a negative length, which would lead round and round
        header(b"77777777777", b"x"),  # a list of attributes of 8 GB
        header(b"77777777777", b"L"),  # a name of 8 GB
        header(b"7777", b"x") + bytes(100),  # cut within
        header(b"0", b"x") * 3000,  # a chain without end
    ],
)
def test_a_tar_archive_that_is_damaged_gives_what_stands_before_and_a_line(tmp_path: Path, second: bytes) -> None:
    whole = tarred(tmp_path / "a.tar", {"a.dcm": b"content"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:1024] + second)
    tracemalloc.start()
    tree = TarTree(tmp_path / "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert contents(tree) == {"a.dcm": b"content"}
    assert list(refusals(tree).values()) == ["packing"]


def test_a_member_that_a_cut_took_away_is_named_itself(tmp_path: Path) -> None:
    whole = tarred(tmp_path / "a.tar", {"a.dcm": b"content", "b.dcm": bytes(9000)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:4000])
    tree = TarTree(tmp_path / "a.tar")
    assert contents(tree) == {"a.dcm": b"content"}
    assert refusals(tree)["b.dcm"] == "unreadable"


def test_a_zip_directory_that_claims_gigabytes_is_refused_without_reading_them(tmp_path: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**31, 0, 0)
    with (tmp_path / "a.zip").open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(2**31)  # sparse
        file.seek(2**31)
        file.write(end)
    tracemalloc.start()
    with pytest.raises(UsageError, match="not a whole zip archive"):
        ZipTree(tmp_path / "a.zip")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
