"""From pixels to feature vectors, once."""
