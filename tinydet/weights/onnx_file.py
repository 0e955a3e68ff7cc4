"""An exported detector as a file that ONNX Runtime runs, with what its metadata say of it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.model.config import ModelConfig
from tinydet.reading import check_field

ONNX = ".onnx"
FORMAT = "tinydet-onnx-1"


class OnnxFile(NamedTuple):
    """A detector from images to objects in one file, and the session of ONNX Runtime that runs it."""

    config: ModelConfig
    session: Any  # onnxruntime.InferenceSession: images uint8[B H W 3] -> boxes, scores, labels
    suppression: dict[str, Any]  # what the file was exported with: settings of `detect_padded`
    labels: tuple[int, ...]  # the file's label of each class of the config
    checksum: str  # of the file's bytes
    source: str  # for people

    def digest(self) -> str:
        """Compute a digest of the file and the classes: that of a copy, by whatever name, is the same."""
        return f"{self.checksum} of {self.config}"


def make_metadata(config: ModelConfig, suppression: dict[str, Any]) -> dict[str, str]:
    """Make the metadata of a file: its format, and config and suppression as JSON."""
    return {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(config)),
        "suppression": json.dumps(suppression),
    }


def load_onnx(path: PathLike, *, device: torch.device | str = "cpu") -> OnnxFile:
    """Load an exported file into ONNX Runtime, with as many threads as PyTorch has.

    Raises:
        InputError: onnxruntime is not installed, or not for this device; or it is no file that `tinydet export` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path}: running it needs onnxruntime ({error}); pip install 'tinydet[onnx]'") from error
    chosen, providers = torch.device(device), list[Any](["CPUExecutionProvider"])
    if chosen.type != "cpu":
        if (gpu := f"{chosen.type.upper()}ExecutionProvider") not in onnxruntime.get_available_providers():
            other = "install onnxruntime-gpu in place of onnxruntime, or " if chosen.type == "cuda" else ""
            raise InputError(f"{path}: onnxruntime does not run on {chosen.type} here; {other}use --device cpu")
        providers.insert(0, (gpu, {"device_id": chosen.index or 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # of its own kinds
        raise InputError(f"{path}: ONNX Runtime cannot read it ({str(error).splitlines()[0]})") from error
    if chosen.type != "cpu" and session.get_providers()[0] != gpu:
        raise InputError(f"{path}: ONNX Runtime cannot start on {device}, as it says above; use --device cpu")
    known = session.get_modelmeta().custom_metadata_map
    try:
        if known.get("format") != FORMAT:
            raise ValueError(f"its metadata name the format {known.get('format')!r}, not {FORMAT!r}")
        config, suppression = ModelConfig(**json.loads(known["config"])), json.loads(known["suppression"])
        if (inputs := [one.name for one in session.get_inputs()]) != ["images"]:
            raise ValueError(f"its inputs are {', '.join(inputs)}, not images")
        check_field(suppression, {"method": str, "score_threshold": float, "max_detections": int}, where="suppression")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a file of tinydet export ({error}); export it again") from error
    labels, checksum = tuple(range(len(config.classes))), hashlib.sha256(path.read_bytes()).hexdigest()
    source = f"{path.name} ({config.name} in ONNX Runtime)"
    return OnnxFile(config, session, suppression, labels, checksum, source)
