"""Extract feature vectors of the new images of a dataset and add them to the store."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("extract", sys.argv[1:])
