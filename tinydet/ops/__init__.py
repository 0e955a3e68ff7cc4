"""The paper's functions, tensors in, tensors out: `from tinydet.ops import iou, nms, encode`.

`anchors`, `assign` and `nms` are also modules: all are loaded here, before the names become those of the functions.
"""

from tinydet.ops.anchors import anchors, feature_sizes, max_anchor_iou
from tinydet.ops.assign import Targets, assign, assign_batch
from tinydet.ops.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    decode,
    delta_giou,
    encode,
    intersection,
    iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from tinydet.ops.losses import Losses, detection_loss, focal_loss, focal_loss_sum, huber_loss, quality_focal_loss
from tinydet.ops.nms import box_voting, fixed_shape_nms, nms, soft_nms, weighted_boxes_fusion

__all__ = ["anchors", "feature_sizes", "max_anchor_iou"]
__all__ += ["Targets", "assign", "assign_batch"]
__all__ += ["area", "clip", "decode", "delta_giou", "encode", "intersection", "iou"]
__all__ += ["cxcywh_to_xyxy", "xywh_to_xyxy", "xyxy_to_cxcywh", "xyxy_to_xywh"]
__all__ += ["Losses", "detection_loss", "focal_loss", "focal_loss_sum", "huber_loss", "quality_focal_loss"]
__all__ += ["box_voting", "fixed_shape_nms", "nms", "soft_nms", "weighted_boxes_fusion"]
