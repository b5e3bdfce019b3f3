"""How datasets are listed, and datasets that are rendered."""
