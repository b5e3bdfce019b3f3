"""Judge a model: threshold from val, then every metric on test, once, with intervals."""

from visao_ray.evaluation.judge import evaluate_model
from visao_ray.runs import main
from visao_ray.settings import EvaluateSettings

if __name__ == "__main__":
    main(EvaluateSettings, evaluate_model)
