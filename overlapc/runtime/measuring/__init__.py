"""What is measured of a machine, a link and a plan, with all ranks together."""
