"""common/evaluation/agreement.py: Fleiss' kappa."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from common.evaluation.agreement import fleiss_kappa

# Ten subjects, fourteen readers, five categories: how many readers chose each (the example of Fleiss' kappa that
# textbooks print; its kappa is 0.210, the agreement 0.378 and that by chance 0.213).
PRINTED = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def test_the_printed_example_has_the_printed_kappa() -> None:
    votes = np.array([np.repeat(np.arange(5), counts) for counts in PRINTED])
    assert fleiss_kappa(votes) == pytest.approx(0.210, abs=5e-4)


def test_of_two_readers_with_the_same_shares_it_is_cohens() -> None:
    one = np.array([0, 0, 1, 1, 1, 0, 1, 0, 0, 1])
    other = one[[1, 2, 3, 0, 4, 5, 6, 7, 8, 9]]
    assert fleiss_kappa(np.stack([one, other], axis=1)) == pytest.approx(cohen_kappa_score(one, other))


def test_readers_who_always_agree_have_1_and_who_never_differ_have_none() -> None:
    assert fleiss_kappa([[0, 0, 0], [1, 1, 1]]) == 1
    assert np.isnan(fleiss_kappa([[0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="at least two readers"):
        fleiss_kappa([[0], [1]])
