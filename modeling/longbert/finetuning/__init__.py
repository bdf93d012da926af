"""What the scripts of finetune/ share: labelled examples, ways to read them, metrics, one loop over strategies."""
