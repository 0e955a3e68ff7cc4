"""Passes over the graph of an ONNX file, in place, which leave its results as they were."""

from typing import Any

import numpy as np


def trim_kernels(graph: Any) -> None:
    """Cut zeros off the top left of kernels, where they stand for padding on one side: a graph pads each by itself."""
    from onnx import numpy_helper

    constants = read_constants(graph)
    for node in graph.node:
        if node.op_type != "Conv" or (weight := constants.get(node.input[1])) is None:
            continue
        attributes = {one.name: one.ints for one in node.attribute}
        while min(attributes["pads"][:2]) > 0 and not (weight[:, :, 0].any() or weight[:, :, :, 0].any()):
            weight = weight[:, :, 1:, 1:]
            attributes["pads"][0] -= 1
            attributes["pads"][1] -= 1
        if weight.shape != constants[node.input[1]].shape:
            attributes["kernel_shape"][:] = weight.shape[2:]
            node.input[1] += "_trimmed"
            graph.initializer.append(numpy_helper.from_array(weight.copy(), node.input[1]))


def pad_in_pooling(graph: Any) -> None:
    """Let max-pooling pad by itself: -inf, which it is padded with otherwise, has no 8 bits."""
    constants, made = read_constants(graph), {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "MaxPool" and (pad := made[node.input[0]]).op_type == "Pad":
            pads = next(one.ints for one in node.attribute if one.name == "pads")
            pads[:] = np.add(pads, constants[pad.input[1]].reshape(2, 4)[:, 2:].flatten()).tolist()
            node.input[0] = pad.input[0]


def drop_unread(graph: Any) -> None:
    """Remove the nodes and constants that nothing reads."""
    read = {one.name for one in graph.output}
    for node in reversed(list(graph.node)):
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def read_constants(graph: Any) -> dict[str, np.ndarray]:
    """Read the constants of a graph by name."""
    from onnx import numpy_helper

    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}
