"""Gives floods and hostile files to the commands that read them, and says what each costs.

    python benchmarks/floods.py [--only=WORDS] [--folder=FOLDER]

A flood is a small file that asks for gigabytes, for hours or for a traceback. Each is made, given to its command in a
process of its own, and must be refused in one line within 60 s of a processor and 300 MiB above what the command takes
for an honest file; a hostile neighbour of the leaderboard must cost its own row alone. Prints a row for each: seconds,
seconds of the processor, MiB above the command's baseline (of the largest of its processes), exit code, what was said.
Exit code 1 where one did harm. A process that grows beyond 3 GiB, or takes 600 s, is ended. The floods of tests/ are
given too: run it where requirements-dev.txt is installed. `--only` takes floods whose name has all of the words.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS, MOST_MIB = 60, 300
END_SECONDS, END_BYTES = 600, 3 * 2**30
ENDLESS = 9 * 10**11  # bytes of a file of holes: it takes no disk
MANY = 2**20  # bytes written at a time
STUDIES = 12
TINY = [
    "--net_model=resnet10t", "--tr_iteration_num=1", "--tr_iteration_valid=1", "--tr_batch_size=2",
    "--data_image_size=32", "--n_jobs=1", "--tr_report=0",
]  # fmt: skip
SEQUENCE = ["--net_kind=sequence", "--tr_iteration_num=1", "--tr_iteration_valid=1", "--tr_batch_size=2", "--n_jobs=1"]

Make = Callable[["World", Path], Sequence[object]]


@dataclass(frozen=True)
class World:
    """What honest commands need: an input folder with a phantom's dataset, and results with one trained experiment."""

    folder: Path
    input: Path
    results: Path

    @property
    def data(self) -> list[str]:
        return [f"--data_input_folder={self.input}", "--data_dataset=phantom"]

    @property
    def best(self) -> Path:
        return self.results / "one" / "best.pt"

    def train(self, *more: object) -> list[object]:
        return ["train.py", *self.data, *TINY, f"--output_dir={self.folder / 'trained'}", *more]

    def sequence(self, features: Path) -> list[object]:
        place = [*self.data, f"--output_dir={self.folder / 'trained'}", "--tr_report=0"]
        return ["train.py", *place, *SEQUENCE, f"--seq_features={features}"]

    def predict(self, weights: Path) -> list[object]:
        place = [f"--data_input_folder={self.input}", "--split=test", f"--output_file={self.folder / 'p.csv'}"]
        return ["predict.py", *place, f"--net_weight_file={weights}", "--n_jobs=1"]

    def sweep(self, *more: object) -> list[object]:
        return ["sweep.py", f"--output_dir={self.folder / 'swept'}", *more]

    def convert(self, source: Path, folder: Path, *more: object) -> list[object]:
        place = [f"--data_input_folder={folder / 'input'}", "--data_dataset=flood", "--n_jobs=1"]
        return ["preprocessing.py", *place, f"--pre_source={source}", *more]


@dataclass(frozen=True)
class Flood:
    """``make`` writes it and returns the command; ``codes``: how that may end; ``baseline``: an honest one's name."""

    name: str
    baseline: str
    make: Make
    codes: tuple[int, ...] = (1, 2)
    kept: Callable[[Path], bool] = field(default=lambda _: True)


@dataclass(frozen=True)
class Outcome:
    """What a command took (``cpu``: seconds of processors) and said; ``code`` is negative where a signal ended it."""

    seconds: float
    cpu: float
    mib: float
    code: int
    text: str

    @property
    def line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("error: ")]
        return (telling or lines or ["nothing was said"])[-1]

    @property
    def is_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


# Linux counts what a process had before its exec, so a small process has to start the command, and not this one.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
with open("cost", "w") as file:
    file.write(f"{process.returncode} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime}")
