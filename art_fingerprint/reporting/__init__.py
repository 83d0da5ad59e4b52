"""Tables and reports, made from result rows alone."""
