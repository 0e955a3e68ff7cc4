"""Train effdet's Lite0 on what `tinydet convert --to coco` wrote, and write its detections of val. No tinydet here.

A plain recipe: whole images in batches of 8, AdamW, flips, scale jitter, colour, averaged weights. --minutes are those
of the steps alone.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from effdet import DetBenchPredict, DetBenchTrain, create_model
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

LR, DECAY, BATCH, WARMUP, EMA, GREY = 1e-3, 0.01, 8, 60, 0.998, 127


def main() -> None:
    parser = argparse.ArgumentParser()
    options: dict[str, Any] = {"data": Path, "weights": Path, "out": Path}
    options |= {"--size": lambda text: tuple(map(int, text.split("x"))), "--seed": int, "--minutes": float}
    for name, kind in {**options, "--steps": int}.items():
        parser.add_argument(name, type=kind)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    categories = [one["id"] for one in json.loads((args.data / "train.json").read_text())["categories"]]
    shape = {"num_classes": len(categories), "image_size": args.size}
    model = create_model("tf_efficientdet_lite0", pretrained=False, pretrained_backbone=False, **shape)
    tensors, head = torch.load(args.weights, weights_only=True), ("_conv_head", "_bn1", "_fc")
    tensors = [x for name, x in tensors.items() if not name.startswith(head)]  # in timm's order, by other names
    model.backbone.load_state_dict(dict(zip(model.backbone.state_dict(), tensors, strict=True)))
    train_set = Images(args.data, "train", args.size, seed=args.seed)
    steps, average = train(model.to(memory_format=torch.channels_last), train_set, args.minutes, args.steps)
    model.load_state_dict(average)
    args.out.write_text(json.dumps([*detect(model, Images(args.data, "val", args.size), categories)]))
    print(json.dumps({"steps": steps}))


class Images(Dataset[Any]):
    """Images letterboxed into the input, and their boxes (y1 x1 y2 x2) and classes from 1; changed where seeded."""

    def __init__(self, data: Path, split: str, size: tuple[int, int], *, seed: int | None = None) -> None:
        content = json.loads((data / f"{split}.json").read_text())
        classes = {one["id"]: n for n, one in enumerate(content["categories"], start=1)}
        self.images, self.size = [(one["id"], data / one["file_name"]) for one in content["images"]], size
        self.objects: dict[int, list[list[float]]] = {number: [] for number, _ in self.images}
        for one in content["annotations"]:
            if not one["iscrowd"]:
                x, y, w, h = one["bbox"]
                self.objects[one["image_id"]].append([x, y, x + w, y + h, classes[one["category_id"]]])
        change: list[Any] = [A.HorizontalFlip(p=0.5), A.RandomScale((-0.3, 0.5), p=0.8)]
        change += [A.PadIfNeeded(*size, position="top_left", fill=GREY), A.RandomCrop(*size)]
        change += [A.RandomBrightnessContrast(p=0.5), A.HueSaturationValue(10, 20, 10, p=0.3)]
        how: dict[str, Any] = {"min_visibility": 0.3, "clip": True, "filter_invalid_bboxes": True}
        boxes = A.BboxParams("pascal_voc", label_fields=["classes"], **how)
        self.change = A.Compose(change[2:4] if seed is None else change, bbox_params=boxes, seed=seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        number, path = self.images[row]
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        scale = min(self.size[1] / image.width, self.size[0] / image.height)
        pixels = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        objects = np.array(self.objects[number], np.float32).reshape(-1, 5)
        changed = self.change(image=np.asarray(pixels), bboxes=objects[:, :4] * scale, classes=objects[:, 4])
        x = torch.from_numpy(np.ascontiguousarray(changed["image"])).permute(2, 0, 1).float()
        boxes = torch.from_numpy(np.array(changed["bboxes"], np.float32).reshape(-1, 4))[:, [1, 0, 3, 2]]
        return (x - 127) / 128, boxes, torch.tensor(np.array(changed["classes"], np.float32)), image.size, scale


def collate(examples: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Make a batch; boxes and classes are filled up with -1."""
    images, *columns, _, _ = zip(*examples, strict=True)
    boxes, classes = (torch.nn.utils.rnn.pad_sequence([*some], True, -1.0) for some in columns)
    return torch.stack(images).contiguous(memory_format=torch.channels_last), {"bbox": boxes, "cls": classes}


def train(model: Any, images: Images, minutes: float | None, most: int | None) -> tuple[int, dict[str, torch.Tensor]]:
    """Train for so many minutes or steps; return the steps and the averaged weights."""
    bench, parameters = DetBenchTrain(model, create_labeler=True).train(), list(model.parameters())
    kernels, others = ([p for p in parameters if (p.ndim > 1) == is_kernel] for is_kernel in (True, False))
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    how: dict[str, Any] = {"num_workers": 1, "persistent_workers": True, "drop_last": True, "collate_fn": collate}
    loader = DataLoader(images, min(BATCH, len(images)), shuffle=True, **how)
    average, start, step = {name: x.clone() for name, x in model.state_dict().items()}, time.monotonic(), 0
    while True:
        for pixels, targets in loader:
            done = step / most if most else (time.monotonic() - start) / (60 * minutes) if minutes else 1.0
            if done >= 1:
                return step, average
            warmup = min(1.0, max((step + 1) / WARMUP, 10 * done))
            for group in optimizer.param_groups:
                group["lr"] = LR * warmup * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            bench(pixels, targets)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            step += 1
            for name, x in model.state_dict().items():
                decay = min(EMA, step / (9 + step)) if x.is_floating_point() else 0.0
                average[name] = x.clone() if not decay else average[name].lerp(x, 1 - decay)


@torch.inference_mode()
def detect(model: Any, images: Images, categories: list[int]) -> Iterator[dict[str, Any]]:
    """Detect objects, and give them as COCO results."""
    bench = DetBenchPredict(model).eval()
    for row, (number, _) in enumerate(images.images):
        x, _, _, (width, height), scale = images[row]
        for *sides, score, label in bench(x[None])[0].tolist():
            x1, y1, x2, y2 = (min(max(0, s / scale), end) for s, end in zip(sides, 2 * (width, height), strict=True))
            result = {"image_id": number, "category_id": categories[int(label) - 1], "score": score}
            yield {**result, "bbox": [x1, y1, x2 - x1, y2 - y1]}


if __name__ == "__main__":
    main()
