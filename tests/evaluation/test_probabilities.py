import numpy as np
import pyarrow as pa
import pytest

from visao_ray.core.errors import InputError
from visao_ray.evaluation import probabilities
from visao_ray.evaluation.probabilities import Probabilities


def column(values, ends):
    """A column with chunks that end at `ends`; each chunk is a slice of a longer array."""
    longer = np.concatenate([np.full((2, values.shape[1]), -1, values.dtype), values])
    array = pa.FixedSizeListArray.from_arrays(longer.reshape(-1), values.shape[1])
    starts = [0, *ends[:-1]]
    return pa.chunked_array([array[2 + a : 2 + b] for a, b in zip(starts, ends, strict=True)])


def read(found):
    """All pieces, each at its position."""
    result = np.full((len(found), found.width), np.nan)
    for place, piece in found.pieces():
        result[place] = piece
    return result


@pytest.fixture
def values():
    return np.random.default_rng(0).random((500, 6)).astype(np.float32)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_chosen_rows_of_a_chunked_column(values, share, small, monkeypatch):
    if small:
        monkeypatch.setattr(probabilities, "_PIECE_ELEMENTS", 6 * 7)
        monkeypatch.setattr(probabilities, "_COLUMN_ROWS", 5)
    chosen = np.random.default_rng(1).random(500) < share
    chosen[200:300] = share > 0  # a chunk with contiguous rows
    found = Probabilities.of_column(column(values, [150, 200, 300, 300, 500]), chosen, 6)
    assert len(found) == chosen.sum()
    np.testing.assert_array_equal(read(found), values[chosen])
    np.testing.assert_array_equal(found.columns(range(2, 5)), values[chosen, 2:5].T)
    assert found.dtype == np.float32


def test_nothing_is_copied_until_it_is_read(values):
    chunks = column(values, [500])
    (part,) = Probabilities.of_column(chunks, np.ones(500, bool), 6).parts
    assert np.shares_memory(part[0], chunks.chunk(0).values.to_numpy())
    whole = Probabilities.of(values)
    (_, piece), *_ = whole.pieces()
    assert np.shares_memory(piece, values)
    assert Probabilities.of(whole) is whole


def test_a_mapped_file_is_read_like_a_matrix(values, tmp_path):
    np.save(tmp_path / "p.npy", values)
    mapped = Probabilities.of(np.load(tmp_path / "p.npy", mmap_mode="r"))
    np.testing.assert_array_equal(read(mapped), values)
    np.testing.assert_array_equal(mapped.columns(range(6)), values.T)


def test_rows_that_are_not_chosen_may_be_null_and_null_numbers_are_nan():
    array = pa.array([[0.5, None], None, [0.25, 0.75]], pa.list_(pa.float32(), 2))
    found = Probabilities.of_column(pa.chunked_array([array]), np.array([True, False, True]), 2)
    np.testing.assert_array_equal(read(found), [[0.5, np.nan], [0.25, 0.75]])


def test_other_types_and_widths_are_named(values):
    with pytest.raises(InputError, match="hold 6 probabilities an image, but there are 5 classes"):
        Probabilities.of_column(column(values, [500]), np.ones(500, bool), 5)
    with pytest.raises(InputError, match="expected fixed_size_list"):
        Probabilities.of_column(pa.chunked_array([[0.5, 0.5]]), np.ones(2, bool), 2)
