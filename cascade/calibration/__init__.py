"""Offline fitting: from an outcome table to the tables the policy reads. numpy and scipy only; runs no model."""
