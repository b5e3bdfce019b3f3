"""Images through an engine: the one graph behind extraction, prediction and the check of images."""
