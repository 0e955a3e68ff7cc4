"""Detections to scores, in numpy and float64."""
