"""Independent roads to λ: sampling."""
