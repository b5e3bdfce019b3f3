"""Write augmented copies of train images as JPEG files."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("augment", sys.argv[1:])
