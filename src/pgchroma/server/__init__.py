"""The HTTP server: Chroma's `/api/v2` over the store. Nothing in here knows SQL."""
