"""How long fitted weights take: python benchmarks/ensemble.py [images] [patients] [members].

Made-up members of unequal skill (750,000 images of 17,000 patients, 5 members). Prints seconds and peak memory of both
fits with their five outer folds, and the weighted log loss of the best member, of equal weights, as fitted, and told.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.evaluation.ensemble_fitting import FITS, fit_nested, weighted_loss
from common.evaluation.ensembling import build_link, weighted_mean
from common.evaluation.metrics import normalized_weights


def main(argv: list[str]) -> None:
    """Measure and print."""
    images, patients, members = (
        int(argv[place]) if len(argv) > place else default for place, default in enumerate((750_000, 17_000, 5))
    )
    generator = np.random.default_rng(0)
    truth = generator.normal(-3, 2, (images, 6))
    targets = (generator.random((images, 6)) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    stack = np.stack(
        [1 / (1 + np.exp(-truth - generator.normal(0, 0.5 + 0.3 * member, truth.shape))) for member in range(members)]
    )
    groups = generator.integers(0, patients, images)
    scale = normalized_weights((1, 1, 1, 1, 1, 2), 6)
    link = build_link("mean")
    print(f"best member {min(weighted_loss(values, targets, scale) for values in stack):.5f}")
    print(f"equal weights {weighted_loss(stack.mean(axis=0), targets, scale):.5f}")
    for name in FITS:
        started = time.perf_counter()
        fitted = fit_nested(link.forward(stack), targets, groups, link, scale, name)
        seconds = time.perf_counter() - started
        on_all = weighted_loss(weighted_mean(stack, fitted.weights, link), targets, scale)
        told = weighted_loss(fitted.predictions, targets, scale)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        weights = ", ".join(f"{weight:.3f}" for weight in fitted.weights)
        print(f"{name}: {seconds:.1f} s, peak {peak:.2f} GiB; fitted {on_all:.5f}, told {told:.5f}; weights {weights}")


if __name__ == "__main__":
    main(sys.argv[1:])
