"""Data sets: their sources, layouts, the rows that are taken, and what must not be in them."""
