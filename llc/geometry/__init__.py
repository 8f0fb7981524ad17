"""Independent roads to λ: the geometry of the minimum."""
