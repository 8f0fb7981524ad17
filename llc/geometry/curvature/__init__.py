"""The spectrum of the Hessian at w*: products with vectors, and the methods that find eigenvalues from them."""
