"""What `from cai import ...` gives to notebooks and other programs (docs/python.md)."""

import warnings

# tqdm, which datasets loads, says in a notebook that it can show no widget; cai shows none
warnings.filterwarnings("ignore", message="IProgress not found")
