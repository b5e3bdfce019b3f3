"""List a dataset against a store: new, changed and missing images. Reads no image."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("manifest", sys.argv[1:])
