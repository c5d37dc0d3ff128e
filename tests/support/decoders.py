"""Small language models of keras_hub."""

from mp_loop.models import causal_language


def gpt2(hub, dropout=0.0, vocabulary_size=258, positions=16, blocks=2):
    """A GPT-2 of width 16, on bytes.

    Args:
      hub: the module keras_hub, which may be missing.
    """
    tokenizer = causal_language.byte_tokenizer()
    processor = hub.models.GPT2CausalLMPreprocessor(tokenizer, positions)
    backbone = hub.models.GPT2Backbone(
        vocabulary_size=vocabulary_size,
        num_layers=blocks,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=positions,
        dropout=dropout,
    )
    return hub.models.GPT2CausalLM(backbone, processor)
