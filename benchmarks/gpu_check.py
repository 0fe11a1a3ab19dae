"""The first hour on a GPU machine as one command: what works, what doesn't, how quick it is.

python benchmarks/gpu_check.py [--only=default,precision] [--folder=FOLDER]
    about ten minutes on one GPU; a line for each check as it ends, ok or FAULT
python benchmarks/gpu_check.py --list
    the checks, a line each

Each check is a process with a time limit, so that one that fails, dies or hangs is a line of the table and no end of
it. FOLDER keeps each check's output; report.txt in it has the table, the environment and the ends of what failed: that
is what to send. On a machine without a GPU the checks run on the pretended one of the tests as far as that goes: it
finds mixed devices, races of streams and waits of the host, but has no kernels, memory or speed of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OK, FAULT, SKIPPED = "ok", "FAULT", "skipped"
STUDIES, SIZE = 12, 128
LARGE_STUDIES, LARGE_SIZE = 8, 512  # for the throughput, as the competition's pictures
PRETENDED_SLOWER = 5  # how much longer a check may take on a pretended GPU
SHOWN_LINES = 40  # of a failed check's output in the report
DATASET = "phantom"


@dataclass(frozen=True)
class Check:
    """One check: ``run(work)`` raises where something is wrong, and returns what is worth a word.

    ``limit_s``: after which it counts as hung. ``gpus`` it needs; ``pretended``: whether a pretended GPU can do it.
    """

    name: str
    about: str
    run: Callable[[Work], str]
    limit_s: int = 240
    gpus: int = 1
    pretended: bool = True


@dataclass(frozen=True)
class Work:
    """Where the checks work: ``folder`` of this check, ``data`` with the phantom, ``pretended``: without a GPU."""

    folder: Path
    data: Path
    pretended: bool

    @property
    def flags(self) -> list[str]:
        """Flags of a short training on the phantom."""
        place = [f"--data_input_folder={self.data}", f"--data_dataset={DATASET}", f"--output_dir={self.folder}"]
        return [*place, "--data_image_size=64", "--tr_batch_size=8", "--tr_report=0"]

    def train(self, name: str, iterations: int, *more: str) -> Path:
        """Train in this process and return the experiment's folder."""
        length = [f"--tr_iteration_num={iterations}", f"--tr_iteration_valid={iterations}"]
        return command("train", *self.flags, *length, f"--experiment_id={name}", *more)


@dataclass(frozen=True)
class Outcome:
    """How a check ended: ``state`` is OK, FAULT or SKIPPED; ``note`` a line, ``output`` all that it printed."""

    state: str
    note: str
    seconds: float = 0.0
    output: str = ""


# ------------------------------------------------------------------------------------------------- the checks


def check_environment(work: Work) -> str:
    """Look at the GPUs and compute something on each."""
    import timm
    import torch

    lines = [f"Python {sys.version.split()[0]}, torch {torch.__version__}, timm {timm.__version__}"]
    lines += [
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, kernels for {torch.cuda.get_arch_list()}"
    ]
    lines += [f"{len(os.sched_getaffinity(0))} cores, shared memory {free_gib('/dev/shm'):.1f} GiB free"]
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = a @ a
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        about = torch.cuda.get_device_properties(index)
        memory = f"{about.total_memory / 2**30:.0f} GiB"
        lines.append(f"GPU {index}: {about.name}, capability {about.major}.{about.minor}, {memory}")
        torch.testing.assert_close((a.to(device) @ a.to(device)).cpu(), expected, rtol=1e-2, atol=1e-1)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.used,utilization.gpu", "--format=csv"]
        lines += subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    print("\n".join(lines))
    return lines[3]


def check_default(work: Work) -> str:
    """Train as a user would at first: the default options, all loading processes."""
    place = work.flags[:3]
    folder = command("train", *place, "--tr_iteration_num=40", "--tr_iteration_valid=20", "--experiment_id=default")
    return f"valid/weighted_log_loss {last_metric(folder, 'valid/weighted_log_loss'):.4f}, report.html written"


