"""Synthetic datasets: X-ray scans that are rendered from a recipe, with known true labels.

The attenuation is summed along the rays. The Beer-Lambert law and a 16-bit detector turn it into
counts, and a tone curve turns these into 8-bit grey levels. Every picture is a function of (seed,
class, index).
"""
