"""The names of the formats of an export; imports no TensorFlow."""

FORMATS = ("saved_model", "tflite", "keras", "onnx", "triton", "torch", "web")
