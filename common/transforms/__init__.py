"""Pipelines from albumentations' JSON files: Hounsfield units in, what the network sees out."""

from common.transforms.documents import find_transform
from common.transforms.pipeline import FixedView, Pipeline, check_same_scale, load_pipeline, pipeline_from_dict

__all__ = ["FixedView", "Pipeline", "check_same_scale", "find_transform", "load_pipeline", "pipeline_from_dict"]
