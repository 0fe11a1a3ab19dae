"""The options of predict.py and export.py, and those of all commands that predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import REQUIRED, option, refuse_given
from common.cli.groups import ConsoleOptions
from common.cli.values import HOLDOUT, parse_weight_file
from common.errors import UsageError
from common.networks.averaging import AVERAGES
from common.training.ways import AUTO, WAYS
from rsna.prepare.options import PseudonymOptions, SeriesOptions

TRAINING = "training"  # value of --net_compute: as the network was trained
FILLS = {"half": "0.5", "prevalence": "the label's prevalence"}  # what --audit_fill writes for missing rows
CHECKPOINT = "checkpoint"  # value of --export_format


@dataclass(frozen=True, kw_only=True)
class InputFolderOptions(ConsoleOptions):
    """Place of the data."""

    data_input_folder: Path | None = option(
        None,
        "folder that holds datasets/; none: as in the training, or input if no weight file is used",
    )


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(InputFolderOptions):
    """Where to run, and which weights."""

    n_jobs: int | None = option(
        None, "number of CPU cores to use; 0: all; none: as in the training", minimum=0, maximum=4096
    )
    net_weights: str = option(
        "best",
        "which weights of the file to use. raw: as trained. ema, swa: their averages. best: whichever validated best",
        choices=("best", "raw", *AVERAGES),
    )


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(WeightsOptions):
    """Features of sequence models."""

    seq_features: str | None = option(
        None, "sequence models: experiment (id or folder) that has the features; none: as in the training"
    )


@dataclass(frozen=True, kw_only=True)
class TTAOptions:
    """Test-time augmentation."""

    tta: str | None = option(
        None,
        "transform file for test-time augmentation: --tta_views views are averaged, the same for every image and "
        "model. A bare name is looked up in transforms/. none: no augmentation",
    )
    tta_views: int = option(4, "number of views of --tta", minimum=1, maximum=1000)
    tta_mean: str = option(
        "mean",
        "how to average the views. mean: their probabilities. logit: their logits (probabilities clipped to 1e-7 "
        "from 0 and 1)",
        choices=("mean", "logit"),
    )

    def __post_init__(self) -> None:
        if self.tta is None:
            refuse_given(self, ("tta_views", "tta_mean"), "needs --tta, the file of the views")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How much is predicted at a time."""

    batch_size: int | None = option(
        None,
        "number of images (or series) in a batch; lower it if memory runs out. none: as in the training",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class PredictingOptions(BatchOptions, WeightsOptions):
    """Trained network, for all but --audit."""

    net_weight_file: Path = option(
        REQUIRED,
        "the best.pt or last.pt of an experiment, its folder (which means its best.pt), or the folder of a "
        "cross-validation (for the mean of its folds' models)",
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
        "how slice networks compute without a GPU. training: as they were trained. float32. channels_last: float32 "
        "in another memory layout. bfloat16: in this layout with 8 bits of precision, except in the first and last "
        "layer. auto: whichever is quickest in a measurement at the start",
        choices=(TRAINING, *WAYS, AUTO),
    )
    calibrate: bool = option(
        False,
        "1: apply the temperatures in calibration.json beside the weights (for --sequence, beside its weights); "
        "evaluate.py fits them",
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
        "one network (best.pt, or its experiment's folder) trained on all folds (--data_fold=holdout), which sees "
        "new images instead of the folds' models. none: the mean of the folds' models",
        needs="--features=1, or --sequence with --source",
    )


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Dataset, and the file to write."""

    data_dataset: str | None = option(
        None,
        "dataset to predict; none: as in the training. For --audit, the dataset with the sample submission; none: rsna",
    )
    output_file: Path | None = option(None, "file to write; none: beside the weights, or beside the audited file")


@dataclass(frozen=True, kw_only=True)
class SplitConfig(ProbabilityOptions, TableOptions, PredictingOptions, TrainedOptions):
    """Split of a dataset."""

    chosen_by = ""
    runs = "rsna.prediction.splits.predict_split"

    split: str = option(
        "test",
        "images to predict. test: the test images, to submission.csv (predictions_test.csv if the data is not the "
        "competition's). The others go to predictions_<split>.csv. train, valid: that part of the fold. holdout: the "
        "images that --pre_holdout kept out of all folds",
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
        "1: write the features that the models of a cross-validation's folder compute of each image, for "
        "--net_kind=sequence: features/train by the model that did not see the image, features/test as the mean of "
        "all models",
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ProbabilityOptions, RefitOptions, PredictingOptions, SeriesOptions, PseudonymOptions):
    """DICOM files of any origin (--source)."""

    chosen_by = "source"
    runs = "rsna.prediction.dicom_source.predict_source"

    source: Path | None = option(
        None,
        "DICOM files of any origin to predict instead of a dataset: a folder, an archive or a single file. Tables "
        "of slices and studies, JSON, a picture of each series and a page of each study go to --predict_output. Names "
        "become pseudonyms by --pseudonym_key, or by pseudonyms.key in the training's input folder. none: a dataset",
    )
    predict_output: Path | None = option(None, "new folder for the results of --source")
    predict_viewer: bool = option(
        True,
        "1: write a page (HTML, some 0.2 MB for each slice) for each study of --source, to scroll through with exact "
        "Hounsfield units and the probabilities of each slice. 0: none",
    )
    sequence: Path | None = option(
        None,
        "sequence model to apply to the features of the cross-validation in --net_weight_file: its best.pt, its "
        "experiment's folder, or a cross-validation's folder (for the mean of its models). --net_weights then "
        "chooses its weights. To predict a dataset's split, give it as --net_weight_file itself. none: no sequence "
        "model",
        needs="--source; to predict a dataset's split with a sequence model, give it as --net_weight_file",
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
        "submission to check instead of predicting: rows, duplicates, range, consistency of labels, distribution. "
        "The exit code is 1 if it is not valid",
    )
    audit_sample: Path | None = option(
        None, "sample submission with the rows that --audit expects; none: the dataset's, if it has one"
    )
    audit_fill: str | None = option(
        None,
        "write the audited submission in the sample's order, and fill in missing rows. "
        f"{'; '.join(f'{name}: {value}' for name, value in FILLS.items())}; none: write nothing",
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
        "onnx: for ONNX Runtime and others (pip install onnx onnxscript onnxruntime). torch_export: for "
        "torch.export.load. checkpoint: for this program on another machine, the weights without the state of the "
        "run",
        choices=("onnx", "torch_export", CHECKPOINT),
    )
    export_file: Path | None = option(
        None, "file to write; none: beside the weights, as best.onnx, best.pt2 or best_shared.pt"
    )
    lineage: bool = option(
        True,
        "1: store hashes of the pictures and pseudonyms that the network was trained on, so that nobody evaluates "
        "it on these. With the file and a scan, anyone can then tell whether the scan was trained on. 0: leave the "
        "hashes out",
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
