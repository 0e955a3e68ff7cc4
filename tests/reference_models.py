"""effdet's reference models for the tests: weights generated from their names, and its outputs in our order."""

import zlib
from math import prod

import numpy as np
import torch


def rebuilt(keys, stats):
    """effdet's weights by its names, made from nothing but the names. See the README of the reference vectors."""
    weights = {}
    for key, shape in keys.items():
        n = zlib.crc32(key.encode())
        r = np.random.Generator(np.random.PCG64(n))
        if key.endswith("edge_weights"):
            value = r.uniform(0.2, 1.4, shape)
            value[0] = value[0] if n % 4 else -0.3
        elif key.endswith(("running_mean", "running_var")):
            value = stats[f"stat:{key}"]
        elif key.endswith(".bias"):
            value = r.standard_normal(shape) * 0.1
        elif len(shape) == 1:
            value = r.uniform(0.6, 1.4, shape)
        else:
            value = r.standard_normal(shape) / np.sqrt(prod(shape[1:]))
        weights[key] = torch.tensor(np.asarray(value, dtype=np.float32))
    return weights


def swap_xy(boxes):
    """Swap xyxy and the yxyx of TensorFlow models; tx, ty, tw, th and ty, tx, th, tw. float[... 4] -> the same."""
    return boxes[..., [1, 0, 3, 2]]


def levels_of(npz, prefix, last):
    """effdet's maps as our rows. -> float[B A last]."""
    maps = [torch.from_numpy(npz[f"{prefix}_p{level}"]) for level in range(3, 8)]
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, last) for x in maps], 1)


def off(value, reference):
    """The largest difference as a share of the largest value."""
    value, reference = torch.as_tensor(value), torch.as_tensor(reference)
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max()).item()
