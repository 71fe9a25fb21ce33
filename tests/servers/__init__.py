"""Real servers for the tests: S3, PostgreSQL, and a proxy that makes faults between us and them."""
