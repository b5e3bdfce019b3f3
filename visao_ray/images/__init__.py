"""Image bytes to pixels (`decode`) and pixels to pixels (`augment`)."""
