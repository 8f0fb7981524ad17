"""A zoo of points w* at which λ is known exactly: one record a case, each with the posterior that a sampler gets.

Most losses are the population's K itself: they ignore their batch, and the data have n rows and no columns, so that
only n enters. Formulas of a few coordinates are written once for NumPy (exact integration) and JAX (sampling). λ, m and
the Hessian rank of every case are known by proof (validation/theory.py), never read off a computation.
"""

from zoo_case import Case
from zoo_formulas import formulas
from zoo_models import models
from zoo_singular import singular_models

CASES: tuple[Case, ...] = (*formulas(), *models(), *singular_models())
