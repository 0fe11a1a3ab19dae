"""The options of predict.py and export.py, and those that every command has that predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import REQUIRED, option, refuse_given
from common.cli.values import HOLDOUT, parse_weight_file
from common.errors import UsageError
from common.networks.averaging import AVERAGES
from common.training.ways import AUTO, WAYS
from config import ConsoleOptions
from rsna.prepare.options import PseudonymOptions

TRAINING = "training"  # as --net_compute: as the network was trained
FILLS = {"half": "0.5", "prevalence": "the label's prevalence"}  # of rows that an audited submission lacks
CHECKPOINT = "checkpoint"  # as a form of export


@dataclass(frozen=True, kw_only=True)
class InputFolderOptions(ConsoleOptions):
    """Place of the data."""

    data_input_folder: Path | None = option(
        None,
        "folder that holds datasets/; none: the one of the training, or input where no weight file is asked",
    )


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(InputFolderOptions):
    """Where to run, and which weights."""

    n_jobs: int | None = option(
        None, "CPU cores to use; 0: all there are; none: as the training", minimum=0, maximum=4096
    )
    net_weights: str = option(
        "best",
        "which of the file's weights: raw (as trained), ema or swa (their averages); best: which validated best",
        choices=("best", "raw", *AVERAGES),
    )


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(WeightsOptions):
    """Features of sequence models."""

    seq_features: str | None = option(
        None, "sequence models: experiment (id or folder) that has the features; none: the one of the training"
    )


@dataclass(frozen=True, kw_only=True)
class TTAOptions:
    """Test-time augmentation."""

    tta: str | None = option(
        None,
        "transform file of which --tta_views views are averaged, the same for every image and model; a bare name is "
        "looked up in transforms/; none: no",
    )
    tta_views: int = option(4, "number of views of --tta", minimum=1, maximum=1000)
    tta_mean: str = option(
        "mean",
        "mean of the views' probabilities; logit: mean of their logits (probabilities clipped to 1e-7 from 0 and 1)",
        choices=("mean", "logit"),
    )

    def __post_init__(self) -> None:
        if self.tta is None:
            refuse_given(self, ("tta_views", "tta_mean"), "needs --tta, the file of the views")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How much is predicted at a time."""

    batch_size: int | None = option(
        None, "images (or series) in a batch; lower it where memory runs out; none: as the training", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class PredictingOptions(BatchOptions, WeightsOptions):
    """Trained network, for all but --audit."""

    net_weight_file: Path = option(
        REQUIRED,
        "best.pt or last.pt of an experiment, its folder (best.pt), or the folder of a cross-validation (the mean of "
        "its folds' models)",
        parse=parse_weight_file,
        metavar="PATH",
    )

    @property
    def reads(self) -> Path:
        """What is read first."""
        return self.net_weight_file


@dataclass(frozen=True, kw_only=True)
class ProbabilityOptions(TTAOptions):
    """Probabilities."""

    net_compute: str = option(
        TRAINING,
        "without a GPU, how slice networks compute: training: as they were trained; float32; channels_last: float32 in "
        "another layout of the memory; bfloat16: in this layout and 8 bits of precision, but for first and last layer; "
        "auto: what measures quickest at the start",
        choices=(TRAINING, *WAYS, AUTO),
    )
    calibrate: bool = option(
        False,
        "1: probabilities by the temperatures of calibration.json, which evaluate.py fits, beside the weights (of "
        "--sequence beside its weights)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrate and self.tta is not None:
            raise UsageError("--calibrate=1 doesn't go with --tta: the temperatures were fitted to predictions without")


@dataclass(frozen=True, kw_only=True)
class RefitOptions:
    """Network of all folds, for --features=1 and --sequence."""

    feature_refit: Path | None = option(
        None,
        "one network (best.pt, or its experiment's folder) that was trained on the images of all folds "
        "(--data_fold=holdout), which sees new images in place of the mean of the folds' models; none: the mean",
    )


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Dataset, and the file to write."""

    data_dataset: str | None = option(
        None,
        "dataset to predict; none: the one of the training. For --audit the one with the sample submission; none: rsna",
    )
    output_file: Path | None = option(None, "file to write; none: beside the weights, or beside the audited file")


@dataclass(frozen=True, kw_only=True)
class SplitConfig(ProbabilityOptions, TableOptions, PredictingOptions, TrainedOptions):
    """Split of a dataset."""

    chosen_by = ""
    runs = "rsna.prediction.splits.predict_split"

    split: str = option(
        "test",
        "test: submission.csv (predictions_test.csv where the data is not the competition's); train, valid: "
        "predictions_<split>.csv of the images of that part of the fold; holdout: of those that --pre_holdout kept out "
        "of all folds",
        choices=("train", "valid", "test", HOLDOUT),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_file is not None and self.output_file.resolve() == self.net_weight_file.resolve():
            raise UsageError(f"--output_file={self.output_file} is the weight file; give another name")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(RefitOptions, PredictingOptions):
    """Features for sequence models (--features=1)."""

    chosen_by = "features"
    runs = "rsna.prediction.write_features.write_all_features"

    features: bool = option(
        False,
        "1: of a cross-validation's folder write what the models' heads see of each image: features/train, each image "
        "by the model that did not see it, and features/test, the mean of all; for --net_kind=sequence",
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ProbabilityOptions, RefitOptions, PredictingOptions, PseudonymOptions):
    """DICOM files of any origin (--source)."""

    chosen_by = "source"
    runs = "rsna.prediction.dicom_source.predict_source"

    source: Path | None = option(
        None,
        "folder, archive or single file of DICOM files, of any origin, to predict instead of a dataset: tables "
        "of slices and studies, JSON and a picture of each series, to --predict_output; names by --pseudonym_key, or "
        "pseudonyms.key in the training's input folder; none: a dataset",
    )
    predict_output: Path | None = option(None, "new folder for what --source gives")
    sequence: Path | None = option(
        None,
        "sequence model on the features of the cross-validation that --net_weight_file names: its best.pt, its "
        "experiment's folder, or a cross-validation's (the mean of its models); --net_weights then chooses its "
        "weights. Of a dataset's split it is the --net_weight_file itself; none: no",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predict_output is None:
            raise UsageError("--source and --predict_output (a new folder) belong together")
        if self.sequence is not None and self.tta is not None:
            raise UsageError("--sequence doesn't go with --tta: the features that it learnt from are of single views")
        if self.feature_refit is not None and self.sequence is None:
            raise UsageError("--feature_refit needs --sequence here")

    @property
    def reads(self) -> Path:
        """What is read first."""
        return self.source


@dataclass(frozen=True, kw_only=True)
class AuditConfig(TableOptions, InputFolderOptions):
    """Audit of a submission (--audit)."""

    chosen_by = "audit"
    runs = "rsna.prediction.submission_audit.audit_submission"

    audit: Path | None = option(
        None,
        "submission to audit instead of predicting: rows, duplicates, range, consistency of labels, distribution; exit "
        "code 1 where it is not valid",
    )
    audit_sample: Path | None = option(
        None, "sample submission that says which rows --audit expects; none: the dataset's, where it has one"
    )
    audit_fill: str | None = option(
        None,
        "write the audited submission, in the sample's order, with a value for rows that are missing: "
        f"{'; '.join(f'{name}: {value}' for name, value in FILLS.items())}; none: no",
        choices=tuple(FILLS),
    )

    def __post_init__(self) -> None:
        if self.output_file is not None and self.audit_fill is None:
            raise UsageError("--output_file needs --audit_fill here: an audit alone writes nothing")
        if self.output_file is not None and self.output_file.resolve() == self.audit.resolve():
            raise UsageError(f"--output_file={self.output_file} is the file to audit; give another name")

    @property
    def reads(self) -> Path:
        """What is read first."""
        return self.audit


@dataclass(frozen=True, kw_only=True)
class PredictConfig(AuditConfig, SourceConfig, FeaturesConfig, SplitConfig):
    """Predict a dataset's split, or the studies of any DICOM files (--source), or audit a submission (--audit).

    Model, transforms and image settings come from the weight file. Not a medical device; not for diagnosis.
    """

    modes = (AuditConfig, SourceConfig, FeaturesConfig, SplitConfig)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrainedOptions):
    """Export a trained network for other programs: windowed, normalized pictures in, six logits out.

    Of a sequence model: features, logits and places of whole series in, logits of slices and study out; of a network
    over whole series: pictures and places in, the same out. The file is run on data of the dataset and must give what
    torch gives. Not a medical device; not for diagnosis.
    """

    net_weight_file: Path = option(
        REQUIRED,
        "best.pt or last.pt of an experiment, or its folder (best.pt)",
        parse=parse_weight_file,
        metavar="PATH",
    )
    export_format: str = option(
        "onnx",
        "onnx: for ONNX Runtime and others (pip install onnx onnxscript onnxruntime); torch_export: for "
        "torch.export.load; checkpoint: for this program elsewhere, the weights without a run's state",
        choices=("onnx", "torch_export", CHECKPOINT),
    )
    export_file: Path | None = option(
        None, "file to write; none: beside the weights, as best.onnx, best.pt2 or best_shared.pt"
    )
    lineage: bool = option(
        True,
        "1: the file holds hashes of the pictures and pseudonyms that the network learnt from, so that nobody judges "
        "it by these; whoever has it and a scan can tell whether the scan was trained on. 0: it doesn't",
    )
    data_dataset: str | None = option(
        None, "dataset whose images the file is checked on; none: the one of the training"
    )

    def __post_init__(self) -> None:
        if self.export_file is not None and self.export_file.resolve() == self.net_weight_file.resolve():
            raise UsageError(f"--export_file={self.export_file} is the weight file; give another name")
        if self.export_format == CHECKPOINT:
            unused = ("n_jobs", "data_input_folder", "data_dataset", "seq_features", "net_weights")
            refuse_given(
                self, unused, "means nothing to --export_format=checkpoint, which holds all weights as they are"
            )
