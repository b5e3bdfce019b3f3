"""Predict every image that a model has not seen yet, and show what people should check first."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("predict")
