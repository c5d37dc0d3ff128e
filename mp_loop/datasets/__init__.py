"""Data sets that come with the package, in TFDS's on-disk form."""
