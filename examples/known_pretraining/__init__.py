"""Small language models whose pre-training text is known, to the document: see README.md beside this."""
