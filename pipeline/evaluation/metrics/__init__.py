"""Measures: arrays in, numbers out. They know no files, configs or models."""
