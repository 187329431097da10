"""Figures that a sceptic can make again: each claim has a module, and each module gives sheets."""
