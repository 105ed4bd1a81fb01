"""Measurements of Onward beside bare SQL loops that write the same rows; `python -m benchmarks`."""
