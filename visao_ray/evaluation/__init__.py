"""Metrics with intervals, operating thresholds, and the curves that reports draw."""
