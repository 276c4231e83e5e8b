"""What needs a GPU: ``python -m benchmarks.gpu PART``, one module or folder a part."""
