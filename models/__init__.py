"""What is computed? Networks and diffusion in pure torch: shapes in, tensors out. Knows no files, ranks, YAML or
trackers.
"""
