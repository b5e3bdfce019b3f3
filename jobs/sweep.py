"""Search a head's hyperparameters and class weights on a store's vectors; val chooses."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("sweep", sys.argv[1:])
