"""The actor that knows which contents have results, and which of several equal files is first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from visao_ray.store import schemas
from visao_ray.store.table import LOOKUP_INDEX_CACHE, TableVersion

#: What a file's content is to this run: it has results, it is the first of its kind and gets them,
#: or another file of this run with the same bytes gets them.
KNOWN, FIRST, REPEATED = "known", "first", "repeated"


class Answer(NamedTuple):
    """What is known of a content.

    Attributes:
        state: KNOWN, FIRST or REPEATED.
        status: of the results there are, `ok` or `error`; empty unless KNOWN.
        error: type and message of an error; empty otherwise.
    """

    state: str
    status: str = ""
    error: str = ""


class ContentLookup:
    """Answers for contents, against the version of the table that was newest when the job began.

    It lives as long as the job, so that Lance's index stays in memory. What it has promised to
    whom is in its memory alone; should it be lost and started anew, the check at the end of the
    job finds what was done twice.

    Args:
        at: the table of results; None: nothing is known.
        views: that a known content must have.
    """

    def __init__(self, at: TableVersion | None, views: int) -> None:
        self._results = at.open(LOOKUP_INDEX_CACHE) if at is not None else None
        self._views = views
        self._first: dict[bytes, int] = {}

    def look_up(self, contents: Sequence[bytes], rows: Sequence[int]) -> list[Answer]:
        """An answer for each content; `rows` are the numbers of its files in the listing.

        The same row gets the same answer however often it asks, so a task may be tried again.
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
