"""How long the recipes take: this project's pipelines against plain albumentations, interleaved in one run, one core.

python benchmarks/transforms.py [pictures]

Processor time of 512 x 512 pictures, three float channels (the complex recipe starts from int16 HU), the same draws on
both sides. Prints medians in milliseconds, the ratio of the means, and the largest difference of recipes without noise.
"""

from __future__ import annotations

import logging
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RECIPES = ("train_intermediate.json", "train_complex_512.json", "test_intermediate_tta_512.json")
SIDE = 512
WARM_UP = 5


def main() -> None:
    """Measure each recipe on each side, picture by picture in turn."""
    from common.transforms import find_transform, load_pipeline  # first: keeps albumentations from looking for updates

    import cv2  # isort: skip
    import numpy as np  # isort: skip

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    cv2.setNumThreads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3), dtype=np.float32)
    windowed = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 1, cv2.NORM_MINMAX)
    hu = (windowed[..., 0] * 400 - 150).astype(np.int16)
    print(f"{count} pictures of {SIDE} x {SIDE} x 3, processor time in ms, {cv2.__version__=}")
    for name in RECIPES:
        pipeline = load_pipeline(find_transform(name))
        image = hu if "complex" in name else windowed
        times: dict[str, list[float]] = {"albumentations": [], "ours": []}
        differences = []
        for seed in range(count + WARM_UP):
            pictures = {}
            sides = [("albumentations", pipeline.compose), ("ours", pipeline)]
            for side, call in sides if seed % 2 else sides[::-1]:
                pipeline.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
                start = time.process_time()
                pictures[side] = call(image=image)["image"]
                times[side].append(1000 * (time.process_time() - start))
            differences.append(float(np.abs(pictures["ours"] - pictures["albumentations"]).max()))
        library, ours = (np.array(times[side][WARM_UP:]) for side in ("albumentations", "ours"))
        has_noise = any(type(transform).__name__ == "GaussNoise" for transform in pipeline.transforms)
        print(
            f"{name:32} albumentations {np.median(library):6.2f}  ours {np.median(ours):6.2f}  "
            f"ratio {ours.mean() / library.mean():.2f}  "
            + ("(noise: another field)" if has_noise else f"largest difference {max(differences):.1e}")
        )


if __name__ == "__main__":
    main()
