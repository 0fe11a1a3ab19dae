"""rsna/prediction/alignment.py: features of several networks in one space."""

from __future__ import annotations

import numpy as np

from rsna.prediction.alignment import fit_alignment


def test_a_linear_map_brings_one_models_features_into_the_others_space() -> None:
    """Two networks whose features are different mixtures of the same facts: exactly what such a map can undo."""
    random = np.random.default_rng(0)
    facts = random.normal(size=(600, 8)).astype(np.float32)
    one, other = (2 * facts @ np.linalg.qr(random.normal(size=(8, 8)))[0].astype(np.float32) + 3 for _ in range(2))
    patients = np.repeat(np.arange(60), 10).astype(str)
    alignment = fit_alignment(one[:500], other[:500], patients[:500])
    assert alignment.r2 > 0.99
    np.testing.assert_allclose(alignment(one[500:]), other[500:], atol=0.05)
    unrelated = fit_alignment(one, random.normal(size=one.shape).astype(np.float32), patients)
    assert unrelated.r2 < 0.05
