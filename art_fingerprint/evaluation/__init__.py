"""Measurements on victims and suspects: fidelity of a surrogate."""
