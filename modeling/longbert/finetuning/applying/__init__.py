"""A fine-tuned model at work: on a text, on an archive, and why it said what it said."""
