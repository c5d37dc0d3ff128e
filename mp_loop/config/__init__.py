"""Settings as values: their defaults, choices and rules. No TensorFlow."""
