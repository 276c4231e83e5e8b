"""Numbers only: sizes and measured rates in, plans and seconds out. Imports no torch, no triton."""
