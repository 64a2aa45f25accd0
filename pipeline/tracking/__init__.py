"""What is recorded? Spools that training writes, the process that ships them to MLflow, the run of a pipeline, MLflow's
pages and links.

Only here is mlflow imported, and never in a rank.
"""
