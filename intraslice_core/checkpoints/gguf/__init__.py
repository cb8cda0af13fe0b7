"""Input of GGUF files: headers, parts, settings, tokenizers and the conversion to safetensors."""
