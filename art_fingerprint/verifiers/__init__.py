"""Verifiers: extract a victim's fingerprint once, then score suspects with a calibrated verdict."""
