"""Hyperparameter sweeps: workers, the Optuna study, and their MLflow runs."""
