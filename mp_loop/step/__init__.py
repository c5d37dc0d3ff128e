"""The algorithm: one training step with handwritten loss scaling."""
