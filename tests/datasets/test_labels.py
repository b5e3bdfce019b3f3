"""Labels files in CSV and Parquet, local and on S3."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.datasets.labels import SCHEMA, check_labels, read_labels
from visao_ray.datasets.ncm import NCM
from visao_ray.datasets.spec import Dataset
from visao_ray.datasets.vazios import VAZIOS

ROOT = locate("s3://bucket/scans")


def rows(uri, dataset=VAZIOS, root=ROOT):
    batches = list(read_labels(str(uri), dataset, root))
    assert all(batch.schema == SCHEMA for batch in batches)
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def test_csv(tmp_path):
    file = tmp_path / "labels.csv"
    text = (
        "\ufefflabel,key,split,group\r\n"
        "vazio,a/1.jpg,train,007\r\n"
        ',"b, c.jpg",,\r\n'
        '"nvazio",s3://other/x.jpg,"",MSCU1234567\r\n'
        "vazio,./a/2.jpg,test,7\r\n"
    )
    expected = [
        ("s3://bucket/scans/a/1.jpg", "vazio", "007", "train"),
        ("s3://bucket/scans/b, c.jpg", None, None, None),
        ("s3://other/x.jpg", "nvazio", "MSCU1234567", None),
        ("s3://bucket/scans/a/2.jpg", "vazio", "7", "test"),
    ]
    file.write_text(text)
    assert rows(file) == expected
    assert check_labels(str(file), VAZIOS, ROOT) == 4
    packed = tmp_path / "labels.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert rows(packed) == expected


def test_keys_of_a_local_folder(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text(f"key\n1.jpg\n{tmp_path}/elsewhere/2.jpg\nfile://{tmp_path}/a%20b.jpg\n")
    found = [key for key, *rest in rows(file, root=locate(f"{tmp_path}/in/")) if rest == [None] * 3]
    expected = [f"{tmp_path}/in/1.jpg", f"{tmp_path}/elsewhere/2.jpg", f"{tmp_path}/a b.jpg"]
    assert found == expected


def test_parquet(tmp_path):
    file = tmp_path / "labels.parquet"
    columns = {
        "group": pa.array([7, None, 8]),
        "key": pa.array(["1.jpg", "2.jpg", "3.jpg"], pa.large_string()),
        "label": pa.array(["0101", "8703", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), file)
    assert rows(file, NCM) == [
        ("s3://bucket/scans/1.jpg", "0101", "7", None),
        ("s3://bucket/scans/2.jpg", "8703", None, None),
        ("s3://bucket/scans/3.jpg", None, "8", None),
    ]


def test_files_on_s3(s3):
    file = locate(f"{s3.uri}/labels/day.csv")
    file.write_bytes(b"key,label\n1.jpg,vazio\n")
    assert rows(file.uri, root=locate(f"{s3.uri}/scans")) == [
        (f"{s3.uri}/scans/1.jpg", "vazio", None, None)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": ["1.jpg"], "split": ["val"]}), sink)
    file = locate(f"{s3.uri}/labels/day.parquet")
    file.write_bytes(sink.getvalue().to_pybytes())
    assert rows(file.uri)[0][3] == "val"
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        rows(f"{s3.uri}/labels/none.csv")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_many_rows_stream_in_order(tmp_path, kind):
    count = 100_000
    keys = [f"{number * 7919 % count:06d}.jpg" for number in range(count)]
    table = pa.table({"key": keys, "label": ["vazio", "nvazio"] * (count // 2)})
    file = tmp_path / f"labels.{kind}"
    if kind == "csv":
        lines = (f"{key},{label}" for key, label in zip(*table.to_pydict().values(), strict=True))
        file.write_text("key,label\n" + "\n".join(lines) + "\n")
    else:
        pq.write_table(table, file)
    sizes, found = [], []
    for batch in read_labels(str(file), VAZIOS, ROOT):
        sizes.append(batch.num_rows)
        found += batch["key"].to_pylist()
    assert max(sizes) <= 8192
    assert len(sizes) > 10
    assert found == [f"{ROOT.uri}/{key}" for key in keys]
    assert check_labels(str(file), VAZIOS, ROOT) == count


def test_an_error_far_down_reports_its_line(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("key,label\n" + "x.jpg,vazio\n" * 90_000 + "y.jpg,full\n")
    with pytest.raises(InputError, match=r"labels\.csv: line 90002: column 'label', value 'full'"):
        rows(file)
    file.write_text("key,label\n" + "x.jpg,vazio\n" * 90_000 + "y.jpg\n")
    with pytest.raises(InputError, match=r"labels\.csv: cannot be read: .*#90002"):
        rows(file)


OPEN = Dataset(name="cargo", class_pattern="[a-z]+")


@pytest.mark.parametrize(
    ("text", "dataset", "expected"),
    [
        (
            "key;label\n1;vazio\n",
            VAZIOS,
            ("column 'key;label'", "key, label, group, split", "commas"),
        ),
        ("key,class\n1,vazio\n", VAZIOS, ("column 'class'", "key, label, group, split")),
        ("label\nvazio\n", VAZIOS, ("'key' is missing",)),
        ("key,label,key\n1,vazio,1\n", VAZIOS, ("'key'", "twice")),
        ("", VAZIOS, ("cannot be read", "Empty")),
        ("key,label\n1,vazio\n,vazio\n", VAZIOS, ("line 3", "'key' is empty")),
        (
            "key,label\n1,vazio\n2,Vazio\n",
            VAZIOS,
            ("line 3", "'label'", "'Vazio'", "nvazio, vazio"),
        ),
        ("key,label\n1,abc\n2,A\n", OPEN, ("line 3", "'label'", "'A'", "match [a-z]+")),
        (
            "key,split\n1,train\n2,validation\n",
            VAZIOS,
            ("line 3", "'validation'", "train, val, test"),
        ),
        ("key,label\n1,vazio,x\n", VAZIOS, ("cannot be read", "Expected 2 columns, got 3")),
        ("key,label\n\xff,vazio\n", VAZIOS, ("cannot be read", "UTF8")),
    ],
)
def test_wrong_files(tmp_path, text, dataset, expected):
    file = tmp_path / "labels.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        rows(file, dataset)
    message = str(caught.value)
    assert message.startswith(f"--labels {file}: ")
    assert "\n" not in message
    assert all(words in message for words in expected), message


def test_other_wrong_files(tmp_path):
    for name in ("labels.xlsx", "labels"):
        with pytest.raises(InputError, match=r"\.csv or a \.parquet"):
            rows(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        rows(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("key\n1\n")
    with pytest.raises(InputError, match="cannot be read"):
        rows(tmp_path / "text.parquet")
    pq.write_table(pa.table({"key": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match="'key' holds int64; write it as text"):
        rows(tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"key": ["1"], "group": [1.5]}), tmp_path / "floats.parquet")
    with pytest.raises(InputError, match="'group' holds double"):
        rows(tmp_path / "floats.parquet")
    pq.write_table(pa.table({"key": ["1", "2"], "split": ["val", "v"]}), tmp_path / "row.parquet")
    with pytest.raises(InputError, match="row 2: column 'split', value 'v'"):
        rows(tmp_path / "row.parquet")


def test_an_image_that_appears_twice(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("key\n1.jpg\n2.jpg\ns3://bucket/scans/1.jpg\n")
    assert len(rows(file)) == 3
    with pytest.raises(InputError, match=r"key 's3://bucket/scans/1.jpg' appears more than once"):
        check_labels(str(file), VAZIOS, ROOT)
