"""Tensors in, tensors out: boxes, anchors, assignment, losses, fusion, suppression."""
