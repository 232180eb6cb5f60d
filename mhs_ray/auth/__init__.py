"""Who calls: API clients, tokens of attempts, and the secrets behind them."""