PRECISIONS = {"none": 1e-3, "bfloat16": 0.05, "float16": 0.02}  # how far a loss may be from the CPU's, relatively
OPTIMIZERS = ("adamw", "sgd", "rmsprop", "lookahead_adamw")


def check_precision(work: Work) -> str:
    """Compare losses with the CPU's in float32, a batch of NaN among them, for each precision and optimizer."""
    import torch

    gpu, worst = torch.device("cuda"), {}
    for optimizer in OPTIMIZERS:
        expected, _ = losses_of(torch.device("cpu"), None, optimizer)
        for precision, tolerance in PRECISIONS.items():
            dtype = None if precision == "none" else getattr(torch, precision)
            found, skipped = losses_of(gpu, dtype, optimizer)
            if skipped != 1:
                raise AssertionError(f"{precision}, {optimizer}: {skipped} updates were skipped where one batch is NaN")
            pairs = [(one, other) for one, other in zip(found, expected, strict=True) if other == other]
            error = max(abs(one - other) / abs(other) for one, other in pairs)
            print(f"{precision:<9} {optimizer:<16} largest relative difference {error:.2g} of {len(pairs)} losses")
            if not error <= tolerance:
                raise AssertionError(f"{precision}, {optimizer}: losses {found}, on the CPU {expected}")
            worst[precision] = max(error, worst.get(precision, 0))
    return ", ".join(f"{name} {error:.1g}" for name, error in worst.items())


def losses_of(device: Any, dtype: Any, optimizer: str) -> tuple[list[float], int]:
    """Train six iterations on the same pictures, the third batch NaN; return the losses and the skipped updates."""
    import torch
    from torch.utils.data import DataLoader

    from common.datasets.batch import Batch
    from common.datasets.samplers import SequentialSampler

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 32, 32, generator=generator)
    images[16:24] = float("nan")
    targets = (torch.rand(48, 6, generator=generator) < 0.3).float()

    class Numbers:
        """Gives the number of a picture for a sampler's key."""

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, key: Any) -> int:
            return key.index

    def batch_of(chosen: list[int]) -> Batch:
        return Batch({"image": images[chosen]}, targets[chosen], [f"ID_{number}" for number in chosen])

    sampler = SequentialSampler(len(images), 0)
    pinned = device.type == "cuda"
    loader = DataLoader(Numbers(), 8, sampler=sampler, collate_fn=batch_of, drop_last=True, pin_memory=pinned)
    found: list[Any] = []
    network = short_training(
        device, dtype, optimizer, loader, 6, lambda network, output: found.append(output.loss.detach())
    )
    network.fit()
    return [float(loss) for loss in found], network.guard.nonfinite_skips


def short_training(
    device: Any, dtype: Any, optimizer: str, loader: Any, iterations: int, listener: Callable[[Any, Any], None]
) -> Any:
    """Return a network that trains a small model and tells ``listener`` of each iteration; it validates nothing."""
    import timm
    import torch

    from common.callbacks.callback import Callback
    from common.networks.network import Training
    from common.training.optimizers import build_optimizer
    from common.training.schedulers import build_schedule
    from rsna_network import RSNANetwork

    class Listener(Callback):
        """Hands each iteration on."""

        def on_iteration_end(self, network: Any, output: Any) -> None:
            listener(network, output)

    class Alone(RSNANetwork):
        """Without the validation that ends a run."""

        def validate(self) -> dict[str, float]:
            self.settle()
            self.validated = self.iteration
            return {}

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=6).to(device)
    built = build_optimizer(optimizer, model, 1e-4, 0.0, {})  # so small that rounding does not grow
    training = Training(
        train_loader=loader,
        valid_loader=loader,
        optimizer=built,
        schedule=build_schedule("constant", built, iterations),
        iteration_num=iterations,
        iteration_valid=iterations,
        callbacks=[Listener()],
        clip_norm=1.0,
        nonfinite="skip",
    )
    return Alone(model, device, dtype, training)


