"""What a person reads. Each command has the file of its own name; nothing here computes a size."""
