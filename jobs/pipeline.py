"""Extract, sweep, evaluate and report: from a folder of images to an evaluated classifier."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("pipeline", sys.argv[1:])
