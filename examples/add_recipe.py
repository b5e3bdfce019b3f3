"""A new augmentation recipe: small shifts, without mirroring.

    python jobs/extract.py --plugin examples/add_recipe.py --augment small_shifts --views 2 \
      --dataset chest_xray --data s3://bucket/films --store s3://bucket/store

A mirrored chest film shows the heart on the wrong side, so a doctor may want views without it. Only
images of train are augmented; a sweep uses the views with `--recipe small_shifts@0`, the name of
the recipe and the seed of the extraction.
"""

from visao_ray.images.recipes import Recipe, register

register(Recipe("small_shifts", width_shift=0.03, height_shift=0.03, brightness=(0.95, 1.05)))
