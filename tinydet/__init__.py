"""EfficientDet as a handful of pure functions, and thin modules that hold the weights."""

from typing import TYPE_CHECKING, Any

from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.backbone import EfficientNetBackbone
from tinydet.model.bifpn import BiFPN, BiFPNLayer
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.detect import Detections, detect, model_anchors
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import apply, ema_update, normalize, state, value_and_grad
from tinydet.model.fuse import fuse, fused_skeleton
from tinydet.model.heads import BoxNet, ClassNet
from tinydet.model.layers import SeparableConvBlock, swish
from tinydet.ops.anchors import anchors, coverage
from tinydet.ops.assign import Targets, assign, assign_batch, assign_nearby
from tinydet.ops.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    decode,
    encode,
    intersection,
    iou,
    swap_xy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from tinydet.ops.fusion import weighted_fusion
from tinydet.ops.losses import Losses, detection_loss, focal_loss, huber_loss
from tinydet.ops.nms import nms, soft_nms

if TYPE_CHECKING:
    from tinydet.data.coco import CocoDataset, coco_json
    from tinydet.data.dataset import DetectionDataset
    from tinydet.data.kitti import KittiDataset
    from tinydet.data.opened import open_dataset
    from tinydet.data.yolo import YoloDataset
    from tinydet.detector import Detector, load
    from tinydet.evaluate import validate
    from tinydet.export import export
    from tinydet.prediction import Prediction
    from tinydet.score import headline, score_detections
    from tinydet.training.schedule import lr_factor
    from tinydet.training.settings import TrainSettings
    from tinydet.training.start import start, training_batches, validation_batches
    from tinydet.training.step import State, make_optimizer, train_step
    from tinydet.weights.formats import Weights
    from tinydet.weights.load import fit_weights, load_detector, load_weights, with_classes

__version__ = "0.1.0"

# What would load more than torch, and where it is.
_LAZY = {
    "CocoDataset": "tinydet.data.coco",
    "DetectionDataset": "tinydet.data.dataset",
    "Detector": "tinydet.detector",
    "KittiDataset": "tinydet.data.kitti",
    "Prediction": "tinydet.prediction",
    "State": "tinydet.training.step",
    "TrainSettings": "tinydet.training.settings",
    "Weights": "tinydet.weights.formats",
    "YoloDataset": "tinydet.data.yolo",
    "coco_json": "tinydet.data.coco",
    "export": "tinydet.export",
    "fit_weights": "tinydet.weights.load",
    "headline": "tinydet.score",
    "load": "tinydet.detector",
    "load_detector": "tinydet.weights.load",
    "load_weights": "tinydet.weights.load",
    "lr_factor": "tinydet.training.schedule",
    "make_optimizer": "tinydet.training.step",
    "open_dataset": "tinydet.data.opened",
    "score_detections": "tinydet.score",
    "start": "tinydet.training.start",
    "train_step": "tinydet.training.step",
    "training_batches": "tinydet.training.start",
    "validate": "tinydet.evaluate",
    "validation_batches": "tinydet.training.start",
    "with_classes": "tinydet.weights.load",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tinydet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


__all__ = [
    "BACKGROUND",
    "IGNORE",
    "BiFPN",
    "BiFPNLayer",
    "BoxNet",
    "ClassNet",
    "CocoDataset",
    "DetectionDataset",
    "Detections",
    "Detector",
    "EfficientDet",
    "EfficientNetBackbone",
    "InputError",
    "KittiDataset",
    "Losses",
    "ModelConfig",
    "Outputs",
    "Prediction",
    "SeparableConvBlock",
    "State",
    "Targets",
    "TrainSettings",
    "Weights",
    "YoloDataset",
    "anchors",
    "apply",
    "area",
    "assign",
    "assign_batch",
    "assign_nearby",
    "clip",
    "coco_json",
    "coverage",
    "cxcywh_to_xyxy",
    "decode",
    "detect",
    "detection_loss",
    "ema_update",
    "encode",
    "export",
    "fit_weights",
    "focal_loss",
    "fuse",
    "fused_skeleton",
    "headline",
    "huber_loss",
    "intersection",
    "iou",
    "load",
    "load_detector",
    "load_weights",
    "lr_factor",
    "make_optimizer",
    "model_anchors",
    "model_config",
    "nms",
    "normalize",
    "open_dataset",
    "score_detections",
    "soft_nms",
    "start",
    "state",
    "swap_xy",
    "swish",
    "train_step",
    "training_batches",
    "validate",
    "validation_batches",
    "value_and_grad",
    "weighted_fusion",
    "with_classes",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]
