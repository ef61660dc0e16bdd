"""What `from cai import ...` gives to notebooks and other programs (docs/python.md)."""
