"""Diffusion: the path (process.py), what is predicted and the loss (objectives.py), the network as a denoiser
(denoiser.py), guidance (guidance.py), solvers (samplers.py), and closed forms to check them by (gaussian.py).
"""
