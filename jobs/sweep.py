"""Search the head's hyperparameters and class weights on a store's vectors; val chooses."""

from visao_ray.runs import main
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.several import sweep_all

if __name__ == "__main__":
    main(SweepSettings, sweep_all)
