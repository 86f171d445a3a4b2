"""Optuna studies over the recipes of any job."""
