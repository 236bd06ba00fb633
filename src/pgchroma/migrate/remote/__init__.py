"""A Chroma server, or another pgchroma, over HTTP: as a source and as a sink."""
