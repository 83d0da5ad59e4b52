"""The RemovalNet paper's tables and figures as experiments by name, for any preset."""
