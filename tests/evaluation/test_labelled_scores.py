import numpy as np
import pyarrow as pa
import pytest

from visao_ray.core.errors import InputError
from visao_ray.evaluation import probabilities
from visao_ray.evaluation.labelled_scores import LabelledScores, class_codes, sorted_codes

NAMES = ["ç", "b", "a", "b", "ã", "a"]


@pytest.mark.parametrize(
    "values",
    [
        NAMES,
        np.array(NAMES),
        np.array(NAMES, dtype=object),
        pa.array(NAMES),
        pa.chunked_array([NAMES[:2], NAMES[2:]]),
        # A dictionary with a value that no row has.
        pa.chunked_array([pa.array([*NAMES, "unused"]).dictionary_encode()[:6]]),
        np.array([9, -3, -5, -3, 7, -5]),
        [9, -3, -5, -3, 7, -5],
    ],
)
def test_groups_are_numbered_as_numpy_sorts_them(values):
    codes, count = sorted_codes(values)
    plain = np.asarray(values if isinstance(values, list | np.ndarray) else NAMES)
    names, expected = np.unique(plain, return_inverse=True)
    np.testing.assert_array_equal(codes, expected)
    assert (count, codes.dtype) == (len(names), np.int32)


def test_labels_are_positions_in_the_order_of_the_classes():
    classes = ["b", "ç", "a", "ã", "none"]
    for labels in (NAMES, pa.chunked_array([NAMES[:2], NAMES[2:]]), [1, 0, 2, 0, 3, 2]):
        np.testing.assert_array_equal(class_codes(labels, classes), [1, 0, 2, 0, 3, 2])
    with pytest.raises(InputError, match="label 'a' is not one of the 2 classes"):
        class_codes(NAMES, ["b", "ç"])
    with pytest.raises(InputError, match=r"class index outside 0\.\.2"):
        class_codes(np.array([0, 3]), ["a", "b", "c"])
    assert len(class_codes([], classes)) == sorted_codes([])[1] == 0


def test_one_pass_gives_the_values_of_whole_matrices(monkeypatch):
    monkeypatch.setattr(probabilities, "_PIECE_ELEMENTS", 5 * 7)
    rng = np.random.default_rng(2)
    p = np.round(rng.random((100, 5)), 1).astype(np.float32)
    label = rng.integers(0, 5, 100)
    scores = LabelledScores.of(label, p, np.arange(100) // 2, list("abcde"))
    of_true = p[np.arange(100), label]
    np.testing.assert_array_equal(scores.most_probable, p.argmax(axis=1))
    np.testing.assert_array_equal(scores.highest, p.max(axis=1))
    np.testing.assert_array_equal(scores.of_true, of_true)
    np.testing.assert_array_equal(scores.rank, (p >= of_true[:, None]).sum(axis=1))
    np.testing.assert_array_equal(scores.score(3), p[:, 3])
    assert (len(scores), scores.groups) == (100, 50)
    p[[3, 50, 51], 2] = np.nan, np.inf, -np.inf
    with pytest.raises(InputError, match="3 of 100 predictions hold NaN or infinite"):
        LabelledScores.of(label, p, np.arange(100), list("abcde"))
    with pytest.raises(InputError, match="100 labels but 99 groups"):
        LabelledScores.of(label, p, np.arange(99), list("abcde"))
