"""How long one core needs for a phantom slice of 512 x 512: anatomy, scanner and file. Prints milliseconds.

python benchmarks/phantom.py [studies]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Measure rendering, and rendering with writing, after a study to warm up: processor time, median of studies."""
    import cv2
    import numpy as np

    from rsna.phantom.plan import MIN_TRAIN_STUDIES, plan_studies
    from rsna.phantom.study import PhantomSettings, render_study, write_study

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    settings = PhantomSettings(seed=0, image_size=512, difficulty="real")
    plans = plan_studies(max(count + 1, MIN_TRAIN_STUDIES + 1), 0, "real")[: count + 1]
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        for split in ("train", "test"):
            (Path(name) / f"stage_2_{split}").mkdir()
        times: dict[str, list[float]] = {"rendered": [], "rendered and written": []}
        for plan in plans:
            start = time.process_time()
            for _ in render_study(plan, settings):
                pass
            middle = time.process_time()
            write_study(plan, settings, Path(name))
            end = time.process_time()
            times["rendered"].append((middle - start) / plan.slices)
            times["rendered and written"].append((end - middle) / plan.slices)
    for what, values in times.items():
        later = 1000 * np.array(values[1:])
        print(f"{what}: {np.median(later):.1f} ms a slice (of {count} studies: {later.min():.1f} to {later.max():.1f})")


if __name__ == "__main__":
    main()
