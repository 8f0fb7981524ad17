"""What the curvature at w* says of λ: a spectral measure, its rank, and the bounds, in NumPy only."""
