"""The HTTP form: an ASGI application that is a client of the gRPC service and holds no rule."""
