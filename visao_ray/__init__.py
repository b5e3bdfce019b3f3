"""X-ray images on Ray: pixels are read once, everything afterwards reads feature vectors."""

__version__ = "0.1.0"
