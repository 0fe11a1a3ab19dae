"""Export a trained network for other programs, and check the file on images of its dataset."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import DESCRIPTIVE_KEYS, load_checkpoint, save_checkpoint
from common.files import check_output
from common.lineage import Lineage
from common.models.exporting import FORMATS, export_model
from common.reports.page import NOTICE
from rsna.kinds.kind import ExportForm, TrainedNetwork, kind_of
from rsna.prediction.options import CHECKPOINT, ExportConfig
from rsna.prediction.trained import load_asked
from rsna.training.lineage import checkpoint_lineage
from rsna_dataset import LABELS

LOGITS = "logits; a probability is 1 / (1 + exp(-logit))"


def export_network(config: ExportConfig) -> Path:
    """Write the network in the form --export_format; return the file."""
    if config.export_format == CHECKPOINT:
        return export_checkpoint(config)
    path = config.export_file or config.net_weight_file.with_suffix(FORMATS[config.export_format].suffix)
    trained = load_asked(config, config.net_weight_file)
    check_output("export_file", path)
    lineage = known_lineage(config)
    form = kind_of(trained.config).export_form(trained)
    metadata = described(trained, form) | plain_lineage(lineage)
    difference = export_model(
        form.model, form.inputs, path, config.export_format, metadata, form.free, form.outputs, form.others
    )
    print(
        f"{FORMATS[config.export_format].summary}: {form.takes}\n"
        f"on {form.checked_on} the logits differ from torch's by {difference:.1e} at most"
    )
    print(f"{lineage_line(lineage)}\n{NOTICE}")
    return path


def export_checkpoint(config: ExportConfig) -> Path:
    """Write a checkpoint with all that prediction needs but without the state of the run; return the file."""
    path = config.export_file or config.net_weight_file.with_name(f"{config.net_weight_file.stem}_shared.pt")
    checkpoint = load_checkpoint(config.net_weight_file)
    lineage = known_lineage(config)
    check_output("export_file", path)
    kept = {key: value for key, value in checkpoint.items() if key in DESCRIPTIVE_KEYS and key != "lineage"}
    save_checkpoint(path, kept if lineage is None else kept | {"lineage": lineage.state()})
    print(f"weights for this program\n{lineage_line(lineage)}\n{NOTICE}")
    return path


def known_lineage(config: ExportConfig) -> Lineage | None:
    """Return the network's lineage; None if it is lost or --lineage=0 leaves it out."""
    if not config.lineage:
        return None
    checkpoint = load_checkpoint(config.net_weight_file)
    place = config.data_input_folder or Path(str(checkpoint["config"].get("data_input_folder", "input")))
    lineage = checkpoint_lineage(checkpoint, str(config.net_weight_file), place)
    return None if lineage.lost else lineage


def lineage_line(lineage: Lineage | None) -> str:
    """Return a line that says whether the file holds the lineage."""
    if lineage is None:
        return "without lineage: the file doesn't say what it learnt from, and can't be kept from being judged by that"
    return (
        f"with lineage: hashes of {len(lineage.pictures)} pictures that it learnt from; whoever has the file and a "
        "scan can tell whether the scan is among them (--lineage=0 leaves it out)"
    )


def plain_lineage(lineage: Lineage | None) -> dict[str, Any]:
    """Return a lineage in JSON's types: hashes as sorted little-endian uint64 in base64; empty for None."""
    if lineage is None:
        return {}

    def text(values: np.ndarray) -> str:
        return base64.b64encode(values.astype("<u8").tobytes()).decode("ascii")

    names = {key: text(values) for key, values in lineage.names.items()}
    return {"lineage": {"pictures": text(lineage.pictures), "names": names, "unknown": list(lineage.unknown)}}


def described(trained: TrainedNetwork, form: ExportForm) -> dict[str, Any]:
    """Return what another program must know to make inputs and read outputs, in JSON's types."""
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "output": LOGITS,
        **form.metadata,
        "weights": trained.weights,
        "iteration": trained.iteration,
    }
