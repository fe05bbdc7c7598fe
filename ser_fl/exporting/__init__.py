"""Trained models for programs that have no ser_fl: ONNX, torch.export, and a folder as Hugging Face keeps them."""
