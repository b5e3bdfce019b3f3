"""Submit a job to a Ray cluster, show its lines, and exit as it does."""

from visao_ray.submission import main

if __name__ == "__main__":
    main()
