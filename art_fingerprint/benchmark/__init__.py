"""The bench: attacks x verifiers x seeds on one preset, as resumable cells that give result rows."""
