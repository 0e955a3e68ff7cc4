"""Every command that writes, on tiny inputs, to be run with a full disk, a read-only one, or a limit of file sizes."""

from pathlib import Path

import torch

from tests.kitti_folders import write_kitti
from tests.test_runs import write_run
from tests.test_video import write_clip
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint

CLASSES = ("Car", "Pedestrian")
FRAMES = [f"{i:06d}" for i in range(5)]
SMALL = ["--classes", ",".join(CLASSES), "--model", "lite0", "--size", "64x128"]


def write_inputs(folder: Path) -> None:
    """Write what the commands of `full_disk_cases` read: data, a clip, weights and two runs."""
    write_kitti(folder / "kitti", len(FRAMES), lists={"train": FRAMES[:3], "val": FRAMES[3:]})
    write_clip(folder / "clip.mp4")
    torch.manual_seed(0)
    config = model_config("lite0", classes=CLASSES, image_size=(64, 128))
    params, buffers = params_and_buffers(EfficientDet(config))
    save_checkpoint(folder / "best.pt", Checkpoint(config, params, buffers, params, buffers, {}))
    for name in ("a", "b"):
        write_run(folder / "runs" / name)


def full_disk_cases() -> list[tuple[str, list[str]]]:
    """List the name and the arguments of each command, for the folder of `write_inputs`; what they write is in out/."""
    predict = ["--weights", "best.pt", "--score", "0.01", "--device", "cpu"]
    train = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    cases = {
        "predict": ["predict", "kitti/training/image_2", *predict, "--out", "out/images"],
        "predict-video": ["predict", "clip.mp4", *predict, "--out", "out/clip"],
        "evaluate": ["evaluate", "kitti", "--weights", "best.pt", "--device", "cpu", "--report", "out/report.html"],
        "check": ["check", "kitti", *SMALL, "--html", "out/check.html"],
        "compare": ["compare", "runs/a", "runs/b", "--plot", "out/curves.png"],
        "strip": ["strip", "best.pt", "--out", "out/small.pt"],
        "strip-safetensors": ["strip", "best.pt", "--format", "safetensors", "--out", "out/hub/small.safetensors"],
        "export": ["export", "best.pt", "--format", "torch", "--out", "out/model.pt2"],
        "export-onnx": ["export", "best.pt", "--out", "out/model.onnx"],
        "train": ["train", "kitti", *SMALL, *train, "--out", "out/run"],
    }
    formats = ("coco", "yolo", "kitti", "voc")
    cases |= {f"convert-{to}": ["convert", "kitti", *SMALL[:2], "--to", to, "--out", f"out/{to}"] for to in formats}
    return [*cases.items()]
