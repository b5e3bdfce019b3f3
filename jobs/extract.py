"""Run what is new in a dataset once through a network and keep its vectors in the store."""

from visao_ray.features.extract import extract_images
from visao_ray.runs import main
from visao_ray.settings import ExtractSettings

if __name__ == "__main__":
    main(ExtractSettings, extract_images)
