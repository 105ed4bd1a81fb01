"""The stores: one protocol (`base.py`), one package for each database. They import nothing of the engine."""
