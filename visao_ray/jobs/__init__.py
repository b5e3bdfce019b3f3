"""The jobs: what `visao-ray VERB`, `python jobs/VERB.py` and `visao_ray.VERB(…)` run."""
