from in_memory import in_memory

__all__ = ["in_memory"]
