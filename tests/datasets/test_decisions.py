"""Splits of later images, decided by group, content and wanted split; no image is ever moved."""

import hashlib
import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from visao_ray.datasets.splits import assign_split, decide_splits

OPTIONS = {"seed": 3, "val_share": 0.25, "test_share": 0.25}
ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("content_id", pa.binary(32)),
        ("group", pa.string()),
        ("wanted_split", pa.string()),
        ("split", pa.string()),
    ]
)
KNOWN = pa.schema(
    [("group", pa.string()), ("split", pa.string()), ("first_seen", pa.timestamp("us", tz="UTC"))]
)
ORDER = ("test", "val", "train")
START = datetime(2026, 1, 1, tzinfo=UTC)


def content(name):
    return hashlib.sha256(str(name).encode()).digest()


class Store:
    """A plain model of the store: images and groups as dictionaries."""

    def __init__(self):
        self.images = {}
        self.groups = {}
        self.days = 0

    def add(self, key, what, group, wanted=None):
        self.images[key] = [content(what), group, wanted, None]

    def touched(self):
        """Return undecided images, and decided ones that share a content or a group with them."""
        new = [image for image in self.images.values() if image[3] is None]
        contents, groups = {image[0] for image in new}, {image[1] for image in new}
        return {
            key: image
            for key, image in self.images.items()
            if image[3] is None or image[0] in contents or image[1] in groups
        }

    def propose(self, order=None):
        rows = [[key, *image] for key, image in self.touched().items()]
        known = [
            [name, *self.groups[name]] for name in {row[2] for row in rows} & self.groups.keys()
        ]
        if order is not None:
            order.shuffle(rows)
            order.shuffle(known)
        tables = [
            pa.table([list(column) for column in zip(*cells, strict=True)], schema=schema)
            if cells
            else schema.empty_table()
            for cells, schema in ((rows, ROWS), (known, KNOWN))
        ]
        return decide_splits(*tables, **OPTIONS)

    def write_groups(self, decision):
        self.days += 1
        for row in decision.groups.to_pylist():
            assert row["group"] not in self.groups
            self.groups[row["group"]] = (row["split"], START + timedelta(days=self.days))

    def write_images(self, decision):
        for row in decision.splits.to_pylist():
            assert self.images[row["key"]][3] is None
            self.images[row["key"]][3] = row["split"]

    def decide(self):
        decision = self.propose()
        self.write_groups(decision)
        self.write_images(decision)
        return decision


def expected(store):
    """Return the splits that the docstring of `decide_splits` describes, computed in loops."""
    rows = store.touched()
    new_groups = {image[1] for image in rows.values() if image[1] not in store.groups}
    given = {}
    for key, (_, group, wanted, split) in rows.items():
        own = store.groups[group][0] if group in store.groups else None
        given[key] = split or wanted or own
    decided = {}
    left = set(new_groups)
    while left:
        component, contents = {min(left)}, set()
        grown = True
        while grown:
            contents = {image[0] for image in rows.values() if image[1] in component}
            more = {i[1] for i in rows.values() if i[0] in contents and i[1] in new_groups}
            grown = not more <= component
            component |= more
        left -= component
        fixed = [
            (
                store.groups[group][1],
                group,
                given[key] != store.groups[group][0],
                ORDER.index(given[key]),
            )
            for key, (what, group, _, _) in rows.items()
            if group in store.groups and what in contents and given[key]
        ]
        votes = Counter(
            given[key] for key, image in rows.items() if image[1] in component and given[key]
        )
        if fixed:
            choice = ORDER[min(fixed)[-1]]
        elif votes:
            choice = max(ORDER, key=lambda split: votes[split])
        else:
            choice = assign_split(min(component), **OPTIONS)
        decided |= dict.fromkeys(component, choice)
    splits = {
        key: given[key] or decided[image[1]] for key, image in rows.items() if image[3] is None
    }
    return splits, decided


def find_contradictions(store):
    """Return the groups and contents whose images are in more than one split."""
    places = {}
    for what, group, _, split in store.images.values():
        places.setdefault(("group", group), set()).add(split)
        places.setdefault(("content", what.hex()), set()).add(split)
    return {name for name, splits in places.items() if len(splits) > 1}


