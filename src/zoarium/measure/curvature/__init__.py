"""Curvature of the training loss: products with the Hessian, traces and extreme eigenvalues."""