def check_waits(work: Work) -> str:
    """Train with loading processes and transforms on the GPU while torch refuses whatever makes the host wait."""
    import torch

    from common.cli.arguments import parse_args
    from config import TrainConfig
    from rsna.kinds.slices import SliceKind

    device, watched = torch.device("cuda", 0), []
    config = parse_args(TrainConfig, [*work.flags, "--data_train_transform=train_complex_128.json"])
    data = SliceKind().build_data(config, device)

    def listen(network: Any, output: Any) -> None:
        watching = 3 <= network.iteration < 12  # the first update is the host's, and the noise's table is copied once
        torch.cuda.set_sync_debug_mode("error" if watching else "default")
        watched.append(watching)

    short_training(device, torch.bfloat16, "adamw", data.train_loader, 12, listen).fit()
    return f"{sum(watched)} iterations without a wait but for the guard's event"


def check_transforms(work: Work) -> str:
    """Compare each step that transforms have on a GPU with the same code on the CPU."""
    import albumentations as A
    import torch

    from common.albumentations import DicomWindowShift
    from common.datasets.batch import collate
    from common.datasets.images import ImageDataset, SampleKey
    from common.transforms.device import DevicePart
    from common.transforms.pipeline import Pipeline

    window = DicomWindowShift((70, 150, 350), (90, 250, 400), (30, 60, 35), (50, 100, 45))
    borders = [A.Affine(rotate=(-30, 30), border_mode=mode, fill=0.4, p=1) for mode in (0, 1, 2, 4)]
    steps = {
        "window": [],
        "flips": [A.HorizontalFlip(), A.VerticalFlip()],
        **{f"affine, border {affine.border_mode}": [affine] for affine in borders},
        "a fill for each channel": [A.Rotate((-40, 40), border_mode=0, fill=(0.1, 0.5, 0.9), p=1)],
        "grid": [A.GridDistortion(normalized=False, border_mode=4, p=1)],
        "crop": [A.RandomResizedCrop((64, 96), (0.4, 0.9))],
        "holes": [A.CoarseDropout((2, 9), (3, 8), (3, 8), fill=0.6, p=1)],
        "noise": [A.GaussNoise((0.01, 0.2), (-0.1, 0.1), p=1)],
        "normalization": [A.Normalize((0.3, 0.3, 0.4), (0.3, 0.3, 0.2), 1.0)],
        "one of": [A.OneOf([A.Rotate(border_mode=4), A.HorizontalFlip()])],
    }
    images = work.data / "datasets" / DATASET / "images"
    ids = sorted(path.stem for path in images.glob("*.npy"))[:8]
    largest = 0.0
    for name, own in steps.items():
        part = DevicePart(Pipeline(name, {}, [window, *own], 3))
        dataset = ImageDataset(images, ids, None, part, 0, 0, "hu")
        batch = collate([dataset[SampleKey(index, 0, 0)] for index in range(len(ids))])
        expected = batch.finished().inputs["image"]
        found = batch.to(torch.device("cuda")).finished().inputs["image"].cpu()
        error = float((found - expected).abs().max())
        print(f"{name:<26} largest difference {error:.2g}")
        if not error <= 5e-3:
            raise AssertionError(f"{name}: the GPU's pictures differ from the CPU's by up to {error:.3g}")
        largest = max(largest, error)
    return f"{len(steps)} kinds of steps, largest difference {largest:.1g}"


COMPILED = {
    "default, float32": ["--tr_compile=default"],
    "default, bfloat16, EMA, accumulation": [
        *("--tr_compile=default", "--tr_use_amp=1", "--tr_ema=1", "--tr_accumulation_step=2")
    ],
    "CUDA graphs, bfloat16, EMA": ["--tr_compile=reduce-overhead", "--tr_use_amp=1", "--tr_ema=1"],
    "CUDA graphs, float32, accumulation": ["--tr_compile=reduce-overhead", "--tr_accumulation_step=2"],
    "max-autotune, bfloat16, TF32": ["--tr_compile=max-autotune", "--tr_use_amp=1", "--tr_tf32=1"],
}


