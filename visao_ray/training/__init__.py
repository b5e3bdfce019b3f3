"""Training with Ray Train: the same model on any number of workers, from pixels or vectors."""
