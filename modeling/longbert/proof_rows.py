"""What the rows of the proof's table are called: the source in chunks, what it became, and the honest opponent."""

SOURCE_CHUNKED = "source, chunked"
EXTENDED_BEFORE, EXTENDED_AFTER = "extended, before training", "extended, after training"
# of a model from scratch, which has no source
BEFORE, AFTER = "before training", "after training"
SAME_CHUNKED = "the same model, chunked"
# of `longbert evaluate`
THIS, THIS_CHUNKED = "this model", "this model, chunked"
# the row that is the model itself, the best known first
PROVED = (EXTENDED_AFTER, AFTER, THIS, EXTENDED_BEFORE)
