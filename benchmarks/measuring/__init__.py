"""How things are measured and written down, whatever is measured."""
