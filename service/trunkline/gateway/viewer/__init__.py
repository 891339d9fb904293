"""The viewer of /docs: Swagger UI as released (VERSION), less its source maps, and compressed."""
