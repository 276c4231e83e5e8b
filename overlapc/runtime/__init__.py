"""What runs in place of a chain: ops, their oracle, groups, and the schedules themselves."""
