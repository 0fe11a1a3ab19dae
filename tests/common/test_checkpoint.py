"""common/checkpoint.py: what is saved reads back, and everything else gets one line that says what it is."""

from __future__ import annotations

import copy
import errno
import functools
import io
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.checkpoint import (
    FORMAT_VERSION,
    MOST_PICKLE_BYTES,
    MOST_VALUES,
    REQUIRED_KEYS,
    chosen_weights,
    load_checkpoint,
    load_weights_file,
    save_checkpoint,
)
from common.errors import UsageError, WorkError
from common.training.reproducibility import rng_state
from tests import PROJECT


def contents(**more):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return {
        "model": model.state_dict(),
        "config": {"net_model": "resnet18", "data_windows": [[40, 80]], "seed": 1, "tr_use_amp": False, "x": None},
        "transforms": {"train": {"transform": {"p": 1.0}}, "valid": {}},
        "class_names": ["epidural", "any"],
        "prevalences": [0.01, 0.2],
        "iteration": 10,
        "step": 5,
        "metrics": {"valid/weighted_log_loss": 0.1234567890123456789},
        "averages": {},
        "best_weights": "raw",
        **more,
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, contents())
    return path


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_what_is_saved_reads_back_with_the_format_version(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    saved = contents(
        model=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(), rng=rng_state()
    )
    save_checkpoint(tmp_path / "last.pt", saved)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["format_version"] == FORMAT_VERSION
    assert {key: loaded[key] for key in ("config", "transforms", "class_names", "iteration", "step", "metrics")} == {
        key: saved[key] for key in ("config", "transforms", "class_names", "iteration", "step", "metrics")
    }
    assert all(torch.equal(loaded["model"][key], value) for key, value in model.state_dict().items())
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert scheduler.milestones == Counter([2, 4])
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_an_average_that_had_not_begun_when_the_best_weights_were_written_is_refused_in_words():
    averages = {name: {"model": contents()["model"]} for name in ("ema", "swa")}
    metrics = {"valid/weighted_log_loss": 0.2, "valid_ema/weighted_log_loss": 0.1}
    checkpoint = contents(averages=averages, metrics=metrics)
    assert chosen_weights(checkpoint, "ema")[0] == "ema"
    with pytest.raises(UsageError, match=r"--net_weights=swa: this average had not begun at iteration 10, .*last\.pt"):
        chosen_weights(checkpoint, "swa")
    assert chosen_weights({**checkpoint, "metrics": {}}, "swa")[0] == "swa"  # saved before the first validation


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(config=st.dictionaries(st.text(), PLAIN, max_size=4))
def test_any_nest_of_plain_values_reads_back_the_same(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("plain") / "a.pt"
    save_checkpoint(path, contents(config=config))
    assert load_checkpoint(path)["config"] == config


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros(2), "numpy.ndarray"),
        (np.float64(1), "numpy.float64"),
        (Path("a"), r"pathlib\.(_local\.)?PosixPath"),
        ({1}, "builtins.set"),
        (torch.float32, "torch.dtype"),
    ],
)
def test_a_value_that_is_not_plain_is_refused_at_save_time_by_its_place(tmp_path, value, kind):
    with pytest.raises(ValueError, match=rf"config\['deep'\]\[1\] is a {kind}"):
        save_checkpoint(tmp_path / "a.pt", contents(config={"deep": [0, value]}))
    assert list(tmp_path.iterdir()) == []


def test_a_dict_key_that_is_not_plain_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics has the key \(1, 2\) of type tuple"):
        save_checkpoint(tmp_path / "a.pt", contents(metrics={(1, 2): 0.5}))


def test_a_missing_and_a_misspelt_key_are_refused_at_save_time(tmp_path):
    wrong = contents(optimiser={})
    del wrong["step"]
    with pytest.raises(ValueError, match=r"missing: \['step'\], unknown: \['optimiser'\]"):
        save_checkpoint(tmp_path / "a.pt", wrong)


