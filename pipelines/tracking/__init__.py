"""MLflow as a projection of the store. The only package that imports mlflow."""
