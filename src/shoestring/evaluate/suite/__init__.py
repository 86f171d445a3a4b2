"""The suite: questions of many categories, each answer scored by a program."""
