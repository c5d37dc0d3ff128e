"""The machine at hand: processor, devices, what pays on them."""
