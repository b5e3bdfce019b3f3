"""The store of a dataset: versioned Lance tables that grow and that all jobs read."""
