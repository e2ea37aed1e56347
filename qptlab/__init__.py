"""qptlab: neural networks trained by backpropagating through density functional theory."""

import jax

jax.config.update("jax_enable_x64", True)  # before any array is made: DFT needs float64
