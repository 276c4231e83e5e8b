"""What is done to scores between their product and their softmax, and that softmax."""
