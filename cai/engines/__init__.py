"""Engines answer requests.

An engine is one file here, one row in base.ENGINES and one file in conf/engine/.
"""