def test_a_missing_file_is_answered_with_the_files_that_are_there(file):
    with pytest.raises(UsageError) as caught:
        load_checkpoint(file.with_name("bst.pt"))
    assert one_line(caught.value).endswith(f"bst.pt: no such weight file; {file.parent} has best.pt")


def test_a_folder_in_place_of_a_file_is_answered_with_its_files(file, tmp_path):
    with pytest.raises(UsageError, match=r"is a folder, not a weight file; .* has best\.pt"):
        load_checkpoint(file.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"there is no \.pt file in"):
        load_checkpoint(tmp_path / "empty" / "best.pt")
    with pytest.raises(UsageError, match="and no folder"):
        load_checkpoint(tmp_path / "absent" / "best.pt")


def test_a_cut_file_is_reported_by_name_wherever_it_is_cut(file):
    whole = file.read_bytes()
    for length in [0, 1, 3, 4, 100, *range(500, len(whole), len(whole) // 25), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(WorkError, match=r"best\.pt: is (cut or damaged|empty)") as caught:
            load_checkpoint(file)
        one_line(caught.value)


def test_one_wrong_bit_in_the_weights_is_found(tmp_path):
    path = tmp_path / "best.pt"
    weights = torch.arange(5000.0)
    save_checkpoint(path, contents(model={"w": weights}))
    data = bytearray(path.read_bytes())
    position = data.index(weights.numpy().tobytes()[400:800])
    data[position + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkError, match=r"best\.pt: is damaged \(checksum of"):
        load_checkpoint(path)


def test_changes_anywhere_in_the_file_never_give_a_traceback(tmp_path, file):
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    damaged = tmp_path / "damaged.pt"
    for _ in range(150):
        data = bytearray(whole)
        for position in generator.integers(0, len(data), 3):
            data[position] = generator.integers(0, 256)
        damaged.write_bytes(data)
        try:
            load_checkpoint(damaged)
        except (WorkError, UsageError) as error:
            one_line(error)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(WorkError, match=r"model\.pt: holds Python objects.* never unpickled"):
        load_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_with_foreign_objects_is_refused_by_their_name_and_not_run(tmp_path):
    torch.save({"model": Canary(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(WorkError, match=r"holds Python objects \(posix\.mkdir\), which are never unpickled") as caught:
        load_checkpoint(tmp_path / "model.pt")
    one_line(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WorkError, match=r"Python objects \(torch\.nn\.modules\.linear\.Linear\)"):
        load_checkpoint(tmp_path / "model.pt")


def test_files_of_other_programs_are_told_apart(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 1, "state_dict": {}}, tmp_path / "lightning.pt")
    for name, words in {
        "text.pt": "not a file of torch",
        "arrays.npz": "a zip file, but not of torch",
        "list.pt": "not a checkpoint of this project",
        "lightning.pt": "not a checkpoint of this project",
    }.items():
        with pytest.raises(WorkError, match=words) as caught:
            load_checkpoint(tmp_path / name)
        assert name in one_line(caught.value)


def test_a_plain_state_dict_is_sent_to_the_flag_that_takes_it(tmp_path):
    weights = OrderedDict(torch.nn.Linear(2, 3).state_dict())
    torch.save(weights, tmp_path / "resnet.pt")
    with pytest.raises(WorkError, match=r"a plain state_dict of 2 tensors.*train\.py as --net_weight_file"):
        load_checkpoint(tmp_path / "resnet.pt")
    loaded = load_weights_file(tmp_path / "resnet.pt")
    assert list(loaded) == list(weights)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_weights_are_also_taken_from_our_own_checkpoint(file):
    assert list(load_weights_file(file)) == list(contents()["model"])


def test_a_newer_format_asks_for_newer_code(tmp_path):
    torch.save({**contents(), "format_version": FORMAT_VERSION + 1}, tmp_path / "best.pt")
    with pytest.raises(WorkError, match=r"newer version of this project \(format 2, this one reads up to 1\); update"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("key", [key for key in REQUIRED_KEYS if key != "format_version"])
def test_a_checkpoint_without_a_key_or_with_a_wrong_type_is_refused_by_the_key(tmp_path, key):
    wrong = {**contents(), "format_version": FORMAT_VERSION}
    torch.save({**wrong, key: 1.5}, tmp_path / "type.pt")
    del wrong[key]
    torch.save(wrong, tmp_path / "missing.pt")
    with pytest.raises(WorkError, match=f"lacks {key}$"):
        load_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(WorkError, match=f"{key} has the wrong type"):
        load_checkpoint(tmp_path / "type.pt")


def test_a_write_that_fails_leaves_the_previous_file_and_nothing_else(file):
    before = file.read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel refuses to let a file grow beyond this
    try:
        with pytest.raises(WorkError) as caught:
            save_checkpoint(file, contents(model={"w": torch.zeros(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.strerror(errno.EFBIG) in one_line(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["best.pt"]


def test_a_full_disk_is_one_line(file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs privileges")
    try:
        save_checkpoint(disk / "last.pt", contents())
        with pytest.raises(WorkError, match=r"last\.pt: the disk is full; make space"):
            save_checkpoint(disk / "last.pt", contents(model={"w": torch.zeros(100_000)}))
        assert load_checkpoint(disk / "last.pt")["iteration"] == 10
        assert [path.name for path in disk.iterdir()] == ["last.pt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import sys, torch
from pathlib import Path
from common.checkpoint import save_checkpoint
contents = {"config": {}, "transforms": {}, "class_names": [], "prevalences": [], "step": 0, "metrics": {}}
contents |= {"averages": {}, "best_weights": "raw"}
for iteration in range(10**6):
    model = {"w": torch.full((300_000,), float(iteration))}
    save_checkpoint(Path(sys.argv[1]), {**contents, "model": model, "iteration": iteration})
    print(iteration, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    for delay in np.random.default_rng(0).uniform(0.0, 0.05, 10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        process.wait()
        loaded = load_checkpoint(path)
        assert torch.equal(loaded["model"]["w"], torch.full((300_000,), float(loaded["iteration"])))


def hostile(path: Path, change) -> Path:
    """A checkpoint of this project, changed after it was read and saved again by torch."""
    written = contents(format_version=FORMAT_VERSION, images={})
    change(written)
    torch.save(written, path)
    return path


def shared(levels: int) -> tuple:
    """Tuples inside each other that share their parts: twice as many values with each level, in a few bytes."""
    value = ("x",)
    for _ in range(levels):
        value = (value, value)
    return value


HOSTILE = {
    "no average": lambda c: c.update(averages={"ema": None}, best_weights="ema"),
    "an average without weights": lambda c: c.update(averages={"ema": {"model": [1]}}, best_weights="ema"),
    "images as a list": lambda c: c.update(images=[1, 2]),
    "images without end": lambda c: c.update(images={"pre_window": [[1.0, 2.0]] * 100_000}),
    "options that share their parts": lambda c: c["config"].update(a=shared(30)),
    "classes that share their parts": lambda c: c.update(class_names=[shared(30)]),
    "options inside each other": lambda c: c["config"].update(a=functools.reduce(lambda a, _: [a], range(200), 1)),
    "a tensor as an option": lambda c: c["config"].update(seed=torch.zeros(3)),
    "transforms as texts": lambda c: c.update(transforms={"valid": "x"}),
    "a prevalence beyond 1": lambda c: c.update(prevalences=[float("nan")] * len(c["prevalences"])),
    "too few prevalences": lambda c: c.update(prevalences=[]),
    "weights that are no tensors": lambda c: c.update(model={"a": 1}),
    "words for a metric": lambda c: c.update(metrics={"valid/x": "low"}),
    "a negative iteration": lambda c: c.update(iteration=-1),
    "a number said a trillion times": lambda c: c.update(lineage={"pictures": torch.zeros(1).expand(10**12)}),
    "weights that are all one number": lambda c: c.update(
        model={f"w{n}": torch.zeros(1).expand(10**6) for n in range(9)}
    ),
    "weights without numbers": lambda c: c.update(model={"w": torch.empty(10**12, device="meta")}),
    "weights that are mostly nothing": lambda c: c.update(
        model={"w": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**12,))}
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_checkpoint_that_somebody_changed_is_one_line(tmp_path: Path, what: str) -> None:
    path = hostile(tmp_path / "best.pt", HOSTILE[what])
    with pytest.raises(WorkError, match=re.escape(str(path))) as caught:
        load_checkpoint(path)
    one_line(caught.value)


def old_form(contents: bytes) -> bytes:
    """A file in the form of torch before 1.6 whose contents are this pickle."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, protocol=2)
    return buffer.getvalue().replace(empty, contents)


OLD_FORMS = {  # by what the pickle asks for; the module pickletools has the steps
    "many empty lists": b"\x80\x02(" + b"]" * (MOST_VALUES + 1) + b"l.",
    "lists inside each other": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples that share their parts": b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b".",
    "a text of four billion letters": b"\x80\x02X\xff\xff\xff\xffa.",
    "bytes without end": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R.",
    "half a number": b"\x80\x02J\x01",
    "a key for a tuple": b"\x80\x02K\x01Q.",
    "no end": b"\x80\x02]",
    "a program": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
}


@pytest.mark.parametrize("what", OLD_FORMS)
def test_a_hostile_file_in_the_form_of_torch_before_1_6_is_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(old_form(OLD_FORMS[what]))
    with pytest.raises(WorkError, match=re.escape(str(path))) as caught:
        load_weights_file(path)
    one_line(caught.value)


def test_bytes_of_the_old_form_that_are_changed_are_read_or_one_line(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "w.pt"
    state = {"weight": torch.arange(12.0).reshape(3, 4), "bias": nn.Parameter(torch.ones(2))}
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=False)
    whole, chance, ends = buffer.getvalue(), random.Random(0), Counter()
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(whole))] = chance.choice((chance.randrange(256), *b"JKMXQR.]}(\x8a"))
        path.write_bytes(changed)
        try:
            load_weights_file(path)
        except (UsageError, WorkError) as error:
            one_line(error)
            ends["refused"] += 1
        else:
            ends["read"] += 1
    assert min(ends["refused"], ends["read"]) > 20


def test_parts_of_a_file_that_would_grow_are_not_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.zeros(1000)}, whole)
    with zipfile.ZipFile(whole) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for name, kind, grown in (("grown.pt", zipfile.ZIP_DEFLATED, True), ("small.pt", zipfile.ZIP_DEFLATED, False)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            for member, content in members.items():
                archive.writestr(member, content + b"\0" * (200_000_000 if grown and "/data/" in member else 0))
        with pytest.raises(WorkError, match="compressed"):
            load_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "words.pt", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, b"x" * (MOST_PICKLE_BYTES + 1) if member.endswith("/data.pkl") else content)
    with pytest.raises(WorkError, match="no tensors"):
        load_checkpoint(tmp_path / "words.pt")


def test_parts_that_lie_in_each_other_are_not_read(tmp_path: Path) -> None:
    """One stored part that many entries of the list point to, as in D. Fifield, A better zip bomb (2019)."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", b"\0" * 1_000_000)
        (part,) = [info for info in archive.infolist() if info.filename == "archive/data/0"]
        for number in range(1, 200):
            again = copy.copy(part)
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    with pytest.raises(WorkError, match=r"lie in each other|damaged"):
        load_checkpoint(path)
