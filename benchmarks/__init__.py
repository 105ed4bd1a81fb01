"""Measurements of Onward beside bare SQL loops that write the same rows, and beside its peers; `python -m benchmarks`."""
