"""Evaluate a model: choose the threshold on val, compute every metric on test, with intervals."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("evaluate", sys.argv[1:])
