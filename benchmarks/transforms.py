"""How long the recipes take: this project's pipelines against plain albumentations, interleaved in one run, one core.

python benchmarks/transforms.py [pictures [batch]]

Processor time of 512 x 512 pictures, three float channels (the complex recipe starts from int16 HU), the same draws on
all sides: albumentations, operation by operation, and fused to one warp. Prints medians in milliseconds, the ratio of
the means to albumentations, and the largest difference of recipes without noise. Then the same in whole batches as
--data_transform_device does it: what a picture costs its loading process, and a batch the device (the GPU if there is
one, else one core), elapsed time.
"""

from __future__ import annotations

import logging
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RECIPES = ("train_intermediate.json", "train_complex_512.json", "test_intermediate_tta_512.json")
SIDE = 512
WARM_UP = 5
BATCHES = 6


def main() -> None:
    """Measure each recipe on each side, picture by picture in turn, then in batches."""
    # First, since common/ keeps albumentations from looking for updates.
    from common.transforms.documents import find_transform
    from common.transforms.pipeline import load_pipeline

    import cv2  # isort: skip
    import numpy as np  # isort: skip
    import torch  # isort: skip

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3), dtype=np.float32)
    windowed = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 1, cv2.NORM_MINMAX)
    hu = (windowed[..., 0] * 400 - 150).astype(np.int16)
    print(f"{count} pictures of {SIDE} x {SIDE} x 3, processor time in ms, {cv2.__version__=}")
    for name in RECIPES:
        compare(
            load_pipeline(find_transform(name)), load_pipeline(find_transform(name), fuse=True), windowed, hu, count
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"batches of {batch}, {device.type}, elapsed time in ms")
    for name in RECIPES:
        for fuse in (False, True):
            measure_batches(load_pipeline(find_transform(name), fuse=fuse), windowed, hu, batch, device)


def compare(pipeline: Any, fused: Any, windowed: Any, hu: Any, count: int) -> None:
    """Print the times of one recipe on the three sides."""
    import numpy as np

    image = hu if "complex" in pipeline.name else windowed
    sides = [("albumentations", pipeline, pipeline.compose), ("ours", pipeline, pipeline), ("fused", fused, fused)]
    times: dict[str, list[float]] = {side: [] for side, *_ in sides}
    differences = []
    for seed in range(count + WARM_UP):
        pictures = {}
        for side, owner, call in sides if seed % 2 else sides[::-1]:
            owner.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
            start = time.process_time()
            pictures[side] = call(image=image)["image"]
            times[side].append(1000 * (time.process_time() - start))
        differences.append(float(np.abs(pictures["ours"] - pictures["albumentations"]).max()))
    library, ours, one_warp = (np.array(times[side][WARM_UP:]) for side in times)
    has_noise = any(type(transform).__name__ == "GaussNoise" for transform in pipeline.transforms)
    print(
        f"{Path(pipeline.name).name:32} albumentations {np.median(library):6.2f}  ours {np.median(ours):6.2f} "
        f"ratio {ours.mean() / library.mean():.2f}  fused {np.median(one_warp):6.2f} "
        f"ratio {one_warp.mean() / library.mean():.2f}  "
        + ("(noise: another field)" if has_noise else f"largest difference {max(differences):.1e}")
    )


def measure_batches(pipeline: Any, windowed: Any, hu: Any, size: int, device: Any) -> None:
    """Print what batches of one recipe cost the loading process and the device."""
    import numpy as np
    import torch

    from common.datasets.finish import collect, execute
    from common.transforms.device import DevicePart

    image = hu if "complex" in pipeline.name else windowed
    part = DevicePart(pipeline)
    stored = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
    pictures = torch.from_numpy(np.stack([stored] * size)).to(device)
    host, computed = [], []
    for number in range(BATCHES + 1):
        start = time.perf_counter()
        results = []
        for seed in range(number * size, (number + 1) * size):
            part.set_random_seed(seed)
            results.append(part(image=image))
        plan = collect([result["steps"] for result in results], results[0]["size"])
        host.append(1000 * (time.perf_counter() - start) / size)
        start = time.perf_counter()
        execute(plan.map(lambda numbers: numbers.to(device)), pictures)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        computed.append(1000 * (time.perf_counter() - start))
    print(
        f"{Path(pipeline.name).name:32} {'fused' if pipeline.fuse else '':5} "
        f"draws {np.median(host[1:]):5.2f} a picture, device {np.median(computed[1:]):8.2f} a batch"
    )


if __name__ == "__main__":
    main()
