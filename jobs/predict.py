"""Predict all images that are new to a model, and list those to check first."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("predict", sys.argv[1:])
