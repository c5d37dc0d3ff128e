"""Which operation runs in which dtype: the half-precision twin."""
