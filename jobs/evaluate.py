"""Evaluate a model: threshold from val, then every metric on test, once, with intervals."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("evaluate")
