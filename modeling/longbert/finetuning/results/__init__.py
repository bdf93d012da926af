"""What came of a comparison: figures, costs, tables, the verdict in words."""
