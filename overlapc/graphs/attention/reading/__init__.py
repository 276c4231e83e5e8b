"""What nodes of a Dynamo graph and their tensors say, under one name and at one time."""
