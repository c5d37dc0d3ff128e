"""One training run: its folder, loop, checkpoints and end."""
