"""Cannot be imported: what is said then is tested."""

raise AttributeError("as it should")
