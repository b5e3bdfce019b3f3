"""Engines compute results from pixels; one file per engine."""
