"""Rows of tokens to train on, in an order that can be left and found again at any place."""
