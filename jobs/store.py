"""Look after a store: what is in it, whether it is sound, and clean-up."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("store")
