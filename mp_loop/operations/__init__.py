"""Casting by operation: a traced float32 call, emitted again in 16 bits and float32."""
