"""The pictures of the documentation, made from scratch: predictions by `theory`, measurements by the real optimizer."""
