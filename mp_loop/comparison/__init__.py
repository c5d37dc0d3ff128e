"""Whether two arms differ."""
