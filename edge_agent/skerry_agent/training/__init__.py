"""Training on the device: the ONNX trainer, the labelled store, the long-lived Flower node."""
