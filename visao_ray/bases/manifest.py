"""From a folder or bucket of images to the manifest: one row an image, checked and split.

The driver lists class folders only; files are listed, read and hashed in Ray tasks, and stream from
one to the next. Interrupted, the job goes on with the files not yet hashed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads

from visao_ray import tables
from visao_ray.checkpoint import checkpointed
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.datasets.splits import UnionFind, assign_split
from visao_ray.errors import InputError
from visao_ray.images.decode import DecodeError, read_header
from visao_ray.resources import look
from visao_ray.runs import Run, start_ray
from visao_ray.settings import ManifestSettings
from visao_ray.storage import Location, is_outage, locate, passed_over, reason, require_folder

_READERS = 16  # files read at once in one task: object storage answers slowly but in parallel
_LISTED_AT_ONCE = 4096
_BLOCK = 256  # files hashed and committed together
_ROWS_A_PARTITION = 50_000

_LISTING = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("folder", pa.string()),  # split folder it lies in, or "" where splits are carved
        ("stray", pa.bool_()),  # lies outside every class folder
    ]
)

_INSPECTED = pa.schema(
    [field for field in tables.MANIFEST if field.name not in ("dataset", "split")]
    + [field for field in tables.ERRORS if field.name not in ("key", "uri")]
    + [_LISTING.field("folder")]
)


@dataclass(frozen=True)
class Layout:
    """How a dataset lies in storage: its class folders, stray files and the splits it has."""

    classes: tuple[str, ...]
    folders: tuple[tuple[str, str, str], ...]  # (key prefix, label, split folder or "")
    strays: tuple[str, ...]  # keys of files outside class folders
    splits: frozenset[str]  # split folders found

    def shares(self, val: float, test: float) -> tuple[float, float]:
        """The shares still to be carved: 0 for a split that has its own folder."""
        return (0.0 if "val" in self.splits else val, 0.0 if "test" in self.splits else test)


def find_layout(data: Location, dataset: Dataset, ignore: list[str]) -> Layout:
    """Look at the top folders of a dataset.

    Raises:
        InputError: nothing there, or the folders do not fit the dataset.
    """
    require_folder(data, "--data")

    def folders_and_files(location: Location) -> tuple[list[str], list[str]]:
        folders, files = [], []
        for name, is_folder in location.children():
            if not is_folder:
                files.append(name)
            elif not passed_over(name, ignore):
                folders.append(name)
        return folders, files

    top, files = folders_and_files(data)
    strays = list(files)
    splits = [name for name in top if name in tables.SPLITS]
    if not splits:
        classes = dataset.check_classes(top, data.uri)
        rows = [(name, name, "") for name in top]
        return Layout(classes, tuple(rows), tuple(strays), frozenset())
    other = [name for name in top if name not in tables.SPLITS]
    if other:
        raise InputError(
            f"{data.uri}: folder '{other[0]}' beside {', '.join(splits)}; move it away or pass "
            f"--ignore '{other[0]}'"
        )
    if "train" not in splits:
        raise InputError(f"{data.uri}: has {', '.join(splits)} but no train folder")
    rows = []
    for split in splits:
        labels, files = folders_and_files(data.join(split))
        rows += [(f"{split}/{label}", label, split) for label in labels]
        strays += [f"{split}/{name}" for name in files]
    classes = dataset.check_classes(sorted({label for _, label, _ in rows}), data.uri)
    # A lone train folder is a bare dataset: all three splits are carved from it.
    return Layout(classes, tuple(rows), tuple(strays), frozenset(splits))


def make_manifest(settings: ManifestSettings, run: Run[Any]) -> None:
    """The manifest job: list, hash, tie, split, write `manifest` and `errors`.

    Raises:
        InputError: as `list_dataset`; no such dataset.
    """
    list_dataset(find_dataset(settings.dataset), settings, run)


def list_dataset(dataset: Dataset, settings: ManifestSettings, run: Run[Any]) -> None:
    """What `make_manifest` does, of a dataset at hand.

    Raises:
        InputError: nothing to list, folders that do not fit the dataset, no readable image, or more
            unreadable ones than `max_errors` allows (after writing them).
    """
    import ray

    data = locate(settings.data)
    layout = find_layout(data, dataset, settings.ignore)
    given = _read_groups(settings.groups)
    start_ray()
    work = run.work
    listing, inspected = work.join("listing"), work.join("inspected")

    def list_files() -> None:
        quota = math.ceil(settings.limit / len(layout.folders)) if settings.limit else None
        folders = [
            {"prefix": prefix, "label": label, "folder": folder}
            for prefix, label, folder in layout.folders
        ]
        ray.data.from_items(folders, override_num_blocks=min(len(folders), 64)).map_batches(
            _list_folders,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"data": settings.data, "ignore": settings.ignore, "quota": quota},
        ).write_parquet(listing.path, filesystem=listing.filesystem)
        if layout.strays and not settings.limit:
            rows = [_listed(data, key, "", "", stray=True) for key in layout.strays]
            table = pa.Table.from_pylist(rows, schema=_LISTING)
            tables.write(listing.join("strays"), table, _LISTING)

    def inspect() -> None:
        committed = work.join("committed")
        with checkpointed(committed, "key"), run.progress(committed, _BLOCK, images):
            ray.data.read_parquet(
                listing.path, filesystem=listing.filesystem, **look().reader
            ).repartition(target_num_rows_per_block=_BLOCK).map_batches(
                _inspect, batch_size=None, batch_format="pyarrow", fn_kwargs={"dataset": dataset}
            ).write_parquet(inspected.path, filesystem=inspected.filesystem)

    def split() -> None:
        from visao_ray.sink import TablesSink

        if given:
            _check_groups(inspected, given, run)
        ties = _tied_groups(inspected, given, images)
        ray.data.read_parquet(inspected.path, filesystem=inspected.filesystem).map_batches(
            _assign,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={
                "dataset": dataset.name,
                "seed": settings.seed,
                "shares": layout.shares(settings.val_share, settings.test_share),
                "given": given,
                "ties": ties,
            },
        ).write_datasink(
            TablesSink(run.out, {"manifest": tables.MANIFEST, "errors": tables.ERRORS})
        )

    run.say(f"listing {len(layout.folders)} class folders of {data.uri}")
    run.once("list", list_files, listing)
    images = tables.rows(listing)
    if images == 0:
        raise InputError(f"--data {data.uri}: no images in its class folders")
    run.say(f"reading {images:,} files for their size and sha256")
    run.once("inspect", inspect)
    run.once("split", split, run.out.join("manifest"), run.out.join("errors"))
    summarise(run, run.out.join("manifest"))
    run.inputs |= {"data": data.uri, "classes": list(layout.classes)}
    if run.counts["images"] != images:
        raise RuntimeError(f"{images} files listed, {run.counts['images']} in the manifest")
    for split, labels in run.counts["by_split"].items():
        absent = [label for label in layout.classes if label not in labels]
        if absent and (dataset.classes or not labels):
            run.warn(
                f"no {split} image of {', '.join(absent[:5])}: a head can't be chosen or judged"
            )
    if layout.splits - {"train"}:
        _warn_of_leaks(run)
    check_errors(run, settings.max_errors)


def summarise(run: Run[Any], manifest: Location) -> None:
    """Count a manifest into `run.counts`: images, ok, errors, and ok by split and label."""
    by_status: Counter[str] = Counter()
    by_split: dict[str, Counter[str]] = {split: Counter() for split in tables.SPLITS}
    for batch in tables.batches(manifest, "manifest", ["status", "split", "label"]):
        counted = pa.table(batch).group_by(["status", "split", "label"])
        for row in counted.aggregate([([], "count_all")]).to_pylist():
            by_status[row["status"]] += row["count_all"]
            if row["status"] == "ok":
                by_split[row["split"]][row["label"]] += row["count_all"]
    run.counts |= {
        "images": by_status.total(),
        "ok": by_status["ok"],
        "errors": by_status["error"],
        "by_split": {split: dict(sorted(labels.items())) for split, labels in by_split.items()},
    }
    told = ", ".join(f"{split} {labels.total():,}" for split, labels in by_split.items())
    run.say(
        f"{run.counts['images']:,} images = {run.counts['ok']:,} ok + "
        f"{run.counts['errors']:,} errors; {told}"
    )


def check_errors(run: Run[Any], limit: float) -> None:
    """Stop when too many images were unreadable; the errors table is written by then.

    Raises:
        InputError: the share of errors is above `limit`, or no image is readable at all.
    """
    errors, images = run.counts["errors"], run.counts["images"]
    where = run.out.join("errors").uri
    if run.counts["ok"] == 0:
        raise InputError(f"none of the {images:,} files is a readable image; reasons in {where}")
    if errors > limit * images:
        raise InputError(
            f"{errors:,} of {images:,} images ({errors / images:.1%}) could not be read, more than "
            f"--max-errors {limit:g} allows; reasons in {where}"
        )


def _listed(data: Location, key: str, label: str, folder: str, stray: bool) -> dict[str, Any]:
    uri = data.join(key).uri
    return {"key": key, "uri": uri, "label": label, "folder": folder, "stray": stray}


def _list_folders(
    batch: pa.Table, data: str, ignore: list[str], quota: int | None
) -> Iterator[pa.Table]:
    root = locate(data)
    for row in batch.to_pylist():
        tails = sorted(root.join(row["prefix"]).walk(ignore))[:quota]
        keys = [f"{row['prefix']}/{tail}" for tail in tails]
        for start in range(0, len(keys), _LISTED_AT_ONCE):
            rows = [
                _listed(root, key, row["label"], row["folder"], stray=False)
                for key in keys[start : start + _LISTED_AT_ONCE]
            ]
            yield pa.Table.from_pylist(rows, schema=_LISTING)
        if not keys:
            yield _LISTING.empty_table()


def _inspect(block: pa.Table, dataset: Dataset) -> pa.Table:
    with ThreadPoolExecutor(_READERS) as pool:
        rows = list(pool.map(lambda row: _inspect_one(row, dataset), block.to_pylist()))
    return pa.Table.from_pylist(rows, schema=_INSPECTED)


def _inspect_one(row: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {
        "key": row["key"],
        "uri": row["uri"],
        "label": row["label"],
        "folder": row["folder"],
        "group": dataset.group_of(row["key"]),
        "status": "error",
    }

    def failed(stage: str, error_type: str, message: str) -> dict[str, Any]:
        told = {"stage": stage, "error_type": error_type, "message": message}
        return {**found, **told, "error": f"{stage}: {error_type}: {message}"}

    if row["stray"]:
        return failed("list", "no_class", "lies outside every class folder")
    try:
        data = locate(row["uri"]).read_bytes()
    except OSError as error:
        if is_outage(error):
            raise  # Ray Data tries again, and stops the job at last: it says nothing of the image
        return failed("download", type(error).__name__, reason(error))
    found |= {"content_id": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    try:
        header = read_header(data)
    except DecodeError as error:
        return failed("decode", error.error_type, reason(error))
    return {
        **found,
        "width": header.width,
        "height": header.height,
        "mode": header.mode,
        "status": "ok",
    }


def _read_groups(uri: str | None) -> dict[str, str]:
    """Groups by key from a CSV with the columns key and group."""
    if uri is None:
        return {}
    # As text: 007 and 7 are two containers.
    text = pacsv.ConvertOptions(column_types={"key": pa.string(), "group": pa.string()})
    try:
        table = pacsv.read_csv(pa.BufferReader(locate(uri).read_bytes()), convert_options=text)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"--groups {uri}: {reason(error)}") from error
    if not {"key", "group"} <= set(table.column_names):
        raise InputError(f"--groups {uri}: needs the columns key,group; has {table.column_names}")
    keys, groups = (table[name].to_pylist() for name in ("key", "group"))
    given: dict[str, str] = {}
    for key, group in zip(keys, groups, strict=True):
        if not group:
            raise InputError(f"--groups {uri}: empty group of key '{key}'")
        if given.setdefault(key, group) != group:
            raise InputError(f"--groups {uri}: key '{key}' stands there twice, in two groups")
    return given


def _check_groups(inspected: Location, given: Mapping[str, str], run: Run[Any]) -> None:
    """Say how many images `--groups` leaves to the rule by file name.

    Raises:
        InputError: it names no image at all, so its keys are written in another way.
    """
    found = tables.Table(pads.dataset(inspected.path, filesystem=inspected.filesystem))
    images = named = 0
    example = ""
    for batch in found.to_batches(columns=["key"]):
        keys = batch["key"].to_pylist()
        images += len(keys)
        named += sum(key in given for key in keys)
        example = example or next(iter(keys), "")
    flag = f"--groups {run.settings.groups}"
    if not named:
        raise InputError(f"{flag}: names none of the images; their keys look like '{example}'")
    if named < images:
        run.warn(f"{flag} leaves out {images - named:,} of {images:,} images: grouped by file name")


def _tied_groups(inspected: Location, given: Mapping[str, str], images: int) -> dict[str, str]:
    """Groups that share an identical file, with the name under which they are carved.

    The grouping by content runs on the cluster; only contents that stand in several groups reach
    the driver.
    """
    import ray

    ties = UnionFind()
    shared = (
        ray.data.read_parquet(inspected.path, filesystem=inspected.filesystem)
        .map_batches(
            _content_groups, batch_size=None, batch_format="pyarrow", fn_kwargs={"given": given}
        )
        .groupby("content_id", num_partitions=_partitions(images))
        .map_groups(_several_groups, batch_format="pyarrow")
    )
    for batch in shared.iter_batches(batch_format="pyarrow"):
        for groups in batch["groups"].to_pylist():
            ties.union(groups)
    return ties.roots()


def _partitions(rows: int) -> int:
    """Of a grouping: few for few rows, where every partition costs more than its work."""
    return min(200, 1 + rows // _ROWS_A_PARTITION)


def _content_groups(block: pa.Table, given: Mapping[str, str]) -> pa.Table:
    block = block.filter(pc.is_valid(block["content_id"]))
    return pa.table({"content_id": block["content_id"], "group": _groups(block, given)})


def _several_groups(rows: pa.Table) -> pa.Table:
    groups = sorted(set(rows["group"].to_pylist()))
    found = [groups] if len(groups) > 1 else []
    return pa.table({"groups": pa.array(found, pa.list_(pa.string()))})


def _groups(block: pa.Table, given: Mapping[str, str]) -> pa.Array:
    pairs = zip(block["key"].to_pylist(), block["group"].to_pylist(), strict=True)
    return pa.array([given.get(key, group) for key, group in pairs], pa.string())


def _warn_of_leaks(run: Run[Any]) -> None:
    """Say how many groups stand in several of the splits that the user's folders made."""
    import ray

    manifest = run.out.join("manifest")
    leaks = (
        ray.data.read_parquet(manifest.path, filesystem=manifest.filesystem)
        .select_columns(["group", "split", "status"])
        .groupby("group", num_partitions=_partitions(run.counts["images"]))
        .map_groups(_several_splits, batch_format="pyarrow")
        .sum("leaks")
    )
    run.counts["groups_in_several_splits"] = int(leaks or 0)
    if leaks:
        run.warn(
            f"{int(leaks):,} groups (patients, containers or identical files) stand in more than "
            "one of the train, val and test folders: test figures will look better than they are"
        )


def _several_splits(rows: pa.Table) -> pa.Table:
    readable = rows.filter(pc.equal(rows["status"], "ok"))
    return pa.table({"leaks": [int(len(set(readable["split"].to_pylist())) > 1)]})


def _assign(
    block: pa.Table,
    dataset: str,
    seed: int,
    shares: tuple[float, float],
    given: Mapping[str, str],
    ties: Mapping[str, str],
) -> pa.Table:
    own = _groups(block, given).to_pylist()
    groups = [ties.get(group, group) for group in own]
    splits = [
        folder if folder in ("val", "test") else assign_split(group, seed, *shares)
        for folder, group in zip(block["folder"].to_pylist(), groups, strict=True)
    ]
    columns = {name: block[name] for name in block.column_names}
    columns |= {
        "group": pa.array(groups, pa.string()),
        "split": pa.array(splits, pa.string()),
        "dataset": pa.array([dataset] * block.num_rows, pa.string()),
    }
    rows = pa.table(columns)
    broken = rows.filter(pc.equal(rows["status"], "error"))
    return pa.concat_tables(
        [
            table.append_column("table", pa.array([name] * table.num_rows, pa.string()))
            for name, table in (("manifest", rows), ("errors", broken))
        ]
    )
