"""Many devices and many machines."""
