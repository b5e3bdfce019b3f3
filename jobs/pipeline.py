"""From a bucket of images to an evaluated classifier: extract, sweep, evaluate, report."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("pipeline")
