"""The Open Inference Protocol v2 as generated code; see open_inference.proto."""
