"""Real Triton files: each is imported, linted and run in the interpreter as it stands."""
