"""The 4-digit headings of the Harmonized System, the classes of the `ncm` dataset."""

from functools import lru_cache

from visao_ray.core.errors import InputError

MOST_HEADINGS = 868
"""Number of classes of the study's `ncm` dataset."""

# Headings in each HS chapter, 01 to 97 (77 is reserved and has none), after the 2017 nomenclature.
_HEADINGS_IN_CHAPTER = (
    *(6, 10, 8, 10, 11, 4, 14, 14, 10, 8, 9, 14, 2, 4, 22, 5, 4, 6, 5, 9),  # 01-20
    *(6, 9, 9, 3, 30, 21, 16, 53, 42, 6, 5, 15, 7, 7, 7, 6, 7, 26, 26, 17),  # 21-40
    *(15, 6, 4, 21, 4, 2, 7, 23, 11, 7, 13, 12, 11, 8, 16, 9, 5, 11, 11, 6),  # 41-60
    *(17, 17, 10, 6, 7, 4, 4, 15, 14, 20, 18, 29, 26, 19, 8, 16, 0, 6, 7, 7),  # 61-80
    *(13, 15, 11, 87, 48, 9, 16, 5, 8, 33, 14, 9, 7, 6, 8, 20, 6),  # 81-97
)


@lru_cache(maxsize=1)
def _all_headings() -> tuple[str, ...]:
    pool = [
        f"{chapter:02d}{number:02d}"
        for chapter, count in enumerate(_HEADINGS_IN_CHAPTER, start=1)
        for number in range(1, count + 1)
    ]
    return tuple(pool[i * len(pool) // MOST_HEADINGS] for i in range(MOST_HEADINGS))


@lru_cache(maxsize=16)
def ncm_headings(n: int = MOST_HEADINGS) -> tuple[str, ...]:
    """Return sorted 4-digit HS headings, selected evenly over the chapters.

    Args:
        n: number of headings, 1 to 868.

    Returns:
        `n` distinct strings such as `"0101"`, sorted; the class names of the `ncm` dataset.

    Raises:
        InputError: `n` is out of range.
    """
    if not 1 <= n <= MOST_HEADINGS:
        raise InputError(f"classes={n}: the ncm dataset has 1 to {MOST_HEADINGS} classes")
    headings = _all_headings()
    return tuple(headings[i * MOST_HEADINGS // n] for i in range(n))
