"""Write a table of a store as Parquet files for DuckDB, Spark or pandas."""

from visao_ray.runs import main
from visao_ray.settings import ExportSettings
from visao_ray.store.export import export_table

if __name__ == "__main__":
    main(ExportSettings, export_table)
