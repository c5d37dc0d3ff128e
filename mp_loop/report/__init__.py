"""What a run looks like: page, charts, tables."""
