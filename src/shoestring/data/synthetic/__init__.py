"""Synthetic exercises: generators of questions with provably right answers, split so that nothing leaks."""
