"""A store: created once, opened again, written to by one process at a time."""

import json

import pytest
from lance_tables import append_groups, group_rows

from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas
from visao_ray.store.store import Store, create_or_open
from visao_ray.store.table import write_fragments

VECTORS = schemas.results({"avg": 2}, {"backbone": "tiny"})


@pytest.fixture
def store(place, description, owner) -> Store:
    with create_or_open(place, description, owner("first")) as writer:
        writer.ensure(writer.store.images, schemas.IMAGES)
    return Store.open(place)


def test_created_once(place, description, owner):
    assert Store.find(place) is None
    with pytest.raises(InputError, match="there is no store"):
        Store.open(place)
    with create_or_open(place, description, owner("a")) as writer:
        writer.ensure(writer.store.groups, schemas.GROUPS)
        assert writer.store.uri == place
    first = Store.open(place)
    assert dict(first.description.dataset) == find_dataset("vazios").to_json()
    assert first.description.created
    with create_or_open(place, description, owner("b")) as writer:
        assert writer.store.description == first.description
        assert list(writer.store.tables()) == ["groups"]


def test_another_dataset_is_refused(store, owner):
    other = find_dataset("chest_xray").to_json()
    description = type(store.description)(other, seed=0, val_share=0.1, test_share=0.1)
    with (
        pytest.raises(InputError, match="is for dataset vazios"),
        create_or_open(store.uri, description, owner("b")),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "cannot be read"), (b'{"format": "0"}', "has format 0")]
)
def test_an_invalid_store_json(tmp_path, content, message):
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Store.find(str(tmp_path))


def test_tables_by_name(store, owner):
    with store.writing(owner("b")) as writer:
        for extractor in ("one", "two"):
            writer.ensure(store.vectors(extractor), VECTORS)
        writer.ensure(store.vectors("one", "G1@0"), VECTORS)
        writer.ensure(store.predictions("model"), VECTORS)
    assert set(store.tables()) == {
        "images",
        "vectors/one/none",
        "vectors/one/G1@0",
        "vectors/two/none",
        "predictions/model",
    }
    assert {name: sorted(found) for name, found in store.extractors().items()} == {
        "one": ["G1@0", "none"],
        "two": ["none"],
    }
    assert store.models() == ["model"]
    assert store.the_extractor("two") == "two"
    with pytest.raises(InputError, match="has vectors of one, two; choose"):
        store.the_extractor(None)
    with pytest.raises(InputError, match=r"--extractor three: .* has one, two"):
        store.the_extractor("three")
    assert schemas.description(store.vectors("one").latest().schema) == {"backbone": "tiny"}
    assert schemas.outputs(store.vectors("one").latest().schema) == {"avg": 2}


def test_columns_about_the_picture_are_no_outputs():
    schema = schemas.results({"avg": 2}, {}, pictures=True)
    assert schemas.pictures(schema) == ["thumbnail", "sharpness"]
    assert schemas.outputs(schema) == {"avg": 2}
    assert schemas.pictures(VECTORS) == []


def test_copies_are_tables_beside_their_files(store, owner):
    with store.writing(owner("copies")) as writer:
        writer.ensure(store.copies("G1@0"), schemas.copies({"recipe": "G1"}))
    store.location.join("copies/G1@0/vazio/a.jpg").write_bytes(b"")
    assert list(store.tables()) == ["images", "copies/G1@0"]
    assert schemas.description(store.copies("G1@0").latest().schema) == {"recipe": "G1"}


def test_indexes_are_tables(store, owner):
    with store.writing(owner("index")) as writer:
        writer.ensure(store.index("tiny-avg"), schemas.index(3, {"columns": ["avg"]}))
    assert list(store.tables()) == ["images", "indexes/tiny-avg"]
    assert store.indexes() == ["tiny-avg"]
    assert schemas.outputs(store.index("tiny-avg").latest().schema) == {"vector": 3}


def test_no_vectors_yet(store):
    with pytest.raises(InputError, match=r"has no vectors yet; jobs/extract\.py"):
        store.the_extractor(None)


def test_one_writer_at_a_time(store, owner):
    said = r"pid \d+ \(job test, run first\) has held it since .*it expires \w+"
    with (
        store.writing(owner("first")),
        pytest.raises(InputError, match=said),
        store.writing(owner("second")),
    ):
        pytest.fail("two writers")
    with store.writing(owner("second")):
        pass


def test_a_writer_continues_from_its_own_versions(store, owner):
    with store.writing(owner("b")) as writer:
        groups = store.groups
        writer.ensure(groups, schemas.GROUPS)
        fragments = write_fragments(groups.uri, schemas.GROUPS, group_rows(["a", "b"]))
        writer.append(groups, fragments)
        assert writer.insert_new(groups, group_rows(["b", "c"])) == 1
        assert writer.merge(groups, group_rows(["c", "x"], "test")) == 1
        assert writer.version(groups) == groups.latest()
        writer.moved(groups, append_groups(writer.version(groups), ["d"]))
        assert writer.version(groups).count() == 4
        with pytest.raises(InputError, match="has the columns group, split, first_seen"):
            writer.ensure(groups, schemas.VERDICTS)


def test_a_table_of_another_format_is_refused(store):
    schemas.validate(schemas.IMAGES, "images", "here")
    with pytest.raises(InputError, match="a table 'groups' is needed, but this one is 'images'"):
        schemas.validate(schemas.IMAGES, "groups", "here")
    old = schemas.IMAGES.with_metadata(schemas.IMAGES.metadata | {b"visao_ray.format": b"0"})
    with pytest.raises(InputError, match="has format 0, this program reads 1"):
        schemas.validate(old, "images", "here")


def test_the_content_of_store_json(store):
    content = json.loads(locate(store.uri).join("store.json").read_bytes())
    assert content["format"] == schemas.FORMAT
    assert set(content) == {
        "dataset", "seed", "val_share", "test_share", "created", "format"
    }  # fmt: skip
