"""What is estimated: the localized tempered posterior of a loss around a minimum w*."""
