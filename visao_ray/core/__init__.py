"""What every room rests on."""
