"""Image datasets: their description, listing, labels and splits."""
