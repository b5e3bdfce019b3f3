"""What a sweep prints of a trial whose process was lost, by the result of the trial."""

from types import SimpleNamespace

import pytest

from visao_ray.core.storage import locate
from visao_ray.models.head import HeadSettings
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.progress import Progress
from visao_ray.tuning.trial_results import TrialResult, TrialResults

HEAD = HeadSettings().model_dump(mode="json")
OK = TrialResult(0, "a", HEAD, "ok", "epochs", epoch=2, epochs=3, seconds=1.5, objective=0.75)
GIVEN_UP = TrialResult(0, "a", HEAD, "error", error="its process was lost 3 times")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "0/4 trial 0: begins anew; {lost}"),
        (OK, "1/4 trial 0: roc_auc 0.7500 at epoch 2 of 3 (1.5 s); {lost}; best so far 0.7500"),
        (GIVEN_UP, "1/4 trial 0: failed: its process was lost 3 times (0.0 s); {lost}"),
    ],
)
def test_a_lost_process(tmp_path, capsys, result, text):
    trial_results = TrialResults(locate(f"{tmp_path}/trials"))
    if result is not None:
        trial_results.write(result)
    (tmp_path / "error.txt").write_text("Traceback:\n  node gone\n\n")
    trial = SimpleNamespace(
        config={"number": 0, "head": HEAD}, error_file=f"{tmp_path}/error.txt", last_result={}
    )
    progress = Progress("[sweep] ", Criterion("roc_auc", 1), 4, trial_results, {})
    progress.on_trial_error(0, [], trial)
    text = text.format(lost="its process was lost: node gone")
    assert capsys.readouterr().out == f"[sweep] {text}\n"
