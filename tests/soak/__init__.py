"""Runs at a length that no test has time for: what grows shows."""
