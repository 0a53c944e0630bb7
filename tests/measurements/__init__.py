"""Memory that others measured on their cards and published, in this project's words; nothing is fitted to it."""
