"""Metrics of answers and judges, each with its interval."""
