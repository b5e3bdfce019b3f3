"""List a dataset against a store: what is new, changed or gone. Reads no image."""

from visao_ray.features.manifest import make_manifest
from visao_ray.runs import main
from visao_ray.settings import ManifestSettings

if __name__ == "__main__":
    main(ManifestSettings, make_manifest)
