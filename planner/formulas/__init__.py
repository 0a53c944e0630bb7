"""How many bytes: pure functions of integers, each with the source that it was read from. When they live is `schedule`'s."""
