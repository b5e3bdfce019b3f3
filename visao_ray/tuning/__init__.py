"""Ray Tune on stored vectors: search space, trials, ranking and the sweep job."""
