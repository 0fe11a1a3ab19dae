"""Make the documents' pictures from real runs: python docs/screenshots.py [work folder].

Makes a phantom, trains some small networks on it, predicts studies, and takes pictures of what a headless Chromium
shows. Some ten minutes on two cores. What is finished in the work folder (else a new one, removed afterwards) is not
done again. Needs Chromium and the packages of requirements-dev.txt.
"""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent
sys.path.insert(0, str(PROJECT))

from tests.browser import Page, browser  # noqa: E402
from tests.run_driver import free_port  # noqa: E402

Picture = npt.NDArray[np.uint8]  # BGR (H, W, 3)

LARGEST = 300_000  # bytes of a picture
WIDTH = 1120
DATA = ["--data_input_folder=input", "--data_dataset=phantom"]
COMMON = "--n_jobs=1 --tr_iteration_log=5 --tr_batch_size=16"
SMALL = f"{COMMON} --data_image_size=64 --tr_iteration_num=100 --tr_iteration_valid=50"
FOLLOWED = "--trackers=trackio"
BEST = "resnet10t_96"
RUNS = (
    f"{COMMON} --experiment_id={BEST} --net_model=resnet10t --data_image_size=96 --tr_iteration_num=300 "
    f"--tr_iteration_valid=50 --tr_ema=1 {FOLLOWED}",
    f"{SMALL} --experiment_id=small_1 --net_model=resnet10t --optim=adamw --optim_lr=1e-3 {FOLLOWED}",
    f"{SMALL} --experiment_id=small_2 --net_model=resnet10t --optim=lion --optim_lr=1e-4 {FOLLOWED}",
    f"{SMALL} --experiment_id=small_3 --net_model=resnet14t --optim=adamw --optim_lr=3e-3 --sched=onecycle",
    f"{SMALL} --experiment_id=small_4 --net_model=resnet14t --optim=lion --optim_lr=1e-4 --tr_ema=1",
    f"{SMALL} --experiment_id=small_5 --net_model=resnet10t --optim=sgd --optim_lr=3e-2 --sched=onecycle",
    f"{SMALL} --experiment_id=small_6 --net_model=resnet10t --optim=adamw --optim_lr=3e-4 --sched=constant",
)


def main(argv: list[str]) -> None:
    """Make the runs and the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(argv[0] if argv else scratch).resolve()
        make_runs(work)
        with browser(Path(scratch) / "profile") as page:
            report_pictures(page, work / "results" / BEST / "report.html")
            leaderboard_picture(page, work / "results" / "leaderboard.html")
            dashboard_picture(page, work)
        study_picture(work / "studies")


def run(work: Path, script: str, *flags: str) -> None:
    """Run a script of the project in the work folder, by relative paths; an error ends all."""
    subprocess.run([sys.executable, PROJECT / script, *flags], cwd=work, check=True)


def make_runs(work: Path) -> None:
    """Make data, runs and predicted studies, as far as they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "input/datasets/phantom/dataset.json").exists():
        size = ["--phantom_studies=60", "--phantom_image_size=256", "--phantom_difficulty=demo"]
        run(work, "rsna_phantom.py", "--phantom_folder=input/phantom", *size)
        run(work, "preprocessing.py", *DATA, "--pre_source=input/phantom")
    lines = [f"{' '.join(DATA)} --output_dir=results {line}" for line in RUNS]
    for line in lines:
        name = next(flag.partition("=")[2] for flag in line.split() if flag.startswith("--experiment_id="))
        if not (work / "results" / name / "report.html").exists():
            run(work, "train.py", *line.split())
    run(work, "report.py", "--output_dir=results", f"--experiment_id={BEST}")
    if not (work / "studies").exists():
        weights = f"--net_weight_file=results/{BEST}/best.pt"
        run(work, "predict.py", weights, "--source=input/phantom/stage_2_test", "--predict_output=studies")


