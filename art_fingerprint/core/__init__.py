"""Everything that touches ART, torch modules or third-party state. Attacks and verifiers build on it."""
