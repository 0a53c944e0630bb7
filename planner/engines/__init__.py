"""Each engine writes a ledger from a spec, a recipe and a stack; none knows the others."""
