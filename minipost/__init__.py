"""minipost: every method of LLM post-training in readable PyTorch, on one nano-GPT."""

__version__ = "0.1.0"
