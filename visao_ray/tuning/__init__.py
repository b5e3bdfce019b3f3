"""Ray Tune over cached features: search space, data, trainable, trials and the sweep itself."""
