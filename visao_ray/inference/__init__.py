"""The graph that sends images through an engine, for extraction, prediction and image checks."""
