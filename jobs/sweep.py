"""Search the head's hyperparameters and class weights on a store's vectors; val chooses."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("sweep")
