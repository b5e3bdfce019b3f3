"""Show, verify, compact and clean up a store."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("store", sys.argv[1:])
