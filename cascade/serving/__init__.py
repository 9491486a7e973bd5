"""The cascade on Ray Serve: the only floor that knows Ray, asyncio and a clock. It carries out what the policy decides."""
