"""What image datasets are, who labels their images, and who stands in which split."""
