"""The actor that knows which contents have results, and assigns each new content to one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from visao_ray.store import schemas
from visao_ray.store.table import LOOKUP_INDEX_CACHE, TableVersion

#: State of a file's content in this run: it has results; this file is the first with the content
#: and computes them; or another file of the run with the same bytes computes them.
KNOWN, FIRST, REPEATED = "known", "first", "repeated"


class Answer(NamedTuple):
    """Answer for the content of one file.

    Attributes:
        state: KNOWN, FIRST or REPEATED.
        status: status of the existing results, `ok` or `error`; empty unless KNOWN.
        error: type and message of an error, or empty.
    """

    state: str
    status: str = ""
    error: str = ""


class ContentLookup:
    """Look up contents in the version of the results that was the latest when the job started.

    The actor lives as long as the job, so that Lance's index stays in memory. It keeps in memory
    which file computes which content. If the actor is lost and restarted, contents may be computed
    twice; the check at the end of the job finds and removes the duplicates.

    Args:
        at: the table of results; None if there are no results yet.
        views: number of views that a known content must have.
    """

    def __init__(self, at: TableVersion | None, views: int) -> None:
        self._results = at.open(LOOKUP_INDEX_CACHE) if at is not None else None
        self._views = views
        self._first: dict[bytes, int] = {}

    def look_up(self, contents: Sequence[bytes], rows: Sequence[int]) -> list[Answer]:
        """Return an answer for each content; `rows` are the numbers of the files in the listing.

        The same row always gets the same answer, so a task may be retried.
        """
        known = self._known(contents)
        return [
            known.get(content) or Answer(FIRST if self._claim(content, row) else REPEATED)
            for content, row in zip(contents, rows, strict=True)
        ]

    def _claim(self, content: bytes, row: int) -> bool:
        return self._first.setdefault(content, row) == row

    def _known(self, contents: Sequence[bytes]) -> dict[bytes, Answer]:
        if self._results is None or not contents:
            return {}
        wanted = ",".join(f"X'{content.hex()}'" for content in set(contents))
        rows = self._results.to_table(
            columns=["content_id", "view", "status", "error_type", "message"],
            filter=f"content_id IN ({wanted})",
        ).to_pylist()
        count: dict[bytes, int] = {}
        found: dict[bytes, Answer] = {}
        for row in rows:
            content = row["content_id"]
            count[content] = count.get(content, 0) + 1
            failed = row["status"] == schemas.ERROR
            error = f"{row['error_type']}: {row['message']}" if failed else ""
            found[content] = Answer(KNOWN, row["status"], error)
        return {
            content: answer
            for content, answer in found.items()
            if answer.status == schemas.ERROR or count[content] >= self._views
        }