"""


def measure(command: Sequence[object], folder: Path) -> Outcome:
    """Run a command of this project and wait for it; it is ended where it takes too much."""
    arguments = [sys.executable, str(ROOT / str(command[0])), *map(str, command[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.perf_counter()
    with (folder / "said").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", LAUNCHER, *arguments], stdout=file, stderr=file, cwd=folder, env=environment
        )
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, over), daemon=True)
    watcher.start()
    process.wait()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    code, kib, cpu = map(float, (folder / "cost").read_text().split())
    said = (folder / "said").read_bytes()[-200_000:].decode("utf-8", "replace")
    return Outcome(seconds, cpu, kib / 1024, int(code), said)


def _watch(pid: int, over: threading.Event) -> None:
    """End the children of a process where they take too much memory or time."""
    import psutil

    began = time.monotonic()
    while not over.wait(0.2):
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(pid).children(recursive=True)
            grown = sum(one.memory_info().rss for one in family) > END_BYTES
            if grown or time.monotonic() - began > END_SECONDS:
                for one in reversed(family):
                    one.kill()


def make_world(folder: Path) -> World:
    """Make a phantom, its dataset and one trained experiment."""
    import preprocessing
    import rsna_phantom
    import train

    world = World(folder, folder / "input", folder / "results")
    phantom = ["--phantom_image_size=64", "--phantom_difficulty=demo", "--n_jobs=1", f"--phantom_studies={STUDIES}"]
    with contextlib.redirect_stdout(io.StringIO()):
        rsna_phantom.main([f"--phantom_folder={world.input / 'phantom'}", *phantom])
        preprocessing.main([*world.data, f"--pre_source={world.input / 'phantom'}", "--n_jobs=1"])
        train.main([*world.data, *TINY, f"--output_dir={world.results}", "--experiment_id=one"])
    return world


# --- what floods are made of ------------------------------------------------------------------------------------------


def endless(path: Path, start: bytes = b"") -> Path:
    """Write a file of holes that begins with ``start``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(ENDLESS)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dicom_files(world: World) -> list[Path]:
    return sorted((world.input / "phantom").rglob("*.dcm"))[:6]


