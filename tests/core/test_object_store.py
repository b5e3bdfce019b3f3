"""Listings with ETags on a local disk and a real S3 server; options for Lance."""

import os

import lance
import obstore
import pyarrow as pa
import pytest
from s3_server import ACCESS_KEY, SECRET

from visao_ray.core.errors import InputError
from visao_ray.core.object_store import list_files, open_bucket, storage_options
from visao_ray.core.storage import Location, locate

NAMES = ("plain.txt", "a b.txt", "acentuação é.txt", "100%.txt", "n#1.txt", "a+b?.txt", "d/e/f.txt")


@pytest.fixture
def bucket(s3, tmp_path) -> Location:
    return locate(f"{s3.uri}/{tmp_path.name}")


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> Location:
    if request.param == "local":
        return locate(str(tmp_path / "data"))
    return request.getfixturevalue("bucket")


def test_files_by_any_name(root):
    for name in NAMES:
        root.join(name).write_bytes(name.encode())
    found = {listed.path: listed for listed in list_files(root)}
    assert found.keys() == set(NAMES)
    for name in NAMES:
        assert found[name].bytes == len(name.encode())
        assert found[name].etag.strip('"') == found[name].etag != ""
    assert list(list_files(root.join("no"))) == []


def test_an_etag_follows_the_bytes(root):
    root.join("a").write_bytes(b"one")
    root.join("b").write_bytes(b"one")
    first = {listed.path: listed.etag for listed in list_files(root)}
    root.join("a").write_bytes(b"two")
    second = {listed.path: listed.etag for listed in list_files(root)}
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_the_same_files_as_a_walk(root):
    for name in ("x/1", "x/.hidden/2", "x/__MACOSX/3", "x/skip/4", "x/.5", "6", "empty"):
        root.join(name).write_bytes(b"" if name == "empty" else b"data")
    root.filesystem.create_dir(root.join("x", "nothing in it").path)
    for ignore in ((), ("skip",)):
        found = [listed.path for listed in list_files(root, ignore)]
        assert sorted(found) == sorted(root.walk(ignore))
    assert {"empty", "x/.5"} < set(found)


def test_links(tmp_path):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "inner" / "file").write_bytes(b"data")
    os.symlink(tmp_path / "data", tmp_path / "data" / "inner" / "back")
    os.symlink(tmp_path / "nowhere", tmp_path / "data" / "dangling")
    found = {listed.path: listed for listed in list_files(locate(str(tmp_path / "data")))}
    assert found.keys() == {"inner/file", "dangling"}
    assert found["dangling"][1:] == (0, "")


def test_more_than_a_page(bucket):
    store, key = open_bucket(bucket)
    names = [f"{number:05d}" for number in range(1203)]
    for name in names:
        obstore.put(store, f"{key}/{name}", b"x")
    assert [listed.path for listed in list_files(bucket)] == names


def test_a_whole_bucket(s3):
    locate(s3.uri).join("of-the-whole-bucket").write_bytes(b"x")
    assert "of-the-whole-bucket" in {listed.path for listed in list_files(locate(s3.uri))}


def test_buckets_and_keys_that_cannot_be_listed(s3, bucket):
    with pytest.raises(InputError, match="no such bucket"):
        list(list_files(locate("s3://no-such-bucket/data")))
    bucket.join("tab\tin its name").write_bytes(b"x")
    with pytest.raises(InputError, match=r"tab.*rename"):
        list(list_files(bucket))


def test_lance_finds_the_store(bucket):
    table = pa.table({"key": ["a", "b"]})
    uri = bucket.join("t.lance").uri
    lance.write_dataset(table, uri, storage_options=storage_options())
    assert lance.dataset(uri, storage_options=storage_options()).to_table() == table


def test_storage_options(monkeypatch, s3_port):
    assert storage_options() == {
        "access_key_id": ACCESS_KEY,
        "secret_access_key": SECRET,
        "endpoint": f"http://127.0.0.1:{s3_port}",
        "region": "us-east-1",
        "allow_http": "true",
    }
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ENDPOINT_URL", "REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    assert storage_options() == {}
    monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token")
    assert storage_options() == {"region": "sa-east-1", "session_token": "a token"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio.example:9000")
    assert storage_options()["endpoint"] == "https://minio.example:9000"
    assert storage_options()["allow_http"] == "false"


def test_credentials_of_a_profile(bucket, tmp_path, monkeypatch):
    bucket.join("file").write_bytes(b"x")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no credentials"):
        list(list_files(bucket))
    file = tmp_path / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert [listed.path for listed in list_files(bucket)] == ["file"]
