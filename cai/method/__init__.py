"""Constitutional AI (Bai et al. 2022, arXiv 2212.08073), without disk or torch.

Read critique.py (section 3.1) and preferences.py (section 4.1); their docstrings hold the notation.
"""
