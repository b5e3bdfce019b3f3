"""Checks of the images and labels of a store: what to mend before a model is trusted."""
