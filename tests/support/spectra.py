"""Spectra by their eigenvalues."""

import numpy as np

from llc.bounds.spectral_measure import Spectrum


def spectrum_of(eigenvalues, gradient=None) -> Spectrum:
    """A dense spectrum with these eigenvalues, and these components of the gradient along the eigenvectors."""
    nodes = np.asarray(eigenvalues, float)
    weights = np.zeros(len(nodes)) if gradient is None else np.square(gradient)
    return Spectrum(nodes[None], np.ones((1, len(nodes))), len(nodes), "hessian", "dense", nodes, weights)
