"""Submit a job to a Ray cluster, show its lines, and exit as it does."""

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("submit")
