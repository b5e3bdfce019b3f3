"""The library calls no deprecated interface: a pipeline run with all warnings enabled."""

import re

from job_runs import ROOT

WARNING = re.compile(r"(\S+?):\d+: \w*(?:Deprecat|Future)\w*Warning: (.*)")
#: Interfaces of Ray, Keras and others that the jobs use; warnings about these are caused by us.
CALLED = re.compile(
    r"map_batches|map_groups|read_parquet|from_items|repartition|write_datasink|write_parquet"
    r"|iter_batches|ActorPoolStrategy|concurrency|CheckpointConfig|ParquetDatasink|resources"
    r"|Tuner|TuneConfig|RunConfig|FailureConfig|tune\.report|train\.report|PopulationBased|ASHA"
    r"|load_model|predict_on_batch|save\(|S3FileSystem|utcnow|get_current"
)


def test_no_deprecated_interface_is_called(s3_pipeline):
    assert s3_pipeline.process.returncode == 0, s3_pipeline.process.stderr[-3000:]
    texts = [s3_pipeline.process.stderr]
    logs = [path for path in s3_pipeline.logs.rglob("*") if path.suffix in (".err", ".out", ".log")]
    texts += [path.read_text(errors="replace") for path in logs if path.is_file()]
    found = {match.groups() for text in texts for match in WARNING.finditer(text)}
    # Ray itself causes some warnings, so they are enabled in the driver and in its workers.
    assert any("site-packages" in place for place, _ in found)
    here = (f"{ROOT}/visao_ray", f"{ROOT}/jobs", "jobs/")
    ours = [
        (place, message)
        for place, message in sorted(found)
        if place.startswith(here) or CALLED.search(message)
    ]
    assert not ours
