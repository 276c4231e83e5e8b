"""What masks say together, and which of them kernels need not load."""
