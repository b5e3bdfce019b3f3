"""The HTML report: draws tables and figures that others computed, and computes no metric."""
