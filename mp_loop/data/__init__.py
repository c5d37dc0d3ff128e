"""Data in, batches out."""
