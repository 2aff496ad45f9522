"""The experiment pipeline: content-addressed stages on Ray, recorded in MLflow."""
