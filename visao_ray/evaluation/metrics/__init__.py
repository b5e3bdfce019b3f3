"""The registry of metrics; each metric has its own file."""

from visao_ray.core.registry import Registry
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.metrics.accuracy import ACCURACY
from visao_ray.evaluation.metrics.average_precision import AVERAGE_PRECISION
from visao_ray.evaluation.metrics.balanced_accuracy import BALANCED_ACCURACY
from visao_ray.evaluation.metrics.f2 import F2
from visao_ray.evaluation.metrics.log_loss import LOG_LOSS
from visao_ray.evaluation.metrics.macro_f1 import MACRO_F1
from visao_ray.evaluation.metrics.recall_at_precision import RECALL_AT_PRECISION
from visao_ray.evaluation.metrics.roc_auc import ROC_AUC
from visao_ray.evaluation.metrics.top5 import TOP5

#: In the order of columns and lines of reports.
METRICS: Registry[Metric] = Registry(
    "metric",
    (
        ROC_AUC,
        AVERAGE_PRECISION,
        MACRO_F1,
        BALANCED_ACCURACY,
        ACCURACY,
        TOP5,
        LOG_LOSS,
        F2,
        RECALL_AT_PRECISION,
    ),
)

#: Add a metric; a plugin calls this when it is imported.
register = METRICS.register
