"""What computes numbers from pixels; one file an engine."""
