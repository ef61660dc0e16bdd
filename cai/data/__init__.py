"""Data sets: where they come from (sources), what shapes they have (formats), what may not be trained on (audit)."""
