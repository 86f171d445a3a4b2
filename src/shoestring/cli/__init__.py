"""Room 7: one thin file per verb."""
