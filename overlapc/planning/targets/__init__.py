"""Shipped targets, one JSON file each; their ``source`` says where every number comes from."""
