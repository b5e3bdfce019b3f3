"""Run what is new in a dataset once through a network and keep its vectors in the store."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("extract")
