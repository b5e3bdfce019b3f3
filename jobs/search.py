"""Search for similar images in a store, and measure how good the search is."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("search", sys.argv[1:])
