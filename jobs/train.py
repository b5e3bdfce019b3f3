"""Train a model of any family on any number of workers; val chooses the epoch."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("train", sys.argv[1:])
