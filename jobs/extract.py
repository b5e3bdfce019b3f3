"""Run every image of a dataset once through a network and keep its feature vectors."""

from visao_ray.features.pipeline import extract_features
from visao_ray.runs import main
from visao_ray.settings import ExtractSettings

if __name__ == "__main__":
    main(ExtractSettings, extract_features)
