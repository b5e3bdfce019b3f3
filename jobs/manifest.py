"""List a dataset against a store: what is new, changed or gone. Reads no image."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("manifest")
