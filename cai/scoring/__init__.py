"""Figures about answers: refusal, and the intervals that belong to every figure."""
