"""Thin entry points, and the laboratory behind them."""
