"""Quantisation: an exported detector whose network computes in 8 bits; letterbox and boxes stay in float."""

import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.open import open_dataset
from tinydet.errors import InputError
from tinydet.evaluation import evaluate, evaluate_detector
from tinydet.export import export_model
from tinydet.files import PathLike, write_file
from tinydet.onnx_graph import drop_unread, read_constants
from tinydet.weights.formats import Weights
from tinydet.weights.onnx_file import ONNX, load_onnx

INT8 = f".int8{ONNX}"  # suffix of the files
QUANTISED = ("Conv", "Clip", "Add", "MaxPool", "Resize", "Transpose", "Reshape", "Concat")

WHY_LITE = (
    "int8 is for the Lite detectors: the range of 8 bits is their activation, relu6; "
    "swish and squeeze-excite would be steps of their own, each of which rounds"
)
CALIBRATION = 64  # images; with 16 or 200, and with three draws, AP was within .5 of the float file's


class Quantised(NamedTuple):
    """What 8 bits cost: the primary metric on the validation split, in percent."""

    metric: str
    before: float
    after: float


def export_int8(weights: Weights, out: PathLike, data: PathLike, **settings: Any) -> Quantised:
    """Export a Lite detector that computes in 8 bits, calibrated on training images, and evaluate it.

    The settings are those of `export_model`.

    Raises:
        InputError: the detector is not a Lite one, or leaves out scores that AP counts; or as the data are read.
    """
    if weights.config.activation != "relu6":
        raise InputError(f"{weights.source}: {WHY_LITE}")
    if (least := settings.get("score_threshold", 0.01)) > 0.01:
        raise InputError(f"int8: AP counts scores from 0.01 on, and {least:g} would leave out those below it")
    check_installed(out)
    train = open_dataset(data, "train", classes=weights.config.classes)
    before = evaluate(*evaluate_detector(data, [weights], split="val", batch_size=8))
    rows = np.linspace(0, len(train) - 1, min(CALIBRATION, len(train)), dtype=int)
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        export_model(weights, plain, format="onnx", **settings)
        quantize_onnx(plain, out, (train[row].image for row in rows))
    after = evaluate(*evaluate_detector(data, [load_onnx(out)], split="val", batch_size=8))
    return Quantised(before.metric, before.ap, after.ap)


def check_installed(out: PathLike) -> None:
    """Raise InputError where what quantises is not installed."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        raise InputError(f"{out}: int8 needs {' and '.join(missing)}; pip install 'tinydet[onnx]'")


def quantize_onnx(path: PathLike, out: PathLike, images: Iterable[np.ndarray]) -> None:
    """Quantise the network of an exported detector to 8 bits, calibrated on at least one image, uint8[H W 3], RGB.

    Weights become int8, scaled by the largest of each output channel; activations uint8, by the least and the largest
    value that the images give. All else, and what the file says of itself, stays as it is.

    Raises:
        InputError: the network has another activation than relu6, or onnxruntime is not installed.
    """
    check_installed(out)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    try:
        model = onnx.load(path)
    except Exception as error:  # of protobuf's kinds
        raise InputError(f"{path}: not a readable ONNX file ({error})") from error
    graph, network = model.graph, [node for node in model.graph.node if _is_network(node)]
    kinds = {node.op_type for node in network}
    if "Clip" not in kinds or "Sigmoid" in kinds:
        raise InputError(f"{path}: {WHY_LITE}")
    start_from_pixels(graph, next(node for node in network if node.op_type == "Conv"))
    drop_unread(graph)
    feeds = ({graph.input[0].name: image[None]} for image in images)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to run optimisations that export has run
    try:
        with TemporaryDirectory() as folder:
            quantize_static(
                model,
                made := Path(folder) / "int8.onnx",
                SimpleNamespace(get_next=lambda: next(feeds, None)),
                op_types_to_quantize=list(QUANTISED),
                nodes_to_quantize=[node.name for node in network],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            write_file(out, made.read_bytes())
    finally:
        logging.disable(disabled)


def _is_network(node: Any) -> bool:
    """Tell whether a node is of the network: torch.onnx writes the modules that it comes from beside each."""
    return any(one.key == "namespace" and "/network:" in one.value for one in node.metadata_props)


def start_from_pixels(graph: Any, stem: Any) -> None:
    """Give the first convolution the bytes of pixels, where a scale and a zero point in 0 .. 255 are normalisation."""
    from onnx import helper, numpy_helper

    constants, made = read_constants(graph), {node.output[0]: node for node in graph.node}

    def operands(node: Any) -> tuple[np.ndarray, str]:
        constant, other = sorted(node.input, key=lambda name: name not in constants)
        return constants[constant], other

    shift, product = operands(made[stem.input[0]])
    scale, pixels = operands(made[product])
    zero = np.round(-shift / scale)
    if np.ptp(scale) or np.ptp(zero) or np.abs(zero * scale + shift).max() > 1e-6 or not 0 <= zero.flat[0] <= 255:
        return
    values = {"pixels_scale": np.float32(1), "pixels_zero": np.uint8(0)}
    values |= {"normalised_scale": np.float32(scale.flat[0]), "normalised_zero": np.uint8(zero.flat[0])}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    one, none, *settings = values
    at = list(graph.node).index(made[stem.input[0]])
    graph.node.remove(made[stem.input[0]])
    graph.node.insert(at, helper.make_node("QuantizeLinear", [pixels, one, none], ["pixels"]))
    graph.node.insert(at + 1, helper.make_node("DequantizeLinear", ["pixels", *settings], [stem.input[0]]))