def archive(world: World, path: Path, members: dict[str, tuple[bytes, bytes, int]]) -> Path:
    """Write a zip file of some true images below stage_2_train/ and of members (start, part, times) that are floods."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, (start, part, times) in members.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(start)
                block = part * max(1, MANY // len(part))
                for _ in range(len(part) * times // len(block)):
                    member.write(block)
        for image in dicom_files(world):
            file.write(image, f"stage_2_train/{image.name}")
    return path


def labels(world: World, folder: Path, start: bytes, part: bytes, times: int) -> list[object]:
    return world.convert(archive(world, folder / "a.zip", {"stage_2_train.csv": (start, part, times)}), folder)


def checkpoint(change: Callable[[dict[str, Any]], object]) -> Make:
    """A checkpoint that was read, changed and saved again."""

    def make(world: World, folder: Path) -> list[object]:
        import torch

        from common.checkpoint import load_checkpoint

        contents = load_checkpoint(world.best)
        change(contents)
        torch.save(contents, folder / "best.pt")
        return world.predict(folder / "best.pt")

    return make


def zeros_in_zip(world: World, folder: Path) -> list[object]:
    """A checkpoint with a deflated member of 3 GB of zeros."""
    with zipfile.ZipFile(world.best) as whole, zipfile.ZipFile(folder / "best.pt", "w") as file:
        for info in whole.infolist():
            file.writestr(info, whole.read(info))
        info = zipfile.ZipInfo(f"{whole.namelist()[0].partition('/')[0]}/data/9999")
        info.compress_type = zipfile.ZIP_DEFLATED
        with file.open(info, "w", force_zip64=True) as member:
            for _ in range(3 * 2**30 // MANY):
                member.write(bytes(MANY))
    return world.predict(folder / "best.pt")


def trillion_numbers(world: World, folder: Path) -> list[object]:
    """torch's form before 1.6, whose pickle asks for a storage of a trillion numbers."""
    import torch

    path = folder / "w.pt"
    torch.save({"fc.weight": torch.zeros(12345)}, path, _use_new_zipfile_serialization=False)
    number = (12345).to_bytes(2, "little")
    content = path.read_bytes().replace(b"M" + number, b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    path.write_bytes(content)
    return world.train(f"--net_weight_file={path}")


def features(change: Callable[[Path], object]) -> Make:
    """A folder of features, changed after it was written."""

    def make(world: World, folder: Path) -> list[object]:
        write_honest_features(world, folder)
        change(folder / "features" / "train")
        return world.sequence(folder)

    return make


def write_honest_features(world: World, folder: Path) -> None:
    import numpy as np

    from rsna.kinds.features import Block, write_features
    from rsna_dataset import LABELS, fold_hash, fold_numbers, read_dataset_info, read_fold

    dataset = world.input / "datasets" / "phantom"
    made, facts, generator = [], {}, np.random.default_rng(0)
    for fold in fold_numbers(dataset, "phantom"):
        rows = read_fold(dataset, "phantom", fold)
        ids = rows.index[rows["sample_type"] == "valid"].tolist()
        values = generator.normal(size=(len(ids), 16))
        made.append(Block(ids, values, values[:, : len(LABELS)], fold))
        facts[str(fold)] = {"hash": fold_hash(rows)}
    document = {"kind": "out_of_fold", "dataset": "phantom", "folds": facts}
    document["dataset_hash"] = read_dataset_info(dataset)["hash"]
    count = sum(len(block.ids) for block in made)
    write_features(folder / "features" / "train", made, count, 16, document)


def journal(write: Callable[[Path], object]) -> Make:
    """A search's journal that somebody else wrote."""

    def make(world: World, folder: Path) -> list[object]:
        (folder / "s").mkdir()
        write(folder / "s" / "study.journal")
        base = dict(flag.removeprefix("--").split("=", 1) for flag in (*world.data, *TINY))
        space = text(folder / "s.yaml", json.dumps({"base": base, "space": {"optim_lr": [0.1, 0.2]}}))
        return ["sweep.py", f"--output_dir={folder}", f"--space={space}", "--trials=1", "--data_dataset=phantom"]

    return make


def neighbour(write: Callable[[Path], object]) -> Make:
    """A hostile experiment beside an honest one."""

    def make(world: World, folder: Path) -> list[object]:
        for name in ("one", "evil"):
            shutil.copytree(world.results / "one", folder / name, ignore=shutil.ignore_patterns("*.pt"))
        write(folder / "evil")
        return ["report.py", f"--output_dir={folder}"]

    return make


def honest_row_is_there(folder: Path) -> bool:
    import pandas as pd

    table = pd.read_csv(folder / "leaderboard.csv", dtype=str).set_index("experiment")
    return set(table.index) == {"one", "evil"} and table.loc["one", "net_model"] == "resnet10t"


def given(flag: str, content: str | bytes | None, command: str = "train", name: str = "x") -> Make:
    """A file for a flag of a command; ``content`` None: without end."""

    def make(world: World, folder: Path) -> list[object]:
        path = endless(folder / name) if content is None else text(folder / name, content)
        return getattr(world, command)(f"{flag}={path}")

    return make


def transform(step: str) -> str:
    last = '{"__class_fullname__": "Normalize", "mean": [0.3], "std": [0.3], "max_pixel_value": 1.0, "p": 1.0}'
    inner = f'{{"__class_fullname__": "Compose", "p": 1.0, "transforms": [{step}, {last}]}}'
    return f'{{"__version__": "2.0.8", "transform": {inner}}}'


def nested_transforms(depth: int) -> str:
    start = '{"__class_fullname__": "Sequential", "p": 1.0, "transforms": ['
    return transform(start * depth + "]}" * depth)


# --- all of them ------------------------------------------------------------------------------------------------------

BASELINES: dict[str, Make] = {
    "help": lambda world, folder: ["train.py", "--help"],
    "train": lambda world, folder: world.train(f"--net_weight_file={world.best}", "--tr_overfit=2"),
    "sequence": features(lambda _: None),
    "predict": lambda world, folder: world.predict(world.best),
    "sweep": lambda world, folder: world.sweep(f"--grid={text(folder / 'g', 'grid: {seed: [1]}')}", "--dry_run=1"),
    "search": journal(lambda path: None),
    "preprocess": lambda world, folder: world.convert(world.input / "phantom", folder),
    "report": neighbour(lambda _: None),
    "ensemble": lambda world, folder: ensemble(world, folder, lambda path: None),
}


def ensemble(world: World, folder: Path, write: Callable[[Path], object]) -> list[object]:
    """Predictions that somebody else wrote, beside honest ones."""
    own = world.results / "one" / "predictions_valid.csv"
    shutil.copy(own, folder / "a.csv")
    shutil.copy(own, folder / "b.csv")
    write(folder / "b.csv")
    return ["ensemble.py", folder / "a.csv", folder / "b.csv", f"--output_dir={folder / 'results'}"]


def foreign_predictions(write: Callable[[Path], object]) -> Make:
    return lambda world, folder: ensemble(world, folder, write)


def floods() -> Iterable[Flood]:
    """Yield all floods; those of tests/ by their names there."""
    from tests.commands.test_leaks import HOSTILE as LINEAGES
    from tests.common.models.test_models import HOSTILE_SAFETENSORS, as_safetensors, one_tensor
    from tests.common.reports.test_leaderboard import EVIL
    from tests.common.sweeps.test_search import HOSTILE as JOURNALS
    from tests.common.test_checkpoint import HOSTILE as CHECKPOINTS
    from tests.common.test_checkpoint import OLD_FORMS, old_form
    from tests.common.test_foreign import bomb, merged, nested_yaml

    header = b"ID,Label\n"
    for name, start, part, times in (
        ("of the same row", header, b"ID_000000000_any,0\n", 10**8),
        ("of blank lines", header, b"\n", 255 * MANY),
        ("of one line of commas", b"", b",", 255 * MANY),
        ("of one endless cell", header + b'"', b"x", 255 * MANY),
        ("of rows of two characters", header, b",\n", 127 * MANY),
    ):
        make = lambda world, folder, s=start, p=part, t=times: labels(world, folder, s, p, t)  # noqa: E731
        yield Flood(f"labels in a zip {name}", "preprocess", make)
    members = {f"a{number}.dcm": (bytes(128) + b"DICM", b"\0", 255 * MANY) for number in range(3)}
    bombs = lambda world, folder: world.convert(  # noqa: E731
        archive(world, folder / "a.zip", members), folder, "--pre_folds=2"
    )
    yield Flood("members of 255 MiB in a zip", "preprocess", bombs, (0, 1, 2))
    for name, content in (("no end", None), ("commas", b"")):
        make = lambda world, folder, c=content: world.convert(  # noqa: E731
            world.input / "phantom",
            folder,
            f"--pre_labels={endless(folder / 'x.csv') if c is None else text(folder / 'x.csv', b',' * 255 * MANY)}",
        )
        yield Flood(f"--pre_labels of {name}", "preprocess", make)

    yamls = {
        "aliases of aliases": bomb(30),
        "merged aliases": merged(20),
        "a depth of 100,000": "a: " + nested_yaml(100_000),
        "a number of 100,000 digits": "seed: " + "9" * 100_000,
        "a list of a million": "seed: [" + "1," * 10**6 + "1]",
        "no end": None,
    }
    for name, content in yamls.items():
        yield Flood(f"--config of {name}", "help", given("--config", content))
        yield Flood(f"--grid of {name}", "sweep", given("--grid", content, "sweep"))
        yield Flood(f"--space of {name}", "sweep", given("--space", content, "sweep"))
    many = "[" + ",".join(map(str, range(1000))) + "]"
    grid = f"grid: {{seed: {many}, tr_batch_size: {many}, data_image_size: {many}}}"
    yield Flood("--grid of a billion experiments", "sweep", given("--grid", grid, "sweep"))
    yield Flood(
        "--space of 100,000 choices",
        "sweep",
        given("--space", f"space: {{seed: [{','.join(map(str, range(100_000)))}]}}", "sweep"),
    )
    yield Flood("--lines without end", "sweep", given("--lines", None, "sweep"))
    yield Flood("--lines of 200,000 experiments", "sweep", given("--lines", "--seed=1\n" * 200_000, "sweep"))

    blur = '{"__class_fullname__": "Blur", "p": 1.0}'
    for name, content in {
        "a depth of 100,000": transform("[" * 100_000),
        "transforms inside each other, 30 deep": nested_transforms(30),
        "transforms inside each other, 5,000 deep": nested_transforms(5000),
        "1e400": transform('{"__class_fullname__": "HorizontalFlip", "p": 1e400}'),
        "NaN": transform('{"__class_fullname__": "HorizontalFlip", "p": NaN}'),
        "digits": transform('{"__class_fullname__": "HorizontalFlip", "p": ' + "9" * 100_000 + "}"),
        "20,000 steps": transform(",".join([blur] * 20_000)),
        "a picture of a billion pixels": transform(
            '{"__class_fullname__": "Resize", "height": 40000, "width": 40000, "p": 1.0}'
        ),
        "a million empty lists": transform("[]," * 10**6 + "[]"),
        "no end": None,
    }.items():
        yield Flood(
            f"--data_train_transform of {name}", "train", given("--data_train_transform", content, name="x.json")
        )

    for name, content in HOSTILE_SAFETENSORS.items():
        yield Flood(f"safetensors: {name}", "train", given("--net_weight_file", content, name="w.safetensors"))
    never = as_safetensors(one_tensor("U8", [ENDLESS - 100], ENDLESS - 100).ljust(92))
    for name, start in (("w.safetensors", never), ("w.pt", b"PK\x03\x04"), ("old.pt", b"\x80\x02")):
        yield Flood(
            f"{name} that was never written",
            "train",
            lambda world, folder, n=name, s=start: world.train(f"--net_weight_file={endless(folder / n, s)}"),
        )
    for name, change in CHECKPOINTS.items():
        yield Flood(f"checkpoint: {name}", "predict", checkpoint(change))
    yield Flood("checkpoint: 3 GB of zeros, deflated", "predict", zeros_in_zip)
    for name, options in {
        "a network of a billion parameters": {"net_model": "vit_giant_patch14_224"},
        "a picture of 100,000 pixels": {"data_image_size": 100_000},
        "a network that there isn't": {"net_model": "x" * 10_000},
    }.items():
        yield Flood(f"checkpoint: {name}", "predict", checkpoint(lambda c, o=options: c["config"].update(o)))
    yield Flood("checkpoint: complex weights", "predict", checkpoint(_complex))
    yield Flood("torch before 1.6: a storage of a trillion numbers", "train", trillion_numbers)
    for name, contents in OLD_FORMS.items():
        given_old = given("--net_weight_file", old_form(contents), name="w.pt")
        yield Flood(f"torch before 1.6: {name}", "train", given_old)

    for name in ("rows.csv", "features.npy", "logits.npy", "features.json", "lineage.npz"):
        yield Flood(f"features: {name} without end", "sequence", features(lambda path, n=name: endless(path / n)))
    yield Flood("features: rows of commas", "sequence", features(lambda p: text(p / "rows.csv", b"," * 20 * MANY)))
    yield Flood("features: deep JSON", "sequence", features(lambda p: text(p / "features.json", "[" * 200_000)))
    yield Flood("features: a trillion rows", "sequence", features(_trillion_rows))
    for name, write in LINEAGES.items():
        yield Flood(f"features' lineage: {name}", "sequence", features(lambda path, w=write: w(path / "lineage.npz")))

    for name, (lines, _) in JOURNALS.items():
        write = endless if lines is None else lambda path, ls=lines: text(path, "".join(f"{line}\n" for line in ls))
        yield Flood(f"journal: {name}", "search", journal(write))

    for name, (file, content) in EVIL.items():
        write = lambda path, f=file, c=content: text(path / f, c)  # noqa: E731
        yield Flood(f"neighbour: {name}", "report", neighbour(write), (0,), honest_row_is_there)
    for file in ("config.yaml", "environment.json", "metrics.jsonl", "status.json"):
        write = lambda path, f=file: endless(path / f)  # noqa: E731
        yield Flood(f"neighbour: {file} without end", "report", neighbour(write), (0,), honest_row_is_there)
    kept = lambda path: endless(path.parent / ".leaderboard.jsonl")  # noqa: E731
    yield Flood("neighbour: what was kept, without end", "report", neighbour(kept), (0,), honest_row_is_there)

    for name, write in {
        "without end": endless,
        "of commas": lambda path: text(path, b"," * 255 * MANY),
        "of blank lines": lambda path: text(path, header + b"\n" * 255 * MANY),
    }.items():
        yield Flood(f"predictions {name}", "ensemble", foreign_predictions(write))


def _complex(contents: dict[str, Any]) -> None:
    import torch

    contents["model"] = {key: value.to(torch.complex64) for key, value in contents["model"].items()}


def _trillion_rows(folder: Path) -> None:
    known = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(known | {"images": 10**12, "num_features": 10**9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="floods whose name has all of these words")
    parser.add_argument("--folder", type=Path, help="for the small world that floods come to; kept, and used again")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    chosen = [flood for flood in floods() if all(word in flood.name for word in options.only.split())]
    with tempfile.TemporaryDirectory(prefix="floods_") as scratch:
        place = Path(scratch) / "world" if options.folder is None else options.folder.resolve()
        world = World(place, place / "input", place / "results")
        if not world.best.is_file():
            world = make_world(place)
        baselines: dict[str, Outcome] = {}
        harm = 0
        for flood in chosen:
            if flood.baseline not in baselines:
                baselines[flood.baseline] = _try(BASELINES[flood.baseline], world, scratch)[0]
                own = baselines[flood.baseline]
                print(f"-- {flood.baseline}: {own.seconds:.1f} s, {own.mib:.0f} MiB, exit {own.code}", flush=True)
                if own.code:
                    raise SystemExit(f"an honest file ended so: {own.line}")
            found, kept = _try(flood.make, world, scratch, flood.kept)
            above = found.mib - baselines[flood.baseline].mib
            well = found.cpu < MOST_SECONDS and above < MOST_MIB and found.code in flood.codes and kept
            well = well and not found.is_traceback
            harm += not well
            print(
                f"{'   ' if well else '!! '}{flood.name:55.55} {found.seconds:6.1f} s {found.cpu:5.1f} s "
                f"{above:+6.0f} MiB  exit {found.code:3}  {_short(found.line, scratch)}",
                flush=True,
            )
    print(f"{len(chosen)} floods, {harm} did harm")
    raise SystemExit(1 if harm else 0)


def _try(make: Make, world: World, scratch: str, kept: Callable[[Path], bool] = lambda _: True) -> tuple[Outcome, bool]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        found = measure(make(world, folder), folder)
        whole = found.code != 0 or kept(folder)
        return found, whole
    finally:
        shutil.rmtree(folder)


def _short(line: str, scratch: str) -> str:
    return line.replace(scratch, "…")[:150]


if __name__ == "__main__":
    main()
