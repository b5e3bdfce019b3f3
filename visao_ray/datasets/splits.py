"""Which split an image belongs to: train, val or test, decided by its group alone."""

from __future__ import annotations

import hashlib


def assign_split(group: str, seed: int, val_share: float, test_share: float) -> str:
    """The split of a group, from a hash of its name.

    Nothing but the name and the seed decides, so an image added to the dataset moves no other.
    Every class gets its share in expectation; exact quotas would make one image's side depend on
    the others. Pass a share of 0 for a split that must not be assigned.

    Returns:
        `train`, `val` or `test`.
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


class UnionFind:
    """Groups that must stay together because they share an identical file."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def union(self, groups: list[str]) -> None:
        """Make one group of several; it takes the first name in alphabetical order."""
        roots = sorted({self.find(group) for group in groups})
        for root in roots:
            self._parent[root] = roots[0]

    def find(self, group: str) -> str:
        """The name under which a group is assigned: its own unless it is tied to others."""
        while self._parent.get(group, group) != group:
            group = self._parent[group]
        return group

    def roots(self) -> dict[str, str]:
        """Every tied group with the name under which it is assigned."""
        return {group: self.find(group) for group in self._parent}
