"""The bare network under ONNX Runtime, in the Python where it is installed beside effdet: no tinydet here."""

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from bench import inputs


def forward(*, path: str) -> Callable[[], object]:
    """effdet's network, exported: a picture's tensor to logits and deltas."""
    if not Path(path).exists():
        export(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: inputs.pictures(1).numpy()}
    return lambda: session.run(None, given)


def export(path: str) -> None:
    """Write effdet's network, of random weights, as ONNX."""
    import torch
    from effdet import create_model

    torch.manual_seed(0)
    model = create_model("tf_efficientdet_d0", pretrained=False, pretrained_backbone=False).eval()
    torch.onnx.export(model, (inputs.pictures(1),), path, dynamo=False, opset_version=17)
