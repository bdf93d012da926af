"""What continued pretraining and fine-tuning add to transformers' Trainer, a module each."""
