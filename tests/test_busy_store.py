"""Reads from an object store that refuses many requests, also small reads that pyarrow gives up."""

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from s3_proxy import Faults, proxy
from s3_server import free_ports

from visao_ray.core import storage, tables
from visao_ray.core.storage import locate

READS = 30


@pytest.fixture
def faults(s3, tmp_path, monkeypatch) -> Faults:
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield found


def test_a_few_bytes(s3, faults):
    place = locate(f"{s3.uri}/busy/few")
    place.write_bytes(b"few")
    with faults.met(slow_down=0.4):
        assert [place.read_bytes() for _ in range(READS)] == [b"few"] * READS
    assert faults.count()["slow_down"] >= READS / 2


def test_a_short_column(s3, faults):
    place = locate(f"{s3.uri}/busy/table")
    schema = tables.predictions(["nvazio", "vazio"])
    rows = [{"key": f"{n}", "label": "vazio", "split": "val"} for n in range(9)]
    for part in range(9):
        table = pa.Table.from_pylist(rows[part : part + 1], schema=schema)
        tables.write(place.join(str(part)), table, schema)
    opened = tables.open_table(place, "predictions")
    val = pads.field("split") == "val"
    with faults.met(slow_down=0.4):
        # The reason for these retries: pyarrow's own reads of the same column fail.
        with pytest.raises(OSError, match="Failed to flush response stream"):
            [opened.dataset.to_table(columns=["label"]) for _ in range(READS)]
        for _ in range(READS // 9):
            assert opened.to_table(columns=["label"])["label"].to_pylist() == ["vazio"] * 9
            assert opened.count_rows(filter=val) == 9
            assert opened.head(1, columns=["label"]).num_rows == 1
            keys = [
                key.as_py() for batch in opened.to_batches(["key"], val) for key in batch["key"]
            ]
            assert keys == [f"{n}" for n in range(9)]


@pytest.mark.parametrize(
    ("message", "attempts"), [("Failed to flush response stream", 3), ("Path does not exist", 1)]
)
def test_the_number_of_attempts_is_limited(monkeypatch, message, attempts):
    monkeypatch.setattr(storage, "_ATTEMPTS", 3)
    tried = []

    def read() -> bytes:
        tried.append(1)
        raise OSError(f"AWS Error INTERNAL_FAILURE during GetObject operation: {message}")

    with pytest.raises(OSError, match=message):
        storage.with_retries(read)
    assert len(tried) == attempts
