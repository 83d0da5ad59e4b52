"""Data sets, victim architectures, substitute sets, reference and negative models, presets."""
