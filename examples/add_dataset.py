"""A new dataset with its own name: photographs of three cloths.

    python jobs/pipeline.py --dataset cloths --plugin examples/add_dataset.py \
      --data s3://bucket/cloths --out out/cloths

Each class has a folder of images. A file cloths.toml with the same fields does the same without
Python: `--dataset cloths.toml`.
"""

from visao_ray.datasets.registry import register
from visao_ray.datasets.spec import Dataset

register(
    Dataset(
        name="cloths",
        classes=("canvas", "denim", "silk"),
        positive="silk",  # the class that must not be missed
        group_pattern=r"bolt\d+",  # bolt07-2.png and bolt07-3.png show the same bolt
    )
)
