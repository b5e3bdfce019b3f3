"""Render synthetic X-ray scans with known labels."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("render", sys.argv[1:])
