"""Render synthetic scans: X-ray images that look real, with the truth written beside them."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("render")
