"""Sites that segment in the visitor's browser: ONNX Runtime Web and our C code as WebAssembly."""
