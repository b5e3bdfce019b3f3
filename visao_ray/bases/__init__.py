"""What the image bases are, how they are listed, and who stands in which split."""
