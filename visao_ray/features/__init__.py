"""Extraction of feature vectors from images, and selection of labelled vectors."""
