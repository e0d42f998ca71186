"""Tools: what a model may call, the sandbox it runs in, and the lanes that carry a call there."""
