"""Labelled examples: read from files, their labels understood, divided."""
