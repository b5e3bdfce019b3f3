"""Submit a job to a Ray cluster, stream its logs, and exit with its status."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("submit", sys.argv[1:])
