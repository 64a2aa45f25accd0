"""Diffusion: the path (process.py), what is predicted and the loss (objectives.py), the network as a denoiser
(denoiser.py), guidance (guidance.py), solvers (samplers.py), the way from data back to noise (inversion.py), images
from what was measured of them (operators.py, inverse.py, inverse_samplers.py), and closed forms to check them by
(gaussian.py).
"""
