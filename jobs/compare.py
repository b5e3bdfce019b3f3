"""Compare models on the same images: metrics with intervals, paired tests, disagreements."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("compare", sys.argv[1:])
