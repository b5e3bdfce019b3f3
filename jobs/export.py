"""Write a table of a store as Parquet files for DuckDB, Spark or pandas."""

import sys

from visao_ray.jobs.command_line import script

if __name__ == "__main__":
    script("export", sys.argv[1:])
