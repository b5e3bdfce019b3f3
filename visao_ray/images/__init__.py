"""Decode image bytes to pixels (`decode`), and augment pixels (`augment`)."""