def check_compile(work: Work) -> str:
    """Train by each mode of torch.compile; a refusal in words is no fault."""
    from common.errors import UsageError

    refused = []
    for number, (name, flags) in enumerate(COMPILED.items()):
        print(f"--- {name}")
        try:
            work.train(f"compiled_{number}", 4, "--n_jobs=1", *flags)
        except UsageError as error:
            refused.append(f"{name} is refused ({error})")
    return "; ".join([f"{len(COMPILED) - len(refused)} of {len(COMPILED)} ways trained", *refused])


def check_repeatable(work: Work) -> str:
    """Train twice, and once in two parts, with --tr_deterministic=1: the same weights to the bit."""
    import torch

    flags = [
        "--tr_deterministic=1",
        "--sched=constant",
        "--tr_use_amp=1",
        "--data_train_transform=train_complex_128.json",
    ]
    folders = [work.train(name, 6, *flags) for name in ("once", "again")]
    folders.append(work.train("parts", 3, *flags))
    place = [f"--tr_resume={folders[2]}/last.pt", "--tr_iteration_num=6", "--tr_iteration_valid=3"]
    command("train", *place, "--tr_resume_change=tr_iteration_valid")
    models = [torch.load(folder / "last.pt", map_location="cpu", weights_only=True)["model"] for folder in folders]
    for name, other in (("a second run", models[1]), ("a resumed run", models[2])):
        different = [key for key, value in models[0].items() if not torch.equal(value, other[key])]
        if different:
            raise AssertionError(f"{name} has other weights: {len(different)} of {len(other)}, first {different[0]}")
    return f"{len(models[0])} tensors equal to the bit, twice and resumed"


def check_batch_find(work: Work) -> str:
    """Ask for the largest batch, then train 20 iterations with it."""
    large = ["--net_model=resnet34", "--data_image_size=256", "--tr_use_amp=1"]
    log = work.train("find", 1, *large, "--tr_batch_find=1") / "train.log"
    found = re.search(r"that fits: --tr_batch_size=(\d+)", log.read_text())
    if found is None:
        raise AssertionError("the search said no batch size")
    size = int(found.group(1))
    work.train("found", 20, *large, f"--tr_batch_size={size}", "--tr_overfit=1")
    return f"--tr_batch_size={size} found, 20 iterations with it"


def check_memory(work: Work) -> str:
    """Train on a GPU that somebody else has filled: one line of advice, and no traceback."""
    import torch

    from common.errors import WorkError

    free, _ = torch.cuda.mem_get_info()
    kept = torch.empty(max(0, free - 2**29), dtype=torch.uint8, device="cuda")
    try:
        work.train("full", 2, "--net_model=resnet34", "--data_image_size=512", "--tr_batch_size=64", "--n_jobs=1")
    except WorkError as error:
        if "out of GPU memory" not in str(error):
            raise AssertionError(f"the advice is another one: {error}") from None
        return f"{kept.numel() / 2**30:.0f} GiB taken; {error}"
    raise AssertionError("64 pictures of 512 pixels trained in half a gigabyte")


def check_kinds(work: Work) -> str:
    """Train every kind of network: folds, features, each sequence model over them, a network over whole series."""
    folds = work.train("folds", 4, "--data_fold=0,1,2", "--n_jobs=2")
    command("predict", f"--net_weight_file={folds}", "--features=1")
    place = [f"--data_input_folder={work.data}", f"--data_dataset={DATASET}", f"--output_dir={work.folder}"]
    over = ["--seq_width=32", "--seq_study=learned", "--tr_batch_size=2", "--tr_report=0"]
    over += ["--tr_iteration_num=6", "--tr_iteration_valid=6"]
    layers = ("gru", "lstm", "transformer", "conv")
    for name in layers:
        kind = ["--net_kind=sequence", f"--seq_features={folds}", f"--seq_model={name}", f"--experiment_id={name}"]
        command("train", *place, *over, *kind, "--tr_use_amp=1")
    slices = [f"--net_weight_file={folds / 'fold_0' / 'best.pt'}", "--data_image_size=64", "--study_chunk=8"]
    study = command("train", *place, *over, *slices, "--net_kind=study", "--tr_use_amp=1", "--experiment_id=study")
    command("predict", f"--net_weight_file={study / 'best.pt'}")
    command("evaluate", "--experiment_id=gru", f"--output_dir={work.folder}", "--eval_draws=100")
    return f"slice, study, and sequence with {', '.join(layers)}"


