"""Generated linear layers of few rows: from a spec to a Triton module."""
