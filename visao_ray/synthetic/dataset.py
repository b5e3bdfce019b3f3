"""Render a whole dataset to storage, in parallel and resumable."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visao_ray.core.errors import InputError
from visao_ray.synthetic.recipe import SyntheticRecipe, planned
from visao_ray.synthetic.scan import encode, render

if TYPE_CHECKING:
    from visao_ray.core.storage import Location

TRUTH = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("true_label", pa.string()),
        ("difficulty", pa.string()),
        ("duplicate_of", pa.string()),
        ("group", pa.string()),
        ("content_id", pa.string()),
        ("bytes", pa.int64()),
    ]
)
"""One row per file: declared and true label, hard case, original, patient or lot, SHA-256, size."""

_CHUNK = 64  # images that a task writes before it writes their truth
_RECIPE = b"visao_ray.recipe"


def render_dataset(recipe: SyntheticRecipe, out: "Location") -> dict[str, int]:
    """Render all images of a recipe with Ray Data to `out/images`, and the truth to `out/truth`.

    Each part of the truth is written after its 64 images, so its existence shows that they are
    complete. The same call after a kill renders only the missing images and gives the same files.
    Ray must have been started.

    Args:
        recipe: what to render.
        out: destination. Images are written to `images/LABEL/NAME`, or to `images/arrived/NAME` if
            they have no label, and the truth (schema `TRUTH`) to `truth/`.

    Returns:
        Counts over the whole dataset: `images`, `bytes`, `wrong_labels` (the declared label is not
        the true one), `difficult`, `duplicates`, and `rendered` (images rendered by this call).

    Raises:
        InputError: `out` holds the dataset of another recipe.
    """
    import ray.data
    from ray.data import TaskPoolStrategy

    _check_same_recipe(recipe, out)
    images = out.join("images")
    for label in ("arrived",) if recipe.unlabelled else recipe.class_names:
        images.filesystem.create_dir(images.join(label).path, recursive=True)
    out.filesystem.create_dir(out.join("truth").path, recursive=True)

    def render_batch(batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        counts = [_render_chunk(recipe, out, int(chunk)) for chunk in batch["id"]]
        return {name: np.array([c[name] for c in counts], np.int64) for name in counts[0]}

    chunks = -(-recipe.images // _CHUNK)
    counts = ray.data.range(chunks).map_batches(
        render_batch, batch_size=1, compute=TaskPoolStrategy()
    )
    names = ["images", "bytes", "wrong_labels", "difficult", "duplicates", "rendered"]
    totals = counts.sum(names)
    return {name: int(totals[f"sum({name})"]) for name in names}


def _render_chunk(recipe: SyntheticRecipe, out: "Location", chunk: int) -> dict[str, int]:
    part = out.join("truth", f"part-{chunk:06d}.parquet")
    table = _complete_truth(out, part)
    rendered = 0
    if table is None:
        positions = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, recipe.images))
        rows = [_write_image(recipe, out, position) for position in positions]
        rendered = len(rows)
        schema = TRUTH.with_metadata({_RECIPE: _as_json(recipe)})
        table = pa.Table.from_pylist(rows, schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        part.write_bytes(sink.getvalue().to_pybytes())
    rows = table.to_pylist()
    return {
        "images": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "wrong_labels": sum(row["label"] != row["true_label"] for row in rows),
        "difficult": sum(row["difficulty"] != "" for row in rows),
        "duplicates": sum(row["duplicate_of"] != "" for row in rows),
        "rendered": rendered,
    }


def _write_image(recipe: SyntheticRecipe, out: "Location", position: int) -> dict[str, object]:
    image = planned(recipe, position)
    grey = render(recipe.dataset, image.true_label, image.index, recipe.seed, image.difficulty)
    data = encode(grey, image.quality)
    target = out.join("images", image.key)
    # Written in place: an incomplete file is written again as long as the chunk has no truth.
    with target.filesystem.open_output_stream(target.path) as stream:
        stream.write(data)
    return {
        "key": image.key,
        "label": image.label,
        "true_label": image.true_label,
        "difficulty": image.difficulty,
        "duplicate_of": image.duplicate_of,
        "group": image.group,
        "content_id": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }


def _complete_truth(out: "Location", part: "Location") -> pa.Table | None:
    """Return the truth of a chunk if all its images are complete, else None."""
    if not part.exists():
        return None
    table = pq.read_table(part.path, filesystem=part.filesystem)
    folder = out.join("images").path
    paths = [f"{folder}/{key}" for key in table["key"].to_pylist()]
    sizes = [info.size for info in out.filesystem.get_file_info(paths)]
    return table if sizes == table["bytes"].to_pylist() else None


def _check_same_recipe(recipe: SyntheticRecipe, out: "Location") -> None:
    for part in out.join("truth").files():
        if part.path.endswith(".parquet"):
            schema = pq.read_schema(part.path, filesystem=out.filesystem)
            if (schema.metadata or {}).get(_RECIPE) != _as_json(recipe):
                raise InputError(
                    f"{out.uri}: holds a dataset of another recipe; choose an empty folder"
                )
            return


def _as_json(recipe: SyntheticRecipe) -> bytes:
    return json.dumps(asdict(recipe), sort_keys=True).encode()
