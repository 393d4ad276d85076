"""What can write texts, by the name that is asked for in a SPEC."""

from calibrune.corpora.engines.engine import Engine, Session
from calibrune.corpora.engines.local import Transformers
from calibrune.corpora.engines.server import CompletionsServer
from calibrune.corpora.engines.vllm import VLLM

ENGINES: dict[str, type[Engine]] = {"transformers": Transformers, "server": CompletionsServer, "vllm": VLLM}

__all__ = ["ENGINES", "VLLM", "CompletionsServer", "Engine", "Session", "Transformers"]
