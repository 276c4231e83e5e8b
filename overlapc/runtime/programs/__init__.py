"""What a chain computes: a program as data, as code, and compiled by Inductor."""
