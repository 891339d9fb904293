"""The viewer of /docs: Swagger UI as released (see VERSION), less its source maps."""
