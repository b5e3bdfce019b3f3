"""Find labels that are probably wrong, and make a page to decide on them."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("clean", sys.argv[1:])
