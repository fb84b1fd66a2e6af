"""The engine: a package, its onnxruntime session, and the step loop that turns jobs into tokens."""
