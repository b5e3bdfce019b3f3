"""Verification of a store: unreadable files, missing rows, duplicated rows, divided groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from visao_ray.store import proof, schemas
from visao_ray.store.store import PLAIN, RESULTS, Store
from visao_ray.store.table import TableVersion, reason_of_lance

_READABLE = f"status = '{schemas.OK}'"
_IMAGE_STATUS = ", ".join(
    f"'{status}'" for status in (*schemas.LASTING, schemas.UNREAD, schemas.MISSING)
)
#: Conditions on rows of `images` that mean a problem, with the description of the problem.
_WRONG_IMAGES = {
    f"status IS NULL OR status NOT IN ({_IMAGE_STATUS})": "have no valid status",
    f"{_READABLE} AND content_id IS NULL": "are readable and have no content_id",
    f"{_READABLE} AND split IS NULL": "are readable and have no split (run jobs/extract.py)",
    f"status = '{schemas.ERROR}' AND error IS NULL": "are errors without a reason",
}


def find_problems(uri: str) -> list[str]:
    """Find the problems of a store. For a task: 300 bytes per image at the peak.

    Args:
        uri: URI of the store.

    Returns:
        One line per problem.

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
        if name.startswith(RESULTS):
            problems += _check_results(name, results)
        if images is not None and name.startswith("vectors/") and name.endswith(f"/{PLAIN}"):
            problems += _missing_results(name, images, results)
    return problems


def _check_images(images: TableVersion) -> list[str]:
    return [
        *_wrong_rows("images", images, _WRONG_IMAGES),
        *_repeated("images", images, "key"),
        *_divided(images, "group"),
        *_divided(images, "content_id"),
    ]


def _check_results(name: str, results: TableVersion) -> list[str]:
    outputs = [*schemas.outputs(results.schema), *schemas.pictures(results.schema)]
    empty = " OR ".join(f"{output} IS NULL" for output in outputs)
    wrong = {
        f"status IS NULL OR status NOT IN ('{schemas.OK}', '{schemas.ERROR}')": "have no valid "
        "status",
        f"{_READABLE} AND ({empty})": "are ok and have no numbers",
        f"status = '{schemas.ERROR}' AND message IS NULL": "are errors without a reason",
    }
    problems = _wrong_rows(name, results, wrong)
    repeated = len(proof.repeated_rows(results))
    if repeated:
        problems.append(f"{name}: {repeated:,} rows are duplicates (jobs/extract.py removes them)")
    return problems


def _missing_results(name: str, images: TableVersion, results: TableVersion) -> list[str]:
    """Report readable images without a row of their content in the table."""
    contents = proof.ids(images, f"{_READABLE} AND content_id IS NOT NULL")
    missing = int(np.isin(contents, proof.contents_without(images, results, 1)).sum())
    if not missing:
        return []
    return [
        f"{name}: {missing:,} of {len(contents):,} readable images have no row "
        "(run jobs/extract.py with the settings of this extractor)"
    ]


def _wrong_rows(name: str, at: TableVersion, wrong: Mapping[str, str]) -> list[str]:
    counts = {what: at.count(where) for where, what in wrong.items()}
    return [f"{name}: {count:,} rows {what}" for what, count in counts.items() if count]


def _repeated(name: str, at: TableVersion, column: str) -> list[str]:
    counts = pc.value_counts(at.read([column])[column])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(repeated):
        return []
    return [f"{name}: {len(repeated):,} values of {column} are repeated, such as '{repeated[0]}'"]


def _divided(images: TableVersion, column: str) -> list[str]:
    """Report groups or contents with images in more than one split."""
    rows = images.read([column, "split"], f"{_READABLE} AND split IS NOT NULL")
    sides = rows.group_by(column).aggregate([("split", "count_distinct")])
    divided = sides.filter(pc.greater(sides["split_count_distinct"], 1))[column]
    if not len(divided):
        return []
    example = divided[0].as_py()
    example = example.hex() if isinstance(example, bytes) else example
    return [
        f"images: {len(divided):,} values of {column} are in more than one split, such as "
        f"'{example}': metrics on test are too optimistic"
    ]
