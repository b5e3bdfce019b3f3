"""The page of an audit: what was found in a store, with the images that show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visao_ray.core.storage import Location
from visao_ray.reports.pictures import data_uri, read_pictures
from visao_ray.reports.report import render

#: Checks whose findings make metrics wrong: users must see them.
SERIOUS = ("leak", "conflict")


@dataclass(frozen=True)
class ShownFile:
    """A file on the page.

    Attributes:
        key: key of the file.
        label: its label; None without one.
        split: its split; None without one.
        note: what to say of it.
    """

    key: str
    label: str | None
    split: str | None
    note: str = ""


@dataclass(frozen=True)
class ShownPair:
    """Two files side by side.

    Attributes:
        first: a file.
        second: the other file.
        note: what connects or divides them.
        similarity: similarity of the pictures, 0 to 1; None if not compared.
    """

    first: ShownFile
    second: ShownFile
    note: str
    similarity: float | None


@dataclass(frozen=True)
class Section:
    """What one check found.

    Attributes:
        name: name of the check.
        title: title of the section.
        explanation: what the check looks for.
        summary: what it found, with counts.
        count: number of flagged files.
        pairs: pairs to look at.
        files: files to look at.
        table: header and lines of a small table; None without one.
    """

    name: str
    title: str
    explanation: str
    summary: str
    count: int
    pairs: tuple[ShownPair, ...]
    files: tuple[ShownFile, ...]
    table: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None


@dataclass(frozen=True)
class AuditPage:
    """The content of the page.

    Attributes:
        dataset: name of the dataset.
        store: URI of the store.
        files: number of files.
        usable: number of files that can be used.
        contents: number of distinct contents.
        sections: what each check found.
        skipped: title of each check that could not run, and the reason.
        failure: why the gate failed; empty if it did not.
        command: command line of the run.
    """

    dataset: str
    store: str
    files: int
    usable: int
    contents: int
    sections: tuple[Section, ...]
    skipped: tuple[tuple[str, str], ...]
    failure: str
    command: str


def write_audit(page: AuditPage, place: Location) -> None:
    """Write the page as one HTML document; reads the pictures that it shows. For a task."""
    shown = [file.key for section in page.sections for file in _files(section)]
    keys = list(dict.fromkeys(shown))
    pictures = dict(zip(keys, map(data_uri, read_pictures(keys)), strict=True))
    place.write_bytes(render_audit(page, pictures).encode())


def render_audit(page: AuditPage, pictures: dict[str, str | None]) -> str:
    """Render the page; it needs no network, and all values are escaped.

    Args:
        page: the content.
        pictures: a small picture of each shown file as a URI, by key; None if it cannot be read.

    Returns:
        The HTML.
    """
    return render("audit.html.j2", {"page": page, "pictures": pictures, "headline": headline(page)})


def headline(page: AuditPage) -> str:
    """Say in one sentence what matters most."""
    counts = {section.name: section for section in page.sections}
    serious = [counts[name] for name in SERIOUS if name in counts]
    found = [section for section in serious if section.count]
    if found:
        return f"{found[0].title}: {found[0].summary}."
    others = [section for section in page.sections if section.count]
    if others:
        plural = "" if len(others) == 1 else "s"
        return (
            f"No leak and no contradiction; {len(others)} other check{plural} found something to "
            "look at."
        )
    return f"{page.files:,} files, and no check found anything."


def _files(section: Section) -> list[Any]:
    return [
        *section.files,
        *(file for pair in section.pairs for file in (pair.first, pair.second)),
    ]
