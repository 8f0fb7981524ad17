"""Where the roads meet: estimates, bounds, checks and a verdict from a file of draws."""
