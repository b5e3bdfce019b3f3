"""Tables of runs: their schemas hold name and version, and other tables are refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate

SCHEMA = tables.embeddings(3)


def embeddings(count: int, width: int = 3) -> pa.Table:
    rows = [
        {"key": f"{number}", "label": "vazio", "split": "val", "group": "g"}
        | {"content_id": "c", "embedding": [number] * width, "model": "m"}
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=tables.embeddings(width))


def test_written_and_read_again(tmp_path):
    place = locate(str(tmp_path / "embeddings"))
    tables.write(place.join("one"), embeddings(5), SCHEMA)
    tables.write(place.join("two"), embeddings(2), SCHEMA)
    (tmp_path / "embeddings" / "notes.txt").write_text("not a part of the table")
    opened = tables.open_table(place, "embeddings")
    assert opened.schema.equals(SCHEMA)
    assert opened.schema.metadata == SCHEMA.metadata
    assert opened.to_table() == pa.concat_tables([embeddings(5), embeddings(2)])
    assert tables.rows(place) == 7
    keys = [key for batch in opened.to_batches(["key"]) for key in batch["key"]]
    assert len(keys) == 7
    tables.write(place.join("one"), embeddings(1), SCHEMA)
    assert tables.rows(place) == 3


def test_rows_of_nothing(tmp_path):
    assert tables.rows(locate(str(tmp_path / "none"))) == 0
    tables.write(locate(str(tmp_path)), embeddings(0), SCHEMA)
    assert tables.rows(locate(str(tmp_path))) == 0
    assert tables.open_table(locate(str(tmp_path)), "embeddings").count_rows() == 0


def test_wrong_tables_are_refused(tmp_path):
    place = locate(str(tmp_path / "t"))
    with pytest.raises(InputError, match=r"t: no embeddings table there"):
        tables.open_table(place, "embeddings")
    tables.write(place, embeddings(2), SCHEMA)
    with pytest.raises(InputError, match="'predictions' is needed, but this one is 'embeddings'"):
        tables.open_table(place, "predictions")
    old = {**SCHEMA.metadata, b"visao_ray.version": b"0"}
    tables.write(place, embeddings(2), SCHEMA.with_metadata(old))
    with pytest.raises(InputError, match="version 0"):
        tables.open_table(place, "embeddings")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "part-0.parquet")
    with pytest.raises(InputError, match="none of visao_ray's"):
        tables.open_table(place, "embeddings")


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"part-0\.parquet"):
        tables.open_table(locate(str(tmp_path)), "embeddings")


def test_a_table_keeps_to_its_schema(tmp_path):
    with pytest.raises((KeyError, pa.ArrowInvalid)):
        tables.write(
            locate(str(tmp_path)), embeddings(1).drop_columns(["model"]), embeddings(1).schema
        )
    with pytest.raises((TypeError, ValueError)):
        tables.write(locate(str(tmp_path)), embeddings(1, width=4), embeddings(1).schema)
    assert tables.rows(locate(str(tmp_path))) == 0


def test_predictions_have_their_classes_in_the_schema():
    schema = tables.predictions(("nvazio", "vazio"))
    assert json.loads(schema.metadata[b"visao_ray.metadata"]) == {"classes": ["nvazio", "vazio"]}
    assert schema.field("probability").type == pa.list_(pa.float32(), 2)
    tables.validate(schema, "predictions", "here")