def check_use(work: Work) -> str:
    """Do with a trained network all that there is to do."""
    folder = work.train("used", 4, "--tr_report=1", "--tr_ema=1", "--tr_use_amp=1")
    weights = f"--net_weight_file={folder / 'best.pt'}"
    command("predict", weights)
    command("predict", weights, "--tta=train_demo.json", "--tta_views=2", f"--output_file={work.folder / 'tta.csv'}")
    command("evaluate", "--experiment_id=used", f"--output_dir={work.folder}", "--eval_draws=100")
    command("report", "--experiment_id=used", f"--output_dir={work.folder}")
    files = work.data / DATASET / "stage_2_test"
    command("predict", weights, f"--source={files}", f"--predict_output={work.folder / 'studies'}")
    command("export", weights, "--export_format=torch_export")
    return "predict, TTA, evaluate, report with heat, DICOM files, export"


def check_two(work: Work) -> str:
    """Train together on two GPUs: as it is, with batch norms over both, and with one process killed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += [str(ROOT / "train.py"), *work.flags]
    short = ["--tr_iteration_num=6", "--tr_iteration_valid=6"]
    ways = {"together": []} if work.pretended else {"together": [], "synchronized": ["--tr_sync_bn=1"]}
    for name, flags in ways.items():
        subprocess.run([*launch, *short, *flags, f"--experiment_id={name}"], cwd=ROOT, check=True, timeout=200)
    long = ["--tr_iteration_num=100000", "--tr_iteration_valid=50000", "--experiment_id=killed"]
    process = subprocess.Popen([*launch, *long], cwd=ROOT)
    try:
        kill_a_rank(process.pid, work.folder / "killed" / "train.log")
        code = process.wait(timeout=90)
    finally:
        process.kill()
    if code == 0:
        raise AssertionError("a run whose second process was killed ended as if it were well")
    return f"{' and '.join(ways)}; a killed process ends the run"


def kill_a_rank(launcher: int, log: Path) -> None:
    """Kill the second process of a run once it trains."""
    import psutil

    until = time.monotonic() + 150
    while not (log.is_file() and "iteration" in log.read_text()):
        if time.monotonic() > until:
            raise AssertionError("two processes did not begin to train within 150 s")
        time.sleep(1)
    time.sleep(5)
    for child in psutil.Process(launcher).children():
        if child.environ().get("LOCAL_RANK") == "1":
            child.send_signal(signal.SIGKILL)


def check_sweep(work: Work) -> str:
    """Sweep over two GPUs that the user has listed in another order: each trains on one of those."""
    lines = work.folder / "lines"
    lines.write_text("".join(f"--experiment_id=swept_{seed} --seed={seed}\n" for seed in range(2)))
    shared = " ".join([*work.flags[:2], *work.flags[3:], "--tr_iteration_num=4", "--tr_iteration_valid=4"])
    arguments = [f"--lines={lines}", f"--flags={shared}", f"--output_dir={work.folder}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1,0"}
    subprocess.run([sys.executable, str(ROOT / "sweep.py"), *arguments], cwd=ROOT, env=environment, check=True)
    for seed in range(2):
        if json.loads((work.folder / f"swept_{seed}" / "status.json").read_text())["status"] != "finished":
            raise AssertionError(f"swept_{seed} is not finished")
    return "two experiments at once, on GPUs 1 and 0"


def check_throughput(work: Work) -> str:
    """Measure a bare loop, fit, and fit with the loader, and how much of a real run the GPU computes."""
    data = work.folder / "large"
    make_data(data, LARGE_STUDIES, LARGE_SIZE)
    options = ["--model=resnet50", f"--size={LARGE_SIZE}", "--batch=64", "--iterations=20", "--rounds=3"]
    script = [sys.executable, str(ROOT / "benchmarks" / "fit.py"), *options]
    subprocess.run([*script, f"--dataset={data / 'datasets' / DATASET}"], cwd=ROOT, check=True)
    place = [f"--data_input_folder={data}", f"--data_dataset={DATASET}", f"--output_dir={work.folder}"]
    shape = [f"--data_image_size={LARGE_SIZE}", "--net_model=resnet50", "--tr_batch_size=32", "--tr_use_amp=1"]
    length = ["--tr_iteration_num=24", "--tr_iteration_valid=24", "--tr_profile=12", "--tr_report=0"]
    folder = command("train", *place, *shape, *length, "--experiment_id=traced")
    share = busy_share(json.loads((folder / "profile.json").read_text())["traceEvents"])
    return f"the GPU computed {share:.0%} of 12 iterations of ResNet-50 at {LARGE_SIZE} pixels; rates in the output"


def busy_share(events: Iterable[Mapping[str, Any]]) -> float:
    """Return the share of a trace, from its first kernel to its last, in which a kernel or a copy ran on the GPU."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )
    if not spans:
        raise AssertionError("the trace has no kernel of a GPU")
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - spans[0][0])


CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        Check("environment", "versions, GPUs, memory, a product on each", check_environment, 120),
        Check("default", "train.py as it is, all loading processes", check_default),
        Check("precision", "losses in each precision and optimizer against the CPU's, NaN injected", check_precision),
        Check("waits", "torch.cuda.set_sync_debug_mode around iterations", check_waits),
        Check("transforms", "each step of transforms, CPU against GPU", check_transforms, 120),
        Check("compile", "torch.compile x precision x accumulation x EMA", check_compile, 420, pretended=False),
        Check("repeatable", "deterministic twice, and resumed, to the bit", check_repeatable),
        Check("batch_find", "the largest batch, then 20 iterations with it", check_batch_find, pretended=False),
        Check("memory", "advice on a GPU that is full", check_memory, pretended=False),
        Check("kinds", "every kind of network and sequence model", check_kinds, 400),
        Check("use", "predict, TTA, evaluate, report, DICOM, export", check_use),
        Check("two_gpus", "torchrun, batch norms over both, a killed process", check_two, 480, gpus=2),
        Check("sweep", "a sweep under CUDA_VISIBLE_DEVICES=1,0", check_sweep, gpus=2),
        Check("throughput", "bare loop, fit, loader; a trace", check_throughput, 420, pretended=False),
    )
}


# ------------------------------------------------------------------------------------------------- helpers


def command(script: str, *arguments: str) -> Any:
    """Call one of the project's commands in this process and return what it returns; a mistake is a UserError."""
    print(f"$ python {script}.py {' '.join(arguments)}", flush=True)
    return importlib.import_module(script).main.__wrapped__(list(arguments))


def make_data(folder: Path, studies: int, size: int) -> None:
    """Make a phantom and its dataset."""
    source = folder / DATASET
    made = [f"--phantom_folder={source}", f"--phantom_studies={studies}", f"--phantom_image_size={size}"]
    command("rsna_phantom", *made, "--phantom_difficulty=demo")
    command("preprocessing", f"--data_input_folder={folder}", f"--data_dataset={DATASET}", f"--pre_source={source}")


def last_metric(folder: Path, name: str) -> float:
    """Return the last value of a metric in metrics.jsonl."""
    from common.trackers.jsonl import read_metrics

    return [point[name] for point in read_metrics(folder / "metrics.jsonl") if name in point][-1]


def free_gib(path: str) -> float:
    """Return the free space of a file system in GiB."""
    return shutil.disk_usage(path).free / 2**30


# ------------------------------------------------------------------------------------------------- the table


