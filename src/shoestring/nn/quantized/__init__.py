"""Frozen linears of few bits: int8 by rows, int4 and NF4 by groups, rounded to nearest."""
