"""What a corpus holds: how much, how long, how often the same, and how well it fills rows."""
