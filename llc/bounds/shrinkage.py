r"""What each curvature h adds to λ_quad under a localization: $\tfrac12\, h / (h + \gamma / n\beta)$."""

import numpy as np


def shrink(h: np.ndarray, localization_scale: float) -> np.ndarray:
    """½ h / (h + γ/nβ), the part of each direction in λ_quad; 0 where h is not positive."""
    h = np.maximum(h, 0.0)
    return np.where(h > 0, 0.5 * h / np.where(h > 0, h + localization_scale, 1.0), 0.0)


def signed_shrink(h: np.ndarray, localization_scale: float) -> np.ndarray:
    """½ h / (h + γ/nβ), negative where h is; nan where h ≤ −γ/nβ, beyond which there is no Gaussian."""
    shifted = h + localization_scale
    return np.where(h == 0, 0.0, 0.5 * h / np.where(shifted > 0, shifted, np.nan))
