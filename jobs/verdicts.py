"""Write people's decisions on images to a store: keep, relabel, drop, unsure."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("verdicts", sys.argv[1:])
