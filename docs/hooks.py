"""Hooks of mkdocs: add the pages of the repository's root, and generate pages from the code.

- README.md, ARCHITECTURE.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site. Their links
  are written for the repository and rewritten for the site.
- `<!-- flags -->` becomes the flags of all jobs, `<!-- columns of TABLE -->` a table's columns.
"""

from __future__ import annotations

import posixpath
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from visao_ray.core import tables
from visao_ray.core.settings import CommandSettings, flag_of
from visao_ray.jobs import submission
from visao_ray.jobs.registry import JOBS
from visao_ray.store import schemas
from visao_ray.synthetic.dataset import TRUTH
from visao_ray.tuning import trial_results

ROOT = Path(__file__).parents[1]
#: Files in the root of the repository, and their pages.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_COLUMNS = re.compile(r"<!-- columns of (.+?) -->")
_FLAGS = "<!-- flags -->"
_WIDTHS = {"avg": "D", "max": "D", "probability": "C", "embedding": "E", "vector": "D"}
_KINDS = {str: "text", int: "integer", float: "number", bool: "switch"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links, and insert the parts that come from the code.

    Args:
        markdown: source of the page.
        page: the page.

    Returns:
        The new source of the page.

    Raises:
        PluginError: a link leaves the site, or the tables differ from those of the code.
    """
    place = page.file.src_uri
    source = {uri: name for name, uri in PAGES.items()}.get(place, f"docs/{place}")
    markdown = _LINK.sub(lambda link: f"]({_on_site(link.group(1), source, place)}", markdown)
    if _FLAGS in markdown:
        markdown = markdown.replace(_FLAGS, "\n".join(_all_flags()))
    if names := _COLUMNS.findall(markdown):
        found = _tables()
        if sorted(names) != sorted(found):
            wrong = ", ".join(sorted(set(names) ^ set(found)))
            raise PluginError(f"{source}: its tables differ from those of the code: {wrong}")
        markdown = _COLUMNS.sub(lambda name: "\n".join(_columns(found[name.group(1)])), markdown)
    return markdown


def _on_site(link: str, source: str, place: str) -> str:
    """Convert a link between files of the repository to a link between pages."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    target = PAGES.get(path, path.removeprefix("docs/"))
    if target == path:
        raise PluginError(f"{source}: {link} leaves the site; write its path without a link")
    return posixpath.relpath(target, posixpath.dirname(place) or ".")


def _all_flags() -> Iterator[str]:
    for verb, job in JOBS.items():
        settings = job.settings.variant((), {})  # of all families, where a job has several
        yield from (f"## {verb}", "", *_description(verb, settings), "")
        yield from _flags_of(settings)
        for action, its_settings in settings.by_action().items():
            yield from (f"### {verb} {action}", "", *_description(verb, its_settings), "")
            yield from _flags_of(its_settings)
    usage = submission.parser(f"visao-ray {submission.VERB}").format_help()
    yield from (f"## {submission.VERB}", "", "```", usage, "```")


def _flags_of(settings: type[CommandSettings]) -> Iterator[str]:
    yield from ("| flag | takes | default | |", "|---|---|---|---|")
    for name, field in settings.model_fields.items():
        flag = flag_of(settings, name)
        default = "required" if field.is_required() else _code(field.default)
        kind = _kind(field.annotation)
        yield f"| `{flag}` | {kind} | {default} | {_cell(field.description or '')} |"
    yield ""


def _description(verb: str, settings: type[CommandSettings]) -> Iterator[str]:
    """Yield the lines of the job's help text."""
    for line in (settings.__doc__ or "").splitlines():
        program = line.startswith("  %(prog)s")
        yield f"    {line.strip() % {'prog': f'visao-ray {verb}'}}" if program else line


def _kind(annotation: Any) -> str:
    """Return a type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return ", ".join(_kind(part) for part in parts if part is not types.NoneType)
    if origin is list:
        return f"{_kind(parts[0])}, several times"
    if origin is dict:
        return f"NAME={'number' if 'float' in str(parts[1]) else 'value'}"
    return _KINDS.get(annotation, "a time such as `7d`")


def _code(default: Any) -> str:
    empty = default is None or default is False or default in ([], {})
    return "" if empty else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _tables() -> dict[str, pa.Schema]:
    """Return the schema of every table that users see, by its name on the page."""
    named = {
        value.metadata[b"visao_ray.table"].decode(): value
        for value in vars(trial_results).values()
        if isinstance(value, pa.Schema)
    }
    return {
        "images": schemas.IMAGES,
        "groups": schemas.GROUPS,
        "verdicts": schemas.VERDICTS,
        "vectors/EXTRACTOR/RECIPE": schemas.results({"avg": 1, "max": 1}, {}, pictures=True),
        "predictions/MODEL": schemas.results({"probability": 1, "embedding": 1}, {}),
        "copies/NAME": schemas.copies({}),
        "indexes/NAME": schemas.index(1, {}),
        "predictions": tables.predictions(["one"]),
        "embeddings": tables.embeddings(1),
        "truth": TRUTH,
        "trials": trial_results.trials_schema(),
        "refits": trial_results.refits_schema(),
        **named,
    }


def _columns(schema: pa.Schema) -> Iterator[str]:
    yield from ("| column | type |", "|---|---|")
    for field in schema:
        kind = field.type
        if pa.types.is_fixed_size_list(field.type):
            kind = f"{field.type.value_type}[{_WIDTHS[field.name]}]"
        name = re.sub(r"\bfloat\b", "float32", str(kind)).replace("double", "float64")
        yield f"| `{field.name}` | {_cell(name)} |"
