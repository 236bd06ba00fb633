"""The `pgchroma` command: thin click commands over the library; see main.py for the list."""
