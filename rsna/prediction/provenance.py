"""Check that a network did not learn from the images that it predicts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.lineage import Provenance
from rsna.kinds.features import OUT_OF_FOLD, TEST
from rsna.kinds.kind import TrainedNetwork, kind_of
from rsna.kinds.sequences import check_features
from rsna.prediction.options import SplitConfig
from rsna.training.lineage import overlap, overlap_lines, refuse_seen, weights_lineage
from rsna.training.provenance import features_used, tell_lines


def network_provenance(trained: TrainedNetwork, weight_file: Path, ids: pd.Index, *, new: bool = False) -> Provenance:
    """Return the provenance of a network's predictions of the images ``ids``; for a sequence model with its features'.

    ``new``: the images are in no fold, so that their features are the mean over all folds' networks.
    """
    own = Provenance.of([weights_lineage(weight_file, trained.config.data_input_folder)], len(ids))
    if not kind_of(trained.config).reads_features:
        return own
    check_features(trained)
    return own.beside(features_used(trained.config, ids, TEST if new else OUT_OF_FOLD))


def check_predicted(provenance: Provenance, folder: Path, ids: pd.Index, config: SplitConfig) -> None:
    """Raise UsageError if a network learnt from the validation or held-out images that it predicts.

    Tell the user which lineage is unknown. Predictions of training images are not checked.
    """
    if config.split == "train":
        return
    found = overlap(provenance, folder, ids)
    what = f"--split={config.split} of {folder.name}"
    refuse_seen(found, str(config.net_weight_file), what, "--split=train and --split=test are predicted by any network")
    tell_lines(overlap_lines(found))
