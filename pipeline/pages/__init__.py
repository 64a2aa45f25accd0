"""What does a person see in a browser? The sampling page, the comparison as one HTML page, the servers of `ldm ui`.

What MLflow's own pages show is arranged in `tracking/`.
"""
