"""The chat in a terminal: the loop, its commands, its lines and what is typed during an answer."""
