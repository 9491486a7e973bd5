"""Figures and pages made from recorded data only; nothing is computed here that a table does not already say."""
