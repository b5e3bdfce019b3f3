"""HTML reports: they draw tables and figures and compute no metric."""
