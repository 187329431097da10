"""Optuna over the settings of a training and over pairs: trials that several processes share and none loses."""
