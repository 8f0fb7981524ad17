"""Bounds on λ beyond the rank: probes of the loss in the kernel of the Hessian."""
