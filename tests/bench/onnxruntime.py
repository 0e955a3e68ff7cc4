"""The bare network under ONNX Runtime, in the Python where it is installed beside effdet: no tinydet here."""

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from effdet import create_model

from tests.bench import inputs


def forward(*, path: str) -> Callable[[], object]:
    """effdet's network of random weights, exported: an image's tensor to logits and deltas."""
    if not Path(path).exists():
        torch.manual_seed(0)
        model = create_model("tf_efficientdet_d0", pretrained=False, pretrained_backbone=False).eval()
        torch.onnx.export(model, (inputs.images(1),), path, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: inputs.images(1).numpy()}
    return lambda: session.run(None, given)
