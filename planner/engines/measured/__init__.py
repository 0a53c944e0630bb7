"""The measured engine: real steps on real hardware, watched."""
