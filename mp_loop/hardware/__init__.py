"""The machine: its processor and devices, and which precision is fast on them."""
