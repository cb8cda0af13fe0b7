"""Contents of GGUF files: headers, parts, settings, tensors and tokenizers."""
