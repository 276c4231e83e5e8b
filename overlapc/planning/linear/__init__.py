"""Linear layers of few rows in numbers: which implementation wins where."""
