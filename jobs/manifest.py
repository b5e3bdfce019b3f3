"""List a dataset: one row an image, with its label, size, sha256, group and split."""

from visao_ray.bases.manifest import make_manifest
from visao_ray.runs import main
from visao_ray.settings import ManifestSettings

if __name__ == "__main__":
    main(ManifestSettings, make_manifest)
