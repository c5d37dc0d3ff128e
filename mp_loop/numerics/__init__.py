"""What 16 bits do to the numbers, and what to change."""
