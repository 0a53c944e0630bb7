"""
What the operations of PyTorch, PEFT and bitsandbytes allocate and save, one function an operation, written on a `Tape`.

Each mirrors the code that really runs: what it makes, in which order, what its backward keeps and what that makes. Python's own
scoping frees what the real code frees, so a local name is kept or dropped here exactly where the original keeps or drops it.
"""
