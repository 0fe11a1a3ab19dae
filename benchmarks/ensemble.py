"""What fitted weights gain and cost: python benchmarks/ensemble.py [images] [patients] [members] [seeds].

Made-up members (20,000 images of 1,000 patients, 4 members, 6 seeds; the competition has 750,000 of 17,000) with the
labels' prevalences of the competition. Either each member has one skill, or one for each label. For each fit the log
loss on three times as many images of new patients, as a share of that of equal weights (mean and range over the seeds),
what the fit's own outer folds tell beside it, seconds with the outer folds, and the process's peak memory.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.evaluation.ensemble_fitting import FITS, fit_nested, weighted_loss
from common.evaluation.ensembling import Array, build_link, weighted_mean
from common.evaluation.metrics import normalized_weights

LOGITS = np.array([-6.5, -4.5, -4.3, -4.1, -4.0, -2.6])  # of the mean patient: epidural is by far the rarest
SCALE = normalized_weights((1, 1, 1, 1, 1, 2), 6)
NEW = 3  # times as many patients to judge by


def made_up(generator: np.random.Generator, images: int, patients: int, noise: Array) -> tuple[Array, Array, Array]:
    """Return predictions (members, images, 6), labels (images, 6) and patients; ``noise`` (members, 6) is of logits."""
    owners = generator.integers(0, patients, images)
    truth = LOGITS + generator.normal(0, 2, (patients, 6))[owners] + generator.normal(0, 1.2, (images, 6))
    targets = (generator.random(truth.shape) < expit(truth)).astype(np.float64)
    stack = [
        expit(truth + part * (generator.normal(size=(patients, 6))[owners] + generator.normal(size=truth.shape)))
        for part in noise
    ]
    return np.stack(stack), targets, owners


def main(argv: list[str]) -> None:
    """Measure and print."""
    defaults = (20_000, 1_000, 4, 6)
    images, patients, members, seeds = (
        int(argv[place]) if len(argv) > place else default for place, default in enumerate(defaults)
    )
    link = build_link("mean")
    for world, width in (("one skill for each member", 1), ("a skill for each member and label", 6)):
        print(world)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in FITS}
        for seed in range(seeds):
            generator = np.random.default_rng(seed)
            noise = np.broadcast_to(generator.uniform(0.4, 1.4, (members, width)), (members, 6))
            stack, targets, owners = made_up(generator, images, patients, noise)
            new, truth, _ = made_up(generator, NEW * images, NEW * patients, noise)
            equal = weighted_loss(new.mean(axis=0), truth, SCALE)
            here = weighted_loss(stack.mean(axis=0), targets, SCALE)
            for name in FITS:
                started = time.perf_counter()
                fitted = fit_nested(stack, targets, owners, link, SCALE, name)
                seconds = time.perf_counter() - started
                loss = weighted_loss(weighted_mean(new, fitted.weights, link), truth, SCALE)
                told = weighted_loss(fitted.predictions, targets, SCALE)
                found[name].append((loss / equal, told / here, seconds))
        for name, rows in found.items():
            loss, told, seconds = np.array(rows).T
            print(
                f"  {name}: {loss.mean():.4f} of equal weights ({loss.min():.4f} to {loss.max():.4f}), "
                f"told {told.mean():.4f}, {seconds.mean():.1f} s"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1:])
