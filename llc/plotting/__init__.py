"""Figures of draws, spectra, calibrations and reports, in matplotlib."""
