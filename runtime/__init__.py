"""What one process holds: the claims in its hands, and the threads that work for all of its jobs.

Both brokers and middleware need it, so it knows neither: what crosses upwards is a callback that the composition root hands in.
``node`` is a worker process as a whole and says how it starts and ends; ``claims`` is the life of a claim.
"""
