"""LoRA adapters as files: found by name, read from their headers, held against a model's layers. No torch."""
