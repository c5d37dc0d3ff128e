"""What 16 bits do to the numbers of a step, and what to change."""
