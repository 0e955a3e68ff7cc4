"""EfficientDet as a handful of pure functions, and thin modules that hold the weights.

Names are imported when they are first used: `import tinydet` and `tinydet --help` load nothing that they do not need.
The functions of the paper are in `tinydet.ops`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinydet.convert import convert_data as convert_data
    from tinydet.data.coco import CocoDataset as CocoDataset
    from tinydet.data.dataset import DetectionDataset as DetectionDataset
    from tinydet.data.images import Example as Example
    from tinydet.data.kitti import KittiDataset as KittiDataset
    from tinydet.data.loader import train_batches as train_batches
    from tinydet.data.loader import val_batches as val_batches
    from tinydet.data.open import open_dataset as open_dataset
    from tinydet.data.voc import VocDataset as VocDataset
    from tinydet.data.yolo import YoloDataset as YoloDataset
    from tinydet.detector import Detector as Detector
    from tinydet.detector import load as load
    from tinydet.errors import InputError as InputError
    from tinydet.evaluation import evaluate as evaluate
    from tinydet.evaluation import validate as validate
    from tinydet.labels import BACKGROUND as BACKGROUND
    from tinydet.labels import IGNORE as IGNORE
    from tinydet.model.backbone import EfficientNetBackbone as EfficientNetBackbone
    from tinydet.model.backbone import early_stages as early_stages
    from tinydet.model.bifpn import BiFPN as BiFPN
    from tinydet.model.bifpn import BiFPNLayer as BiFPNLayer
    from tinydet.model.config import ModelConfig as ModelConfig
    from tinydet.model.config import model_config as model_config
    from tinydet.model.efficientdet import EfficientDet as EfficientDet
    from tinydet.model.functional import apply as apply
    from tinydet.model.functional import params_and_buffers as params_and_buffers
    from tinydet.model.functional import value_and_grad as value_and_grad
    from tinydet.model.heads import BoxNet as BoxNet
    from tinydet.model.heads import ClassNet as ClassNet
    from tinydet.model.layers import SeparableConvBlock as SeparableConvBlock
    from tinydet.model.postprocess import Detections as Detections
    from tinydet.model.postprocess import detect as detect
    from tinydet.model.postprocess import model_anchors as model_anchors
    from tinydet.model.postprocess import normalize as normalize
    from tinydet.prediction import Prediction as Prediction
    from tinydet.training.loop import train as train
    from tinydet.training.optim import adamw as adamw
    from tinydet.training.optim import sgd as sgd
    from tinydet.training.schedule import cosine as cosine
    from tinydet.training.settings import TrainSettings as TrainSettings
    from tinydet.training.state import State as State
    from tinydet.training.state import init as init
    from tinydet.training.state import save as save
    from tinydet.training.step import train_step as train_step

__version__ = "0.1.0"

_MODULES = {
    "convert": "convert_data",
    "data.coco": "CocoDataset",
    "data.dataset": "DetectionDataset",
    "data.images": "Example",
    "data.kitti": "KittiDataset",
    "data.loader": "train_batches val_batches",
    "data.open": "open_dataset",
    "data.voc": "VocDataset",
    "data.yolo": "YoloDataset",
    "detector": "Detector load",
    "errors": "InputError",
    "evaluation": "evaluate validate",
    "labels": "BACKGROUND IGNORE",
    "model.backbone": "EfficientNetBackbone early_stages",
    "model.bifpn": "BiFPN BiFPNLayer",
    "model.config": "ModelConfig model_config",
    "model.efficientdet": "EfficientDet",
    "model.functional": "apply params_and_buffers value_and_grad",
    "model.heads": "BoxNet ClassNet",
    "model.layers": "SeparableConvBlock",
    "model.postprocess": "Detections detect model_anchors normalize",
    "prediction": "Prediction",
    "training.loop": "train",
    "training.optim": "adamw sgd",
    "training.schedule": "cosine",
    "training.settings": "TrainSettings",
    "training.state": "State init save",
    "training.step": "train_step",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tinydet' has no attribute {name!r}")
    return getattr(import_module(f"tinydet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
