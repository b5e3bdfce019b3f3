"""Search for similar images: spaces of vectors, indexes, neighbours, and how good they are."""
