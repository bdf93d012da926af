"""The tasks that a long model is fine-tuned for, a module each."""
