"""Where the rank comes from: behavioral gradients, layers and units."""
