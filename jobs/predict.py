"""Predict every image that a model has not seen yet, and show what should be looked at first."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("predict")
