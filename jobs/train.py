"""Fit a model of any family on any number of workers; val chooses the epoch."""

from visao_ray.models.settings import TrainSettings
from visao_ray.runs import main
from visao_ray.training.train import train_model

if __name__ == "__main__":
    main(TrainSettings, train_model)
