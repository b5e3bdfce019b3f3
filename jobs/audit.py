"""Check a store before a model is trusted: leaks, duplicates, conflicts, outliers, shifts."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("audit", sys.argv[1:])
