"""Classifiers: Keras models as pure functions of their settings, and the files they are kept in."""
