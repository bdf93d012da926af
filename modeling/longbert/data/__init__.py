"""Documents to batches: documents -> tokens -> rows -> masked features -> micro-batches, a module each."""
