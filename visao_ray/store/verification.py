"""What can be wrong with a store: files that are gone, rows that are missing or there twice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from visao_ray.store import proof, schemas
from visao_ray.store.store import PLAIN, Store
from visao_ray.store.table import TableVersion, reason_of_lance

_READABLE = f"status = '{schemas.OK}'"
_IMAGE_STATUS = ", ".join(
    f"'{status}'" for status in (*schemas.LASTING, schemas.UNREAD, schemas.MISSING)
)
#: Conditions on rows of `images` that none may meet, and what is wrong with those that do.
_WRONG_IMAGES = {
    f"status IS NULL OR status NOT IN ({_IMAGE_STATUS})": "have no valid status",
    f"{_READABLE} AND content_id IS NULL": "are readable and have no content_id",
    f"{_READABLE} AND split IS NULL": "are readable and have no split (jobs/extract.py gives one)",
    f"status = '{schemas.ERROR}' AND error IS NULL": "are errors without a reason",
}


def find_problems(uri: str) -> list[str]:
    """What is wrong with a store, a line each; empty where nothing is.

    For a task: 300 bytes an image at the peak.

    Args:
        uri: of the store.

    Raises:
        InputError: there is no store, or it has another format.
    """
    problems = []
    tables = {}
    for name, table in Store.open(uri).tables().items():
        at = table.latest()
        try:
            at.open().validate()  # type: ignore[no-untyped-call]
            tables[name] = at
        except (OSError, ValueError) as error:
            problems.append(
                f"{name}: version {at.version} cannot be read: {reason_of_lance(error)}"
            )
    images = tables.get("images")
    if images is not None:
        problems += _check_images(images)
    if "groups" in tables:
        problems += _repeated("groups", tables["groups"], "group")
    for name, results in tables.items():
        if "/" in name:
            problems += _check_results(name, results)
        if images is not None and name.startswith("vectors/") and name.endswith(f"/{PLAIN}"):
            problems += _lacking(name, images, results)
    return problems


def _check_images(images: TableVersion) -> list[str]:
    return [
        *_conditions("images", images, _WRONG_IMAGES),
        *_repeated("images", images, "key"),
        *_divided(images, "group"),
        *_divided(images, "content_id"),
    ]


def _check_results(name: str, results: TableVersion) -> list[str]:
    outputs = schemas.outputs(results.schema)
    empty = " OR ".join(f"{output} IS NULL" for output in outputs)
    wrong = {
        f"status IS NULL OR status NOT IN ('{schemas.OK}', '{schemas.ERROR}')": "have no valid "
        "status",
        f"{_READABLE} AND ({empty})": "are ok and have no numbers",
        f"status = '{schemas.ERROR}' AND message IS NULL": "are errors without a reason",
    }
    problems = _conditions(name, results, wrong)
    twice = len(proof.repeated_rows(results))
    if twice:
        problems.append(f"{name}: {twice:,} rows are there twice (jobs/extract.py removes them)")
    return problems


def _lacking(name: str, images: TableVersion, results: TableVersion) -> list[str]:
    """Readable images whose content the table does not have."""
    contents = proof.ids(images, f"{_READABLE} AND content_id IS NOT NULL")
    lacking = int(np.isin(contents, proof.contents_without(images, results, 1)).sum())
    if not lacking:
        return []
    return [
        f"{name}: {lacking:,} of {len(contents):,} readable images have no row "
        "(jobs/extract.py with this extractor's settings makes them)"
    ]


def _conditions(name: str, at: TableVersion, wrong: Mapping[str, str]) -> list[str]:
    counts = {what: at.count(where) for where, what in wrong.items()}
    return [f"{name}: {count:,} rows {what}" for what, count in counts.items() if count]


def _repeated(name: str, at: TableVersion, column: str) -> list[str]:
    counts = pc.value_counts(at.read([column])[column])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(twice):
        return []
    return [f"{name}: {len(twice):,} values of {column} are there twice, such as '{twice[0]}'"]


def _divided(images: TableVersion, column: str) -> list[str]:
    """Groups or contents that stand in several splits."""
    rows = images.read([column, "split"], f"{_READABLE} AND split IS NOT NULL")
    sides = rows.group_by(column).aggregate([("split", "count_distinct")])
    divided = sides.filter(pc.greater(sides["split_count_distinct"], 1))[column]
    if not len(divided):
        return []
    example = divided[0].as_py()
    example = example.hex() if isinstance(example, bytes) else example
    return [
        f"images: {len(divided):,} values of {column} stand in several splits, such as "
        f"'{example}': test figures look better than they are"
    ]
