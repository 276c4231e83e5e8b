"""What groups of a call are made of, and where their parts lie."""
