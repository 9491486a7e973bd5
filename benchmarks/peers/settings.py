"""Names of the environment variables that carry a peer's settings to it, where its command line has no place for them."""

SPEC = "CASCADE_BENCHMARK_SPEC"
WORKERS = "CASCADE_BENCHMARK_WORKERS"
BATCH = "CASCADE_BENCHMARK_BATCH"
LATENCY_MS = "CASCADE_BENCHMARK_LATENCY_MS"