def show(page: Page, path: Path, height: int) -> None:
    """Open a file in a light window of this height, in pixels."""
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page.command("Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False)
    page.open(path.as_uri())
    page.wait_for("document.readyState === 'complete' && !!document.querySelector('h1')")


def taken(page: Page, top: float, bottom: float) -> Picture:
    """Return what the page shows between two heights."""
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
    shot = page.command("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return cv2.imdecode(np.frombuffer(base64.b64decode(shot["data"]), np.uint8), cv2.IMREAD_COLOR)


def edge(page: Page, heading: str, side: str) -> float:
    """Return where the section of a heading begins (``top``) or ends (``bottom``)."""
    found = f"[...document.querySelectorAll('section')].find(s => s.textContent.trim().startsWith({heading!r}))"
    return float(page.evaluate(f"{found}.getBoundingClientRect().{side} + scrollY"))


def report_pictures(page: Page, path: Path) -> None:
    """Take a report's verdict and first curves, and its pictures of the least certain slices."""
    show(page, path, 1400)
    page.evaluate(
        "document.querySelectorAll('.cards')[1].querySelectorAll('figure:nth-child(n+3)').forEach(f => f.remove())"
    )
    write_picture("report", taken(page, 0, edge(page, "Curves", "bottom") + 16))
    slices = "Most uncertain slices"
    write_picture("slices", taken(page, edge(page, slices, "top") - 8, edge(page, slices, "bottom") + 16))


def leaderboard_picture(page: Page, path: Path) -> None:
    """Take the table and the lines over all options."""
    show(page, path, 1200)
    page.evaluate("document.getElementById('difference').closest('section').remove()")
    page.evaluate("document.getElementById('scatter').remove()")
    write_picture("leaderboard", taken(page, 0, edge(page, "The options of a group", "bottom") + 16))


def dashboard_picture(page: Page, work: Path) -> None:
    """Take trackio's page of the runs that it followed."""
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "BROWSER": "true", "GRADIO_ANALYTICS_ENABLED": "0"}
    log = work / "dashboard.log"
    with log.open("wb") as output:
        command = ["bash", str(PROJECT / "train.sh"), "dashboard", str(work / "results")]
        dashboard = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        page.command("Emulation.setDeviceMetricsOverride", width=WIDTH, height=700, deviceScaleFactor=1, mobile=False)
        while "launched at" not in log.read_text() and dashboard.poll() is None:
            page.evaluate("new Promise(done => setTimeout(done, 500))")
        page.open(f"http://127.0.0.1:{port}/?project=results")
        page.wait_for("document.querySelectorAll('.plot-container canvas').length > 1")
        page.evaluate("new Promise(done => setTimeout(done, 10000))")  # until the curves are drawn
        write_picture("dashboard", taken(page, 0, 700))
    finally:
        os.killpg(dashboard.pid, 15)
        dashboard.wait(timeout=60)


def study_picture(studies: Path) -> None:
    """Take predict.py's picture of the study with the highest probability."""
    table = pd.read_csv(studies / "studies.csv")
    name = table.loc[table["any"].idxmax(), "study_id"]
    write_picture("study", cv2.imread(str(sorted(studies.glob(f"{name}*.png"))[0])))


def write_picture(name: str, picture: Picture) -> None:
    """Write ``docs/<name>.png``, in a palette of 255 colours or fewer and as large as :data:`LARGEST` allows."""
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        smaller = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for colours in (192, 96):
            content = palette_png(smaller, colours)
            if len(content) < LARGEST:
                (DOCS / f"{name}.png").write_bytes(content)
                print(f"docs/{name}.png: {smaller.shape[1]} × {smaller.shape[0]}, {len(content):,} bytes")
                return
    raise SystemExit(f"{name}: more than {LARGEST:,} bytes at half its size")


def palette_png(picture: Picture, colours: int) -> bytes:
    """Return a PNG of the picture in its most frequent colours, which OpenCV's own encoder can't write."""
    pixels = picture.reshape(-1, 3)
    known, counts = np.unique(pixels, axis=0, return_counts=True)
    centers = known
    if len(known) > colours:
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
        frequent = known[np.argsort(-counts, kind="stable")[: colours // 3]]
        cv2.setRNGSeed(0)
        sample = pixels[:: max(1, len(pixels) // 30_000)].astype(np.float32)
        others = cv2.kmeans(sample, colours - len(frequent), None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]
        centers = np.vstack([frequent, others.round().clip(0, 255).astype(np.uint8)])
    nearest = np.empty(len(known), np.uint8)
    for start in range(0, len(known), 4096):
        part = known[start : start + 4096, None].astype(np.int32) - centers[None].astype(np.int32)
        nearest[start : start + 4096] = (part**2).sum(axis=2).argmin(axis=1)
    codes = known.astype(np.int64) @ (1, 256, 65536)
    order = np.argsort(codes)
    places = order[np.searchsorted(codes, pixels.astype(np.int64) @ (1, 256, 65536), sorter=order)]
    height, width = picture.shape[:2]
    lines = np.hstack([np.zeros((height, 1), np.uint8), nearest[places].reshape(height, width)])  # 0: no filter
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", centers[:, ::-1].tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


if __name__ == "__main__":
    main(sys.argv[1:])
