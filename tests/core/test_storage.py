"""Locations: the same calls on a local disk and in a real S3 bucket."""

import os
import pickle

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, locate, require_folder

NAMES = ("plain.txt", "a b.txt", "acentuação é.txt", "100%.txt", "n#1.txt", "a+b?.txt", "d/e/f.txt")


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, s3) -> Location:
    return locate(str(tmp_path) if request.param == "local" else f"{s3.uri}/{tmp_path.name}")


def test_files_by_any_name(root):
    folder = root.join("folder")
    for name in NAMES:
        folder.join(name).write_bytes(name.encode())
    assert {file.uri for file in folder.files()} == {folder.join(name).uri for name in NAMES}
    for name in NAMES:
        assert locate(folder.join(name).uri).read_bytes() == name.encode()
    kinds = {entry.name: entry.is_folder for entry in folder.children()}
    assert [name for name in kinds if kinds[name]] == ["d"]
    files = [name for name in kinds if not kinds[name]]
    assert files == sorted(NAMES[:-1])


def test_presence(root):
    assert not root.join("no").exists()
    assert root.join("no").children() == []
    assert list(root.join("no").files()) == []
    root.join("no").delete()
    with pytest.raises(OSError, match="no"):
        root.join("no").read_bytes()
    file = root.join("x", "y")
    file.write_bytes(b"1")
    file.write_bytes(b"22")
    assert file.read_bytes() == b"22"
    assert file.exists()
    assert not file.is_folder()
    assert root.join("x").is_folder()
    root.join("x").delete()
    assert not file.exists()
    assert not root.join("x").exists()


def test_move(root):
    for name in ("a/1", "a/b/2", "one"):
        root.join(name).write_bytes(name.encode())
    root.join("a").move(root.join("previous", "now", "a"))
    root.join("one").move(root.join("previous", "now", "one"))
    assert not root.join("a").exists()
    assert not root.join("one").exists()
    for name in ("a/1", "a/b/2", "one"):
        assert root.join("previous/now", name).read_bytes() == name.encode()


def test_a_location_travels_to_another_process(root):
    root.join("x").write_bytes(b"1")
    there = pickle.loads(pickle.dumps(root.join("x")))
    assert there.read_bytes() == b"1"
    assert there.uri == root.join("x").uri


def test_what_is_no_folder(root):
    root.join("full", "x").write_bytes(b"1")
    require_folder(root.join("full"), "--data")
    with pytest.raises(InputError, match=r"--data .*/none: does not exist"):
        require_folder(root.join("none"), "--data")
    with pytest.raises(InputError, match="is a file, not a folder"):
        require_folder(root.join("full", "x"), "--data")


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(InputError, match="s3://no-such-bucket"):
        require_folder(locate("s3://no-such-bucket/x"), "--data")


def test_a_local_write_is_all_or_nothing(tmp_path, monkeypatch):
    file = locate(f"{tmp_path}/new/x")
    file.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        file.write_bytes(b"half")
    assert file.read_bytes() == b"old"


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a/../b c", f"file://{tmp_path}/b%20c", "~/b c", f"{tmp_path}/b c/"):
        assert locate(uri).path == f"{tmp_path}/b c", uri
        assert locate(uri).is_local


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty path"),
        ("gs://bucket/x", "gs://"),
        ("http://host/x", "http://"),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
        ("s3://key:hush@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_places(uri, says):
    with pytest.raises(InputError) as caught:
        locate(uri)
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)
