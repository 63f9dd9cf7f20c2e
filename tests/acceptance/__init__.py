"""Real ``dramatiq`` worker processes on every broker: signals, kill -9, servers that go away and come back."""
