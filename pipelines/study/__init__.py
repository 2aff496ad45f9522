"""Studies: many experiments that share stages. The only package that imports optuna."""
