"""Look after a store: what is in it, whether it is sound, and clean-up."""

import sys

from visao_ray.runs import run_command
from visao_ray.settings import StoreToolSettings
from visao_ray.store.operate import operate_store

if __name__ == "__main__":
    sys.exit(run_command(StoreToolSettings, operate_store))
