"""Softmax attention in the graphs that Dynamo gives, before autograd: read, and replaced."""
