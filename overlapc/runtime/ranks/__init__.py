"""What ranks of a group tell each other, and how a collective is started."""
