"""Tables: schemas that name themselves, and refuse what they are not."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visao_ray import tables
from visao_ray.errors import InputError
from visao_ray.storage import locate

ABOUT = {"backbone": "tiny", "image_size": 32}


def features(count: int, width: int = 3) -> pa.Table:
    rows = [
        {"key": f"{number}", "view": 0, "label": "vazio", "split": "val", "group": "g"}
        | {"content_id": "c", "avg": [number] * width, "max": [0.5] * width}
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=tables.features(width, ABOUT))


def test_written_and_read_again(tmp_path):
    place = locate(str(tmp_path / "features"))
    schema = tables.features(3, ABOUT)
    tables.write(place.join("one"), features(5), schema)
    tables.write(place.join("two"), features(2), schema)
    (tmp_path / "features" / "notes.txt").write_text("not a part of the table")
    opened = tables.open_table(place, "features")
    assert opened.schema.equals(schema)
    assert opened.schema.metadata == schema.metadata
    assert tables.about(opened.schema) == ABOUT
    assert opened.to_table() == pa.concat_tables([features(5), features(2)])
    assert tables.rows(place) == 7
    keys = [key for batch in tables.batches(place, "features", ["key"]) for key in batch["key"]]
    assert len(keys) == 7
    tables.write(place.join("one"), features(1), schema)
    assert tables.rows(place) == 3


def test_rows_of_nothing(tmp_path):
    assert tables.rows(locate(str(tmp_path / "none"))) == 0
    tables.write(locate(str(tmp_path)), features(0), tables.features(3, ABOUT))
    assert tables.rows(locate(str(tmp_path))) == 0
    assert tables.open_table(locate(str(tmp_path)), "features").count_rows() == 0


def test_wrong_tables_are_refused(tmp_path):
    place = locate(str(tmp_path / "t"))
    with pytest.raises(InputError, match=r"t: no features table there"):
        tables.open_table(place, "features")
    tables.write(place, features(2), tables.features(3, ABOUT))
    with pytest.raises(InputError, match="'manifest' is needed, but this one is 'features'"):
        tables.open_table(place, "manifest")
    old = {**tables.features(3, ABOUT).metadata, b"visao_ray.version": b"0"}
    tables.write(place, features(2), tables.features(3, ABOUT).with_metadata(old))
    with pytest.raises(InputError, match="version 0"):
        tables.open_table(place, "features")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "part-0.parquet")
    with pytest.raises(InputError, match="none of visao_ray's"):
        tables.open_table(place, "features")


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"part-0\.parquet"):
        tables.open_table(locate(str(tmp_path)), "features")


def test_a_table_keeps_to_its_schema(tmp_path):
    with pytest.raises((KeyError, pa.ArrowInvalid)):
        tables.write(locate(str(tmp_path)), features(1).drop_columns(["avg"]), features(1).schema)
    with pytest.raises((TypeError, ValueError)):
        tables.write(locate(str(tmp_path)), features(1, width=4), features(1).schema)
    assert tables.rows(locate(str(tmp_path))) == 0


def test_predictions_tell_their_classes():
    schema = tables.predictions(("nvazio", "vazio"))
    assert tables.about(schema) == {"classes": ["nvazio", "vazio"]}
    assert schema.field("probability").type == pa.list_(pa.float32(), 2)
    tables.validate(schema, "predictions", "here")
