"""Models as ONNX graphs: written once from a loaded torch model, kept, checked, and run by ONNX Runtime."""
