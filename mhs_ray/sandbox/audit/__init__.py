"""Tries on a node, with real containers, whether its sandbox holds back what it is there to hold back."""