def run_process(arguments: Sequence[str], environment: Mapping[str, str], limit_s: float, log: Path) -> Outcome:
    """Run a check as a process of its own and return how it ended; its last line is the note."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    output = log.read_text(errors="replace").strip()
    note = (output.splitlines() or ["no output"])[-1].strip()
    if code is None:
        note = f"did not end within {limit_s:.0f} s; its last line: {note}"
    elif code < 0:
        note = f"was ended by signal {-code}; its last line: {note}"
    return Outcome(OK if code == 0 else FAULT, note, time.monotonic() - start, output)


def end_group(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environments(gpus: int, pretended: bool) -> dict[str, str]:
    """Return the variables of a check's process."""
    if not pretended:
        return dict(os.environ)
    from tests.pretended_cuda import Settings

    # A user who hides his GPUs, or has none to show, doesn't hide the pretended ones.
    variables = Settings(gpus=gpus).environment()
    return {name: value for name, value in variables.items() if name != "CUDA_VISIBLE_DEVICES"}


def outcome_of(check: Check, folder: Path, count: int) -> Outcome:
    """Run a check on a machine of ``count`` GPUs; 0: on pretended ones."""
    if count == 0 and not check.pretended:
        return Outcome(SKIPPED, "needs a GPU: a pretended one can't do it")
    if 0 < count < check.gpus:
        return Outcome(SKIPPED, f"needs {check.gpus} GPUs")
    own = folder / check.name
    own.mkdir(exist_ok=True)
    arguments = [sys.executable, str(Path(__file__).resolve()), f"--folder={folder}", f"--inside={check.name}"]
    limit_s = check.limit_s * (1 if count else PRETENDED_SLOWER)
    return run_process(arguments, environments(check.gpus, count == 0), limit_s, folder / f"{check.name}.txt")


def row(name: str, outcome: Outcome) -> str:
    """Return a check's line of the table."""
    return f"{name:<13} {outcome.state:<8} {outcome.seconds:>5.0f} s  {outcome.note[:200]}"


def report_text(outcomes: Mapping[str, Outcome]) -> str:
    """Return what is to be reported: the table, the environment, and the end of each check that failed."""
    parts = ["\n".join(row(name, outcome) for name, outcome in outcomes.items())]
    for name, outcome in outcomes.items():
        if outcome.state == FAULT or name in ("environment", "throughput"):
            parts.append(f"--- {name}\n" + "\n".join(outcome.output.splitlines()[-SHOWN_LINES:]))
    return "\n\n".join(parts) + "\n"


def gpu_count() -> int:
    """Return how many GPUs torch sees, asked in a process of its own: a broken driver may end that."""
    script = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return int(found.stdout.strip() or 0) if found.returncode == 0 else 0


def inside(name: str, folder: Path) -> None:
    """Be a check's process: run it and print its note as the last line."""
    work = Work(folder / name, folder / "data", "PRETENDED_CUDA" in os.environ)
    print(CHECKS[name].run(work), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and print the table; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of checks, with commas")
    parser.add_argument("--folder", type=Path, help="new folder for all that the checks write; none: a temporary one")
    parser.add_argument("--list", action="store_true", help="the checks, a line each")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(f"{check.name:<13} {check.about}" for check in CHECKS.values()))
        return 0
    if options.inside:
        inside(options.inside, options.folder)
        return 0
    names = options.only.split(",") if options.only else list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"--only: there is no check {unknown[0]!r}; --list names them")
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="gpu_check_"))).resolve()
    if folder.is_dir() and any(folder.iterdir()):
        parser.error(f"--folder={folder}: is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    count = gpu_count()
    if count == 0:
        print("torch sees no GPU here: the checks run on a pretended one, as far as that goes, and measure nothing")
    with contextlib.redirect_stdout(sys.stderr):
        make_data(folder / "data", STUDIES, SIZE)
    outcomes = {}
    for name in names:
        outcomes[name] = outcome_of(CHECKS[name], folder, count)
        print(row(name, outcomes[name]), flush=True)
    (folder / "report.txt").write_text(report_text(outcomes))
    failed = sum(outcome.state == FAULT for outcome in outcomes.values())
    said = f"{failed} of {len(names)} checks failed; please report" if failed else "no check failed; all is in"
    print(f"{said} {folder / 'report.txt'}")
    return min(failed, 100)


if __name__ == "__main__":
    raise SystemExit(main())