@pytest.mark.parametrize("seed", range(60))
def test_random_days(seed):
    rng = random.Random(seed)
    store = Store()
    names = [f"g{number:02d}" for number in rng.sample(range(40), rng.randint(2, 30))]
    contents, wishes = rng.randint(2, 40), rng.choice([0, 0, 0.2, 0.9])
    troubles = set()
    for day in range(rng.randint(1, 5)):
        old_troubles = troubles
        for number in range(rng.randint(0, 25)):
            wanted = rng.choice(["train", "val", "test"]) if rng.random() < wishes else None
            store.add(f"s3://b/{day}-{number}", rng.randrange(contents), rng.choice(names), wanted)
        before = {key: image[3] for key, image in store.images.items() if image[3]}
        splits, groups = expected(store)
        decision = store.propose()

        assert dict(zip(*decision.splits.to_pydict().values(), strict=True)) == splits
        assert dict(zip(*decision.groups.to_pydict().values(), strict=True)) == groups
        for _ in range(3):
            other = store.propose(order=rng)
            assert other.splits.sort_by("key").equals(decision.splits.sort_by("key"))
            assert other.groups.equals(decision.groups)
            assert other.contradictions == decision.contradictions
        # A kill between the two writes: the groups are known, the splits of the images are not.
        store.write_groups(decision)
        again = store.propose()
        assert again.groups.num_rows == 0
        assert again.splits.equals(decision.splits)
        store.write_images(decision)
        assert store.propose().splits.num_rows == store.propose().groups.num_rows == 0

        assert {key: store.images[key][3] for key in before} == before  # no image was moved
        for key in decision.splits["key"].to_pylist():
            _, _, wanted, split = store.images[key]
            assert wanted in (None, split)
        troubles = find_contradictions(store)
        reported = {(one.kind, one.name): one for one in decision.contradictions}
        assert troubles - old_troubles <= reported.keys()
        for one in reported.values():
            assert len(one.examples) > 1
            for split, key in one.examples.items():
                if key:
                    what, group, _, actual = store.images[key]
                    assert actual == split
                    assert one.name in (group, what.hex())
        if not wishes and not old_troubles and not day:
            assert not reported
            assert not troubles


def decide_one(store, key):
    decision = store.decide()
    return store.images[key][3], [str(one) for one in decision.contradictions]


def test_a_late_duplicate_whose_group_sorts_first_moves_no_image():
    """It joins the older split whatever its own hash says; groups are tried until these differ."""
    joined = set()
    for number in range(40):
        store = Store()
        store.add("old", "film", f"m{number}")
        old, _ = decide_one(store, "old")
        store.add("new", "film", f"a{number}")
        store.add("brother", "other film", f"a{number}")
        assert decide_one(store, "new") == (old, [])
        assert store.images["old"][3] == store.images["brother"][3] == old
        joined.add(assign_split(f"a{number}", **OPTIONS) == old)
    assert joined == {True, False}


def test_known_groups_that_disagree_are_reported_and_stay():
    store = Store()
    store.add("first", 1, "m", "val")
    store.decide()
    store.add("second", 2, "b", "test")
    store.decide()
    store.add("third", 1, "a")
    store.add("fourth", 2, "a")
    split, messages = decide_one(store, "third")
    assert split == store.images["fourth"][3] == "val"  # of the group that was there first
    assert store.images["second"][3] == "test"
    assert messages == [f"content {content(2).hex()} is in val (fourth) and in test (second)"]


def test_a_known_group_does_not_connect_others():
    """`a` shares a content with `k`, and `k` another one with `b`, but `a` does not follow `b`."""
    store = Store()
    store.add("k1", 1, "k", "train")
    store.decide()
    store.add("z1", 3, "z", "test")
    store.decide()
    store.add("a1", 1, "a")
    store.add("b1", 2, "b")
    store.add("b2", 3, "b")
    store.add("k2", 2, "k")
    store.decide()
    assert store.images["a1"][3] == "train"


def test_a_wanted_split_that_differs_from_the_group_is_used_and_reported():
    store = Store()
    store.add("old", 1, "patient", "train")
    store.decide()
    store.add("new", 2, "patient", "test")
    split, messages = decide_one(store, "new")
    assert split == "test"
    assert messages == ["group patient is in train (old) and in test (new)"]
    rows = pa.table([["new"], [content(2)], ["patient"], ["test"], [None]], schema=ROWS)
    known = pa.table([["patient"], ["train"], [START]], schema=KNOWN)
    (alone,) = decide_splits(rows, known, **OPTIONS).contradictions
    assert str(alone) == "group patient is in train (earlier images) and in test (new)"


def test_images_without_group_or_content():
    rows = pa.table(
        [["x", "y", "z"], [None, None, content(1)], [None, "g", "g"], [None] * 3, [None] * 3],
        schema=ROWS,
    )
    found = decide_splits(rows, KNOWN.empty_table(), **OPTIONS)
    assert found.groups["group"].to_pylist() == ["g", "x"]
    assert found.splits["split"].to_pylist() == [assign_split(name, **OPTIONS) for name in "xgg"]
    nothing = decide_splits(ROWS.empty_table(), KNOWN.empty_table(), **OPTIONS)
    assert (nothing.splits.num_rows, nothing.groups.num_rows, nothing.contradictions) == (0, 0, [])


def test_three_hundred_thousand_images():
    """Decide without Python loops, which would take minutes for this many images."""
    rng = np.random.default_rng(0)
    count = 300_000
    digests = rng.integers(0, 256, (count, 32), np.uint8)
    digests[:30_000] = digests[-30_000:]
    contents = pa.Array.from_buffers(pa.binary(32), count, [None, pa.py_buffer(digests.tobytes())])
    keys = pa.array([f"s3://bucket/scans/2026/{number:08d}.jpg" for number in range(count)])
    groups = pa.array([f"lot-{number // 2}" for number in range(count)])
    rows = pa.table([keys, contents, groups, *[pa.nulls(count, pa.string())] * 2], schema=ROWS)
    start = time.perf_counter()
    found = decide_splits(rows, KNOWN.empty_table(), **OPTIONS)
    assert time.perf_counter() - start < 20
    assert found.groups.num_rows == count // 2
    assert found.contradictions == []
    shares = Counter(found.splits["split"].to_pylist())
    assert abs(shares["test"] / count - 0.25) < 0.01
